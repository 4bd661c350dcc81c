"""The evidence that a table of all rows holds what the table of one row gives for each of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from graphopt.ir.transcribe import transcribe
from graphopt.ir.weights import Array
from graphopt.passes.hoist_check import REQUESTS, draw_request
from graphopt.passes.rounding_check import cannot_run, worst_ratio
from graphopt.program.body import Body, Known, Unit
from graphopt.program.program import Program
from graphopt.program.reference import run_unit
from graphopt.program.runner import timestep_table
from graphopt.program.stages import is_stored
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.verify.execute import evaluate


def check_batched(program: Program, before: Body, after: Body, name: str, verify: str) -> Evidence:
    """Evidence that the table of `after` holds what that of `before` gives, at every timestep of the schedule.

    Every row is judged against the float64 meaning of the original table, by `Rounding`.

    Raises:
        Rejected: types or results differ, or something cannot be run to compare.
    """
    was, is_ = before.result_types("table"), after.result_types("table")
    if was != is_:
        changed = next(f"{a} and would be {b}" for a, b in zip(was, is_, strict=True) if a != b)
        raise Rejected(f"a row of the table was {changed}", Evidence("none"))
    if verify == "off":
        return Evidence("none")
    if verify == "structure":
        return Evidence("types", notes=("types only: nothing was executed",))
    try:
        return _execute(program, before, after, name)
    except Rejected:
        raise
    except Exception as error:
        raise cannot_run(error) from error


def _execute(program: Program, before: Body, after: Body, name: str) -> Evidence:
    assert before.table is not None and after.table is not None
    one, all_rows = run_unit(before.table.model), run_unit(after.table.model)
    graph = before.table.model.main
    nodes = [n for n in graph.nodes() if not is_stored(graph, n)]
    meaning = transcribe(graph, nodes, graph.inputs(), graph.outputs(), wide=True)[0]
    times = timestep_table(program, [row for row, called in enumerate(program.calls) if called == name])
    worst, runs = 0.0, 0
    for request in range(REQUESTS):
        known = _known(program, before, request)
        batched = all_rows(_feeds(known, after.table, times))
        for row in range(len(times)):
            feeds = _feeds(known, before.table, times[row, ...])
            runs += 1
            got = [np.asarray(result)[row, ...] for result in batched]
            exact, where = evaluate(meaning, feeds), f"row {row} of request {request}"
            worst = max(worst, worst_ratio(exact, one(feeds), got, what="result", where=where, runs=runs))
    return Evidence("executed", runs, worst)


def _known(program: Program, body: Body, request: int) -> Known:
    """One request: seeded conditions and what the prologue makes of them."""
    known = Known(draw_request(program, request))
    if body.prologue is None:
        return known
    return replace(known, prologue=run_unit(body.prologue.model)(known.feeds(body.prologue)))


def _feeds(known: Known, table: Unit, timestep: Array) -> list[Array]:
    return [np.asarray(value) for value in replace(known, timestep=timestep).feeds(table)]
