"""Keys that are transposed on a detour: as torch exports attention, their heads are joined with the batch first.

    reshape(transpose(reshape(x, [B * H, S, D]), (0, 2, 1)), [B, H, D, S]) = transpose(x, (0, 1, 3, 2))

The shapes may be computed; one application takes in their computation, so that verification runs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cmp_to_key, partial
from typing import TypeAlias

from graphopt.ir.graph import Call, Graph, Node
from graphopt.passes.shape_values import Element, ShapeValues, Unknown
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal

RULE = "keys-transposed-flat"
TURNED, KEYS_LAST = (0, 2, 1), (0, 1, 3, 2)
LONGEST = 64
"""Most nodes that one application takes in."""
Moves: TypeAlias = tuple[Call, Call, Call]
"""The first reshape, the transpose and the last reshape."""


def transpose_keys_directly(editor: Editor) -> None:
    """Replace every such detour by one transpose.

    Preconditions: shapes that prove it, computed from constants and sizes; nothing else reads what is between.
    Contract: exact. Source: the operators' definitions.
    """
    graph = editor.graph
    values: ShapeValues | None = None
    for node in list(graph.nodes()):
        moves = None if editor.ledger.exhausted else _moves(graph, node)
        if moves is None:
            continue
        values = values or ShapeValues(graph)
        nodes = _with_targets(graph, moves) if _is_detour(values, *moves) else None
        if nodes is not None:
            editor.apply(RULE, Exact(), nodes, partial(_write, graph, moves, nodes))


def _moves(graph: Graph, node: Node) -> Moves | None:
    """The two reshapes that end in `node`, and the transpose between them."""
    calls: list[Call] = []
    for op in ("reshape", "transpose", "reshape"):
        call = graph.call(node) if node is not None and graph.key(node) == op else None
        if not isinstance(call, Call) or (calls and _is_read_elsewhere(graph, call)):
            return None
        calls.append(call)
        node = graph.producer(call.operands[0])
    last, turn, first = calls
    return (first, turn, last) if turn.fields["perm"] == TURNED else None


def _is_read_elsewhere(graph: Graph, call: Call) -> bool:
    return len(graph.users(call.outputs[0])) > 1 or graph.is_output(call.outputs[0])


def _is_detour(values: ShapeValues, first: Call, turn: Call, last: Call) -> bool:
    try:
        shape = values.shape(first.operands[0])
        flat, parted = _target(values, first), _target(values, last)
    except Unknown:
        return False
    if len(shape) != 4 or len(flat) != 3 or len(parted) != 4:
        return False
    batch, heads, positions, features = shape
    unequal = [p for p, s in zip(parted, (batch, heads, features, positions), strict=True) if p != s]
    return flat[1:] == [positions, features] and unequal in ([], [-1])


def _target(values: ShapeValues, call: Call) -> list[Element]:
    """The shape that a reshape asks for. Raises Unknown."""
    if call.fields["shape"] is not None:
        return list(call.fields["shape"])
    asked = list(values.content(call.operands[1]))
    if call.fields["allow_zero"]:
        return asked
    given = values.shape(call.operands[0])
    return [given[i] if element == 0 and i < len(given) else element for i, element in enumerate(asked)]


def _with_targets(graph: Graph, moves: Moves) -> list[Node] | None:
    """The nodes of `moves` and of the computation of their shapes, in topological order; None if something else than
    constants and sizes goes into it."""
    found = dict.fromkeys(call.node for call in moves)
    pending = [o for call in moves for o in graph.raw_call(call.node).operands[1:]]
    while pending:
        value = pending.pop()
        if value is None or graph.constant(value) is not None:
            continue
        node = graph.producer(value)
        if node is None or not graph.is_pure(node) or len(found) > LONGEST:
            return None
        if node not in found:
            found[node] = None
            pending += [] if graph.key(node) == "shape" else graph.raw_call(node).operands
    return sorted(found, key=cmp_to_key(lambda a, b: -1 if graph.precedes(a, b) else 1))


def _write(graph: Graph, moves: Moves, nodes: Sequence[Node], journal: Journal) -> None:
    first, _, last = moves
    out = last.outputs[0]
    new = journal.insert(
        "transpose", [first.operands[0]], {"perm": KEYS_LAST}, before=last.node, types=[graph.type(out)]
    )
    journal.replace(out, new[0])
    journal.doom(nodes)
