"""Results of experts that are stacked to be weighted and added up, as the sum that they are:

    sum over e of stack(y)[e, t] * gate[e, t] = y_0 * gate[:, 0] + y_1 * gate[:, 1] + ...

The stack is a concatenation along an axis that each result gets for it; the product and the sum may be one einsum or
one product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Call, Graph, Literal, Node, TensorType, Value
from graphopt.ir.weights import ArrayRef
from graphopt.passes.lower_moe.dense import NotDense
from graphopt.passes.lower_moe.dense_stacks import letters
from graphopt.passes.lower_moe.gates import EXPERT, TOKEN, Gate, Gates
from graphopt.rewrite.journal import Journal


@dataclass(frozen=True)
class Unstacked:
    """`results` of the experts in order, tokens first, and the gate of each: along `axis` of `gate`, which is brought
    to the rank of a result by `added` axes of size 1 behind it."""

    graph: Graph
    results: tuple[Value, ...]
    gate: Value
    axis: int
    added: int
    root: Call
    """What gives the sum."""
    wrapped: bool
    """Whether the sum has an axis 1 of size 1 more than a result."""
    nodes: tuple[Node, ...]


def stacked_results(graph: Graph, worth: float) -> Iterator[Unstacked]:
    """Every sum of stacked results of experts that gates weight which are zero for those that were not picked."""
    gates = Gates(graph)
    for node in graph.nodes():
        call = graph.call(node) if graph.key(node) in ("reduce_sum", "einsum", "matmul") else None
        if not isinstance(call, Call):
            continue
        try:
            found = READERS[call.op](gates, call)
        except NotDense:
            continue
        if found is not None and _is_worth_it(gates, found, worth):
            yield found


def _is_worth_it(gates: Gates, found: Unstacked, worth: float) -> bool:
    fact = gates.of(found.gate)
    assert isinstance(fact, Gate)
    k = gates.choices(fact.source)
    return len(found.results) == fact.experts and k is not None and fact.experts >= worth * k


def _gate(gates: Gates, value: Value | Literal | None) -> Gate | None:
    fact = gates.of(value)
    known = isinstance(fact, Gate) and fact.source is not None and fact.off == 0
    return fact if known and {EXPERT, TOKEN} <= {*fact.roles} else None  # type: ignore[union-attr, return-value]


def _stack(graph: Graph, value: Value | Literal | None) -> tuple[int, tuple[Value, ...], tuple[Node, ...]] | None:
    """The axis of a stack, what is stacked, and the nodes that do it."""
    node = None if value is None or isinstance(value, Literal) else graph.producer(value)
    call = None if node is None else graph.call(node)
    if not isinstance(call, Call) or call.op != "concat":
        return None
    pieces = [None if isinstance(o, Literal | None) else graph.producer(o) for o in call.operands]
    calls = [None if p is None else graph.call(p) for p in pieces]
    axis = call.fields["axis"]
    if not all(isinstance(c, Call) and c.op == "unsqueeze" and c.fields["axes"] == (axis,) for c in calls):
        return None
    known = [c for c in calls if isinstance(c, Call)]
    return axis, tuple(c.operands[0] for c in known), (*(c.node for c in known), call.node)


def _summed(gates: Gates, call: Call) -> Unstacked | None:
    """reduce_sum(mul(stack, gate)): the gate has the axes of the stack."""
    graph = gates.graph
    node = graph.producer(call.operands[0])
    mul = None if node is None else graph.call(node)
    if not isinstance(mul, Call) or mul.op != "mul" or call.fields["keepdims"]:
        return None
    for value, gate in (mul.operands, mul.operands[::-1]):
        stack, fact = _stack(graph, value), _gate(gates, gate)
        if stack is None or fact is None or call.fields["axes"] != (stack[0],):
            continue
        known = gates.type(value)
        if known is not None and known.rank == len(fact.roles) and fact.roles[stack[0]] == EXPERT and stack[0] < 2:
            return Unstacked(graph, stack[1], gate, stack[0], 0, call, False, (*stack[2], mul.node, call.node))
    return None


def _einsum(gates: Gates, call: Call) -> Unstacked | None:
    """einsum("etd,te->td", stack, gate), the axes of the stack and of the gate in any order."""
    if len(call.operands) != 2:
        return None
    given, made = letters(call)
    for this, other in ((0, 1), (1, 0)):
        stack, fact = _stack(gates.graph, call.operands[this]), _gate(gates, call.operands[other])
        if stack is None or fact is None or len(fact.roles) != 2:
            continue
        axis = fact.roles.index(EXPERT)
        expert, token = given[other][axis], given[other][1 - axis]
        rest = given[this].replace(expert, "")
        if given[this].find(expert) == stack[0] and made == rest and rest[:1] == token:
            nodes = (*stack[2], call.node)
            return Unstacked(gates.graph, stack[1], call.operands[other], axis, len(rest) - 1, call, False, nodes)
    return None


def _product(gates: Gates, call: Call) -> Unstacked | None:
    """gate[T, 1, E] @ stack[T, E, d]."""
    gate, value = call.operands
    stack, fact = _stack(gates.graph, value), _gate(gates, gate)
    if stack is None or fact is None or stack[0] != 1 or fact.roles[0] != TOKEN or fact.roles[2:] != (EXPERT,):
        return None
    return Unstacked(gates.graph, stack[1], gate, 2, 0, call, True, (*stack[2], call.node))


READERS = {"reduce_sum": _summed, "einsum": _einsum, "matmul": _product}


def write_unstacked(found: Unstacked, journal: Journal) -> None:
    """Replace the sum by additions."""
    graph, root = found.graph, found.root
    gate, total = graph.type(found.gate), graph.type(root.outputs[0])
    assert gate is not None and gate.shape is not None and total is not None and total.shape is not None
    flat = (*gate.shape[: found.axis], *gate.shape[found.axis + 1 :])
    column = TensorType(gate.dtype, (*flat, *[1] * found.added))
    term = TensorType(total.dtype, (total.shape[0], *total.shape[2:]) if found.wrapped else total.shape)

    def insert(op: str, operands: list[Value], fields: dict[str, object], type_: TensorType) -> Value:
        return journal.insert(op, operands, fields, before=root.node, types=[type_])[0]

    made: Value | None = None
    for expert, result in enumerate(found.results):
        number = journal.add_constant(ArrayRef(np.asarray(expert, np.int64)), "expert")
        own = insert("gather", [found.gate, number], {"axis": found.axis}, TensorType(gate.dtype, flat))
        if found.added:
            axes = tuple(range(len(flat), len(flat) + found.added))
            own = insert("unsqueeze", [own], {"axes": axes}, column)
        weighted = insert("mul", [result, own], {}, term)
        made = weighted if made is None else insert("add", [made, weighted], {}, term)
    assert made is not None
    journal.replace(root.outputs[0], insert("unsqueeze", [made], {"axes": (1,)}, total) if found.wrapped else made)
    journal.doom(found.nodes)
