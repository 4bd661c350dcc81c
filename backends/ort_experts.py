"""Mixtures of experts that come from torch: in ONNX their weights are copied for every token, until the pass lower-moe
has run there too.

What torch's exporter can say of experts is that each row picks a matrix. The pass turns it into one product an expert,
and verifies it, once it is ONNX.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.compiler import optimize
from graphopt.ir.graph import Call, Graph, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

PASS = "lower-moe"
AS_TORCH = f"{PASS}{{ties=torch}}"
"""Of equal scores of a router those experts are chosen that torch chooses."""


def has_experts(graph: Graph) -> bool:
    """Whether rows of `graph` pick matrices of a stack."""
    for node in graph.nodes():
        call = graph.call(node) if graph.key(node) == "gather" else None
        if isinstance(call, Call) and not isinstance(call.operands[1], Literal):
            table, indices = graph.type(call.operands[0]), graph.type(call.operands[1])
            if table is not None and table.rank == 3 and indices is not None and indices.rank in (1, 2):
                return True
    return False


def lowered_experts(exported: ir.Model, target: str) -> tuple[ir.Model, list[str]]:
    """`exported` with its experts lowered, and what was done or refused, for the user to read."""
    result: Any = optimize(exported, AS_TORCH, target=target)
    notes = [f"{a.id} {a.status}{': ' + a.reason if a.reason else ''}" for a in result.report.applications]
    return result.model, [*notes, *(f"{PASS}: {note}" for note in result.report.passes[0].notes)]
