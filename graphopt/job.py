"""One run of `optimize`: passes on a model or a program, and the end-to-end check with its bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from graphopt.errors import VerificationError
from graphopt.ir.model import Model
from graphopt.pipeline.context import Context, RunContext
from graphopt.pipeline.instrument import Instrument
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.report import Report
from graphopt.program.approximation import Trajectories, UnitApproximation
from graphopt.program.optimize import Contexts, ProgramCheck, run_passes
from graphopt.program.program import Program
from graphopt.rewrite.change import Verifier
from graphopt.rewrite.ledger import Ledger
from graphopt.verify.approximation import Account, ModelApproximation, Reference
from graphopt.verify.bisect import first_bad
from graphopt.verify.budget import Budget
from graphopt.verify.calibration import Calibration, inputs_of
from graphopt.verify.proved import Proved
from graphopt.verify.verifier import MatchVerifier, Structural
from graphopt.verify.whole import WholeCheck


@dataclass(frozen=True)
class Job:
    """What `optimize` is asked for, whatever the model; done again with other limits by bisection."""

    pipeline: Pipeline
    verify: str
    target: str | None
    features: frozenset[str]
    """Of the target."""
    budget: Budget | None
    calibration: Calibration | None
    skip: frozenset[str]
    repro: str | Path | None
    prove: bool = False

    def observed_by(self, instruments: Sequence[Instrument]) -> Pipeline:
        return Pipeline(self.pipeline.passes, instruments)

    def verifier(self) -> Verifier:
        verifier = make_verifier(self.verify, str(self.pipeline), self.repro)
        return Proved(verifier) if self.prove else verifier

    def options(self) -> dict[str, Any]:
        """Those of every context of the run."""
        return {
            "verify": self.verify, "target": self.target, "features": self.features, "budget": self.budget,
            "calibration": self.calibration,
        }  # fmt: skip


def run_on_model(
    load_fresh: Callable[[], Model], name: str, examples: Any, job: Job, limit: int | None
) -> tuple[Model, Report]:
    """A model after the passes, checked as asked, and what was done.

    Args:
        load_fresh: makes the original, anew at every call.
        name: of the model, in the report.
        examples: to run end to end where there is no calibration data.
        limit: on applications.
    """
    budget, calibration, options = job.budget, job.calibration, job.options()
    reference: Reference | None = None

    def attempt(most: int | None, instruments: Sequence[Instrument]) -> tuple[Model, Report]:
        nonlocal reference
        fresh = load_fresh()
        fresh.require_data()
        approximate = None
        if budget is not None and calibration is not None:
            reference = reference or Reference(fresh, budget, calibration)
            approximate = partial(ModelApproximation, Account(budget), reference)
        context = Context(fresh, job.verifier(), Ledger(most, job.skip), approximate=approximate, **options)
        return fresh, job.observed_by(instruments).run(context, name, job.verify)

    result, report = attempt(limit, job.pipeline.instruments)
    report.notes += _idle_skips(report, job)
    if job.verify == "model" and report.approximated:
        _check_whole(reference, result, report, attempt)
    elif job.verify == "model":
        original = load_fresh()
        first = None if calibration is None else list(calibration.batches(inputs_of(original))[0].values())
        _check_whole(WholeCheck(original, examples, first), result, report, attempt)
    return result, report


def run_on_program(program: Program, job: Job, limit: int | None) -> tuple[Program, Report]:
    """A program after the passes, checked as asked, and what was done."""
    options = job.options()
    converted = program if job.target is None else program.convert(job.target)
    trajectories = None if job.budget is None else Trajectories(converted, job.budget, job.calibration)

    def attempt(most: int | None, instruments: Sequence[Instrument]) -> tuple[Program, Report]:
        ledger, verifier = Ledger(most, job.skip), job.verifier()
        account = None if job.budget is None else Account(job.budget)

        def of_unit(current: Program, body: str, unit: str) -> Context:
            approximate = None
            if account is not None and trajectories is not None:
                approximate = partial(UnitApproximation, account, trajectories, current, body, unit)
            model = dict(current.bodies[body].units())[unit].model
            return Context(model, verifier, ledger, approximate=approximate, **options)

        contexts = Contexts(lambda: RunContext(verifier, ledger, **options), of_unit)
        return run_passes(job.observed_by(instruments), converted, contexts, job.verify)

    result, report = attempt(limit, job.pipeline.instruments)
    report.notes += _idle_skips(report, job)
    if job.verify == "model":
        check = trajectories if report.approximated else ProgramCheck(program, job.calibration)
        _check_whole(check, result, report, attempt)
    return result, report


def _idle_skips(report: Report, job: Job) -> list[str]:
    """What is to be said of ids that were to be skipped and that no application had."""
    had = {application.id for application in report.applications}
    return [f"skip={id_!r}: no application had this id" for id_ in sorted(job.skip - had)]


def _check_whole(
    check: Any,
    result: Any,
    report: Report,
    attempt: Callable[[int | None, Sequence[Instrument]], tuple[Any, Report]],
) -> None:
    """Compare the result end to end; if it fails, find the application at fault.

    Args:
        check: has `compare(result)`, which returns a verdict: one of rounding, or of the budget where approximate
            passes changed something.
        attempt: runs the pipeline again with a limit on applications.
    """
    verdict = check.compare(result)
    report.notes.append(f"end to end: {verdict}")
    if verdict.ok:
        return
    kept = len(report.kept)
    bad = first_bad(kept, lambda k: check.compare(attempt(k, ())[0]).ok)
    if bad is None:
        found, advice = "no single one to blame", "with fewer passes to see which one it is"
    else:
        found = report.kept[bad - 1].id
        advice = f"with skip=[{found!r}] to leave it out, and with repro=DIR to keep what reproduces it"
    raise VerificationError(
        f"the optimised model does not agree with the original end to end: {verdict}. Bisection over {kept} "
        f"applications found {found}. Run again {advice}"
    )


def make_verifier(level: str, pipeline: str, repro: str | Path | None) -> Verifier:
    """The verifier for a level."""
    if level in ("match", "model"):
        verifier: Verifier = MatchVerifier()
        if repro is not None:
            from graphopt.verify.repro import Recorded

            verifier = Recorded(verifier, Path(repro), pipeline)
        return verifier
    return Structural("types" if level == "structure" else "none")
