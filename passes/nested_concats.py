"""Concatenations of concatenations along one axis become one."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from graphopt.ir.graph import Call, Graph, Literal, Node, Value
from graphopt.rewrite.change import Editor, escapes
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal


def flatten_concats(editor: Editor, settled: set[Hashable]) -> bool:
    """concat(..., concat(ys), ...) = concat(..., *ys, ...) where nothing else reads the inner one.

    The outermost one is rewritten with all that it contains, so a deep nest is copied once. `settled` holds
    nodes that were refused before; it is added to. Returns whether anything was rewritten.
    """
    graph, kept = editor.graph, False
    gone: set[Node] = set()
    for node in reversed([n for n in graph.nodes() if graph.key(n) == "concat"]):
        if node in settled or node in gone or editor.ledger.exhausted:
            continue
        call = graph.call(node)
        if not isinstance(call, Call):
            continue
        inner, operands = _contained(graph, call)
        if not inner:
            continue
        nodes = [*inner, node]
        application, _ = editor.apply("flatten-concats", Exact(), nodes, _write(graph, call, operands, nodes))
        if application.status == "kept":
            kept = True
            gone.update(inner)
        else:
            settled.add(node)
    return kept


def _contained(graph: Graph, outer: Call) -> tuple[list[Node], list[Value]]:
    """The concatenations inside of `outer`, each after those that it reads, and the operands of all in
    order.
    """
    inner: dict[Node, None] = {}
    operands: list[Value] = []
    pending: list[tuple[Call, int]] = [(outer, 0)]
    while pending:
        call, position = pending.pop()
        if position == len(call.operands):
            if call is not outer:
                inner[call.node] = None
            continue
        pending.append((call, position + 1))
        value = call.operands[position]
        nested = _nested(graph, value, call)
        if nested is None:
            operands.append(value)
        else:
            pending.append((nested, 0))
    return list(inner), operands


def _nested(graph: Graph, value: Value, reader: Call) -> Call | None:
    """The concatenation that computes `value`, if only `reader` reads it, once, and along the same axis."""
    node = None if value is None or isinstance(value, Literal) else graph.producer(value)
    if node is None or graph.key(node) != "concat":
        return None
    call = graph.call(node)
    if not isinstance(call, Call) or call.fields != reader.fields or reader.operands.count(value) > 1:
        return None
    return call if escapes(graph, [value], {reader.node}) is None else None


def _write(graph: Graph, call: Call, operands: list[Value], nodes: list[Node]) -> Callable[[Journal], None]:
    def write(journal: Journal) -> None:
        out = call.outputs[0]
        new = journal.insert("concat", operands, call.fields, before=call.node, types=[graph.type(out)])
        journal.replace(out, new[0])
        journal.doom(nodes)

    return write
