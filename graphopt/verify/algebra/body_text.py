"""Control-flow bodies in words: two nodes with the same bodies are the same function of what they read and capture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from graphopt.ir.graph import Graph, Literal, Node, Value
from graphopt.ir.weights import TensorRef
from graphopt.verify.fragment import captured

Spell = Callable[[Graph, Node], str]
"""A node's op and attributes, without its operands and bodies."""
Label = Callable[[TensorRef], str]
"""What a constant is called: equal for those that are to be taken for equal alone."""


def plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a node without its bodies."""
    return {k: v for k, v in fields.items() if not _is_body(v)}


def _is_body(field: Any) -> bool:
    import onnx_ir as ir  # Only graphs in which it is loaded have such fields, and importing graphopt loads nothing.

    return isinstance(field, ir.Graph)


def captured_by(graph: Graph, node: Node) -> Sequence[Value]:
    """What the bodies of `node` read from around them, each value once."""
    return [*dict.fromkeys(v for body in graph.subgraphs(node) for v in captured(body))]


def bodies_said(graph: Graph, node: Node, spell: Spell, label: Label) -> str | None:
    """The bodies of `node`, in which a captured value is called by its place in `captured_by`; None if they cannot be
    told apart by their attributes' names, or if one of them has effects."""
    outer = {v: f"captured {i}" for i, v in enumerate(captured_by(graph, node))}
    return _bodies(graph, node, outer, spell, label, 1)


def _bodies(
    graph: Graph, node: Node, outer: Mapping[Value, str], spell: Spell, label: Label, depth: int
) -> str | None:
    names = [k for k, v in graph.raw_call(node).fields.items() if _is_body(v)]
    bodies = graph.subgraphs(node)
    if len(names) != len(bodies):
        return None
    told = [_said(body, outer, spell, label, depth) for body in bodies]
    return None if None in told else str(sorted(zip(names, told, strict=True)))


def _said(body: Graph, outer: Mapping[Value, str], spell: Spell, label: Label, depth: int) -> str | None:
    names = {**outer, **{v: f"input {depth}.{i}" for i, v in enumerate(body.inputs())}}

    def name(value: Value | None) -> str:
        if value is None or isinstance(value, Literal):
            return repr(value)
        if value in names:
            return names[value]
        data = body.constant(value)
        assert data is not None, "a body reads what is neither its own, nor captured, nor constant"
        return label(data)

    lines = [str(len(body.inputs()))]
    for n, node in enumerate(body.nodes()):
        outputs = body.results(node)
        if all(v is None or body.constant(v) is not None for v in outputs):
            continue
        inner = _bodies(body, node, names, spell, label, depth + 1)
        if inner is None or not body.is_pure(node):
            return None
        lines.append(f"{spell(body, node)}{[name(o) for o in body.raw_call(node).operands]}{inner}")
        names.update({o: f"value {depth}.{n}.{i}" for i, o in enumerate(outputs) if o is not None})
    lines.append(str([name(v) for v in body.outputs()]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
