"""Running passes on a program: graph passes on each of its graphs, program passes on the whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from graphopt.errors import RuleError
from graphopt.pipeline.context import Context, RunContext
from graphopt.pipeline.pass_ import Pass, ProgramPass
from graphopt.pipeline.pipeline import Pipeline, raising, record_of, size_of
from graphopt.pipeline.report import PassRecord, Report, Size
from graphopt.program.program import Program
from graphopt.program.reference import reference_runner
from graphopt.program.requests import first_request
from graphopt.verify.calibration import Calibration
from graphopt.verify.compare import EPS
from graphopt.verify.floats import shake
from graphopt.verify.whole import FACTOR, Verdict, always_allowed, distance, judged


@dataclass(frozen=True)
class Contexts:
    """Makes what passes work with; all share one ledger."""

    of_program: Callable[[], RunContext]
    of_unit: Callable[[Program, str, str], Context]
    """For the unit of that name of the body of that name."""


def run_passes(pipeline: Pipeline, program: Program, contexts: Contexts, verify: str) -> tuple[Program, Report]:
    """The program after every pass, and what was done. `program` itself is not changed.

    Raises:
        PipelineError: a pass requires a property that nothing before it ensures.
    """
    pipeline.check_order(program.storage)
    report = Report(model=program.name, pipeline=str(pipeline), verify=verify)
    started = time.perf_counter()
    program = program.map_models(lambda name, model: model.copy())
    for pass_ in pipeline.passes:
        if isinstance(pass_, ProgramPass):
            program, record = _run_program_pass(pass_, program, contexts.of_program())
            report.passes.append(record)
        else:
            report.passes += _run_graph_pass(pipeline, pass_, program, contexts)
    report.seconds = time.perf_counter() - started
    return program, report


def _run_graph_pass(pipeline: Pipeline, pass_: Pass, program: Program, contexts: Contexts) -> list[PassRecord]:
    records = []
    for body_name, body in program.bodies.items():
        # What runs in every row comes first, so that a budget is spent where it saves most.
        for name, _ in sorted(body.units(), key=lambda named: named[0] != "step"):
            record = pipeline.run_pass(pass_, contexts.of_unit(program, body_name, name))
            record.where = f"{body_name}/{name}"
            records.append(record)
    return records


def _run_program_pass(pass_: ProgramPass, program: Program, context: RunContext) -> tuple[Program, PassRecord]:
    before = program_size(program)
    context.ledger.open_pass(pass_.name)
    started = time.perf_counter()
    kept = context.ledger.kept
    with raising(pass_):
        changed = pass_.run(program, context)
    if not isinstance(changed, Program):
        raise RuleError(f"pass {pass_.name} returned {changed!r}; run returns the program, rewritten or as it was")
    if changed is not program and context.ledger.kept == kept:
        context.notes.append(f"{pass_.name} made another program and no application: nothing has verified that change")
    return changed, record_of(pass_, context, before, program_size(changed), started)


def program_size(program: Program) -> Size:
    """All graphs together; the FLOPs are those of one run of each."""
    sizes = [size_of(unit.model) for body in program.bodies.values() for _, unit in body.units()]
    flops = [s.flops for s in sizes]
    return Size(
        nodes=sum(s.nodes for s in sizes),
        parameters=sum(s.parameters for s in sizes),
        bytes=sum(s.bytes for s in sizes),
        flops=None if None in flops else sum(f for f in flops if f is not None),
    )


class ProgramCheck:
    """The end-to-end check of a program: whole trajectories before and after, from one seed, judged against what one
    unit of rounding in the initial noise does to the original."""

    def __init__(self, original: Program, calibration: Calibration | None = None) -> None:
        """Samples the first request of `calibration`, or one that is drawn."""
        self._request = first_request(original, calibration)
        self._expected = self._request.sample(reference_runner(original))
        noise = self._request.noise
        eps = EPS[original.interface.sample.dtype]
        shaken = shake(noise, eps, np.random.default_rng(0)).astype(noise.dtype)
        moved = replace(self._request, noise=shaken).sample(reference_runner(original))
        movement = distance([self._expected], [moved])
        self._unstable = [0] if movement == float("inf") else []
        self.allowed = FACTOR * (always_allowed(eps) if self._unstable else max(always_allowed(eps), movement))

    def compare(self, candidate: Program) -> Verdict:
        got = self._request.sample(reference_runner(candidate))
        return judged([self._expected], [got], self.allowed, self._unstable)
