"""The evidence that what is computed for one half of a guided batch, and copied, is what was computed for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.transcribe import transcribe
from graphopt.ir.weights import FLOATS, Array
from graphopt.passes.hoist_check import REQUESTS, draw_request
from graphopt.program.body import Body, Known
from graphopt.program.program import Program
from graphopt.program.reference import run_unit
from graphopt.program.runner import timestep_table, to_numpy, to_torch
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence, Rounding
from graphopt.verify.compare import EPS, mismatch, rounding_ratio
from graphopt.verify.execute import Runner, evaluate, native_runner
from graphopt.verify.inputs import draw_input


@dataclass(frozen=True)
class Fragment:
    """Nodes of a step cut out of it, from its inputs on: as they were, as float64, and what replaces them."""

    before: Runner
    meaning: ScratchGraph
    after: Runner | None = None


def cut_before(graph: Graph, nodes: Sequence[Node], outputs: Sequence[Value]) -> Fragment:
    """To be called before the graph is changed.

    Raises:
        Rejected: the nodes cannot be run alone.
    """
    try:
        meaning = transcribe(graph, nodes, graph.inputs(), outputs, wide=True)[0]
        return Fragment(native_runner(graph, nodes, graph.inputs(), outputs), meaning)
    except Exception as error:
        raise _cannot_run(error) from error


def cut_after(graph: Graph, nodes: Sequence[Node], outputs: Sequence[Value], fragment: Fragment) -> Fragment:
    """The fragment with what replaces it.

    Raises:
        Rejected: the nodes cannot be run alone.
    """
    try:
        return replace(fragment, after=native_runner(graph, nodes, graph.inputs(), outputs))
    except Exception as error:
        raise _cannot_run(error) from error


def judge(program: Program, name: str, body: Body, fragment: Fragment) -> Evidence:
    """Evidence that both sides of a fragment of the step of `body` compute the same, by `Rounding`: on drawn requests,
    at first and last row that call it.

    Raises:
        Rejected: results differ, or something cannot be run to compare.
    """
    try:
        return _execute(program, name, body, fragment)
    except Rejected:
        raise
    except Exception as error:
        raise _cannot_run(error) from error


def _cannot_run(error: Exception) -> Rejected:
    reason = str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__
    return Rejected(f"cannot be run to compare: {reason}", Evidence("none"))


def _execute(program: Program, name: str, body: Body, fragment: Fragment) -> Evidence:
    assert fragment.after is not None
    worst, runs = 0.0, 0
    rows = [row for row, called in enumerate(program.calls) if called == name]
    units = {unit: run_unit(held.model) for unit, held in body.units() if unit != "step"}
    for request in range(REQUESTS):
        for row in dict.fromkeys((rows[0], rows[-1])):
            feeds = _feeds(program, body, units, request, row)
            runs += 1
            exact, old, new = evaluate(fragment.meaning, feeds), fragment.before(feeds), fragment.after(feeds)
            if (reason := mismatch(old, new)) is not None:
                raise Rejected(reason, Evidence("executed", runs, float("inf")))
            for index, ratio in enumerate(map(_ratio, exact, old, new)):
                worst = max(worst, ratio)
                if not ratio <= 1.0:
                    where = f"value {index} at row {row} of request {request}"
                    raise Rejected(
                        f"{where} has {ratio:.3g} times the error that {Rounding()} allows",
                        Evidence("executed", runs, ratio),
                    )
    return Evidence("executed", runs, worst)


def _ratio(exact: Array, old: Array, new: Array) -> float:
    """The error as a multiple of what is allowed; of what is no float, whether it is the same."""
    if old.dtype.name not in FLOATS:
        return 0.0 if np.array_equal(old, new) else float("inf")
    return rounding_ratio(exact, old, new, EPS[old.dtype.name], Rounding().factor)


def _feeds(program: Program, body: Body, units: Any, request: int, row: int) -> list[Array]:
    """What the step is fed in a row of a drawn request: the same sample and timestep in both halves."""
    own = to_torch if program.storage == "fx" else to_numpy
    known = Known({name: own(value) for name, value in draw_request(program, request).items()})
    if body.prologue is not None:
        known = replace(known, prologue=units["prologue"](known.feeds(body.prologue)))
    known = replace(known, timestep=own(timestep_table(program, [row])[0, ...]))
    known = replace(known, table=body.table_of_row(lambda feeds: units["table"](feeds), known))
    half = draw_input(np.random.default_rng(1000 * request + row), program.interface.sample)
    known = replace(known, sample=own(np.concatenate([half, half])))
    return [np.asarray(to_numpy(value)) for value in known.feeds(body.step)]
