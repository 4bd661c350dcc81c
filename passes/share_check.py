"""The evidence that what is computed for one half of a guided batch, and copied, is what was computed for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.transcribe import transcribe
from graphopt.passes.hoist_check import REQUESTS, Runs, draw_request
from graphopt.passes.rounding_check import cannot_run, worst_ratio
from graphopt.program.body import Body
from graphopt.program.program import Program
from graphopt.program.runner import timestep_table, to_numpy
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.verify.compare import mismatch
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
        raise cannot_run(error) from error


def cut_after(graph: Graph, nodes: Sequence[Node], outputs: Sequence[Value], fragment: Fragment) -> Fragment:
    """The fragment with what replaces it.

    Raises:
        Rejected: the nodes cannot be run alone.
    """
    try:
        return replace(fragment, after=native_runner(graph, nodes, graph.inputs(), outputs))
    except Exception as error:
        raise cannot_run(error) from error


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
        raise cannot_run(error) from error


def _execute(program: Program, name: str, body: Body, fragment: Fragment) -> Evidence:
    assert fragment.after is not None
    worst, runs = 0.0, 0
    rows = [row for row, called in enumerate(program.calls) if called == name]
    before_step = Runs(body, ("prologue", "table"))
    for request in range(REQUESTS):
        fed = before_step.step_feeds(draw_request(program, request), program.storage)
        for row in dict.fromkeys((rows[0], rows[-1])):
            half = draw_input(np.random.default_rng(1000 * request + row), program.interface.sample)
            given = fed(np.concatenate([half, half]), timestep_table(program, [row])[0, ...])
            feeds = [np.asarray(to_numpy(value)) for value in given]
            runs += 1
            exact, old, new = evaluate(fragment.meaning, feeds), fragment.before(feeds), fragment.after(feeds)
            if (reason := mismatch(old, new)) is not None:
                raise Rejected(reason, Evidence("executed", runs, float("inf")))
            where = f"row {row} of request {request}"
            worst = max(worst, worst_ratio(exact, old, new, what="value", where=where, runs=runs))
    return Evidence("executed", runs, worst)
