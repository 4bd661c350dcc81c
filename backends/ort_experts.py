"""Mixtures of experts that come from torch: in ONNX their weights are copied for every token, or all of them computed,
until the pass lower-moe has run there too.

What torch's exporter can say of experts is that each row picks a matrix, or that gates are zero for all but those that
were chosen. The pass turns it into one product an expert, and verifies it, once it is ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.compiler import optimize
from graphopt.ir.graph import Call, Graph, Literal, Node

if TYPE_CHECKING:
    import onnx_ir as ir

PASS = "lower-moe"
AS_TORCH = f"{PASS}{{ties=torch}}"
"""Of equal scores of a router those experts are chosen that torch chooses."""


CHOOSING = {"topk": 1, "aten.topk.default": 1, "arg_max": 0, "aten.max.dim": 1}
"""Which result of an op counts along an axis: by it experts are chosen."""


def may_have_experts(graph: Graph) -> bool:
    """Whether rows of `graph` pick matrices of a stack, or something is chosen by a score in it."""
    return any(_picks_matrices(graph, node) or _chooses(graph, node) for node in graph.nodes())


def _picks_matrices(graph: Graph, node: Node) -> bool:
    call = graph.call(node) if graph.key(node) == "gather" else None
    if not isinstance(call, Call) or isinstance(call.operands[1], Literal):
        return False
    table, indices = graph.type(call.operands[0]), graph.type(call.operands[1])
    return table is not None and table.rank == 3 and indices is not None and indices.rank in (1, 2)


def _chooses(graph: Graph, node: Node) -> bool:
    place = CHOOSING.get(graph.key(node))
    numbers = None if place is None else graph.results(node)[place]
    return numbers is not None and bool(graph.users(numbers))


def lowered_experts(exported: ir.Model, target: str) -> tuple[ir.Model, list[str]]:
    """`exported` with its experts lowered, and what was done or refused, for the user to read; without any as it is."""
    result: Any = optimize(exported, AS_TORCH, target=target)
    notes = [f"{a.id} {a.status}{': ' + a.reason if a.reason else ''}" for a in result.report.applications]
    notes += [f"{PASS}: {note}" for note in result.report.passes[0].notes]
    return result.model if result.report.kept else exported, notes
