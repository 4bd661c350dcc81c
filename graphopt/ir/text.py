"""A graph as text, one line a node; as JSON-able data; and as Graphviz source.

    input %x : float32[1,3,8,8]
    const %w : float32[4,3,3,3]
    %y = conv(%x, %w, _) {pads=(1,1,1,1) stride=(1,1)} : float32[1,4,8,8] @Conv_0
    %z = ai.onnx::LSTM(%y) {hidden_size=4} : ? @LSTM_1
    output %z : ?

A node that can be read is said in the vocabulary, without the fields that are at their default; any other has
its raw name and raw attributes. `_` is an absent operand, `@` the name of the node where it differs from that
of its output. The text depends on the graph alone and takes time proportional to its size.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from graphopt.ir.graph import Call, Graph, Literal, Node, Value
from graphopt.ir.model import Model
from graphopt.ir.survey import Survey, survey_graph, survey_model, written_fields
from graphopt.ir.weights import TensorRef

LONGEST_TUPLE = 8
"""Elements of a tuple, or of a constant, that are written out."""
LONGEST_TEXT = 60
"""Characters of a text field that are written out."""

_PLAIN_NAME = re.compile(r"[\w./:\-]+")
_INDENT = "  "


def graph_text(graph: Graph) -> str:
    """`graph` and its control-flow bodies, one line a node."""
    return "\n".join(_lines(survey_graph(graph), "")) + "\n"


def model_text(model: Model) -> str:
    """The main graph of `model`, then its local functions."""
    surveys = survey_model(model)
    parts = [_titled(s, "main" if i == 0 else f"function {i}") for i, s in enumerate(surveys)]
    return "\n".join(parts)


def _titled(survey: Survey, title: str) -> str:
    head = f"{title} ({survey.graph.storage}, {len(survey.calls)} nodes)"
    return "\n".join([head, *_lines(survey, _INDENT)]) + "\n"


def _lines(survey: Survey, indent: str) -> Iterator[str]:
    graph = survey.graph
    for value in graph.inputs():
        yield f"{indent}input {_value(graph, value)} : {_type(graph, value)}"
    for value in survey.captures:
        yield f"{indent}state {_value(graph, value)} : {_type(graph, value)}"
    for value in survey.constants:
        yield f"{indent}const {_value(graph, value)} : {_type(graph, value)}{_constant_value(graph, value)}"
    for position, (node, call) in enumerate(survey.calls):
        yield indent + _node_line(graph, node, call)
        for number, body in enumerate(survey.bodies.get(position, ())):
            yield f"{indent}{_INDENT}body {number}"
            yield from _lines(body, indent + 2 * _INDENT)
    for value in graph.outputs():
        yield f"{indent}output {_value(graph, value)} : {_type(graph, value)}"


def _node_line(graph: Graph, node: Node, call: Call) -> str:
    outputs = ", ".join(_value(graph, v) for v in call.outputs)
    operands = ", ".join(_value(graph, v) for v in call.operands)
    fields = " ".join(f"{name}={_field(value)}" for name, value in written_fields(call).items())
    types = ", ".join(_type(graph, v) for v in call.outputs)
    name = graph.node_name(node)
    same = len(call.outputs) == 1 and call.outputs[0] is not None and graph.name(call.outputs[0]) == name
    parts = [
        f"{outputs} =" if outputs else "",
        f"{call.op}({operands})",
        f"{{{fields}}}" if fields else "",
        f": {types}" if types else "",
        "" if same else f"@{_quoted(name)}",
    ]
    return " ".join(part for part in parts if part)


def _value(graph: Graph, value: Value | None) -> str:
    if value is None:
        return "_"
    if isinstance(value, Literal):
        return f"{_field(value.value)}:{value.dtype}"
    return f"%{_quoted(graph.name(value))}"


def _quoted(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _type(graph: Graph, value: Value | None) -> str:
    type_ = None if value is None else graph.type(value)
    return "?" if type_ is None else str(type_)


def _constant_value(graph: Graph, value: Value) -> str:
    """Small constants are shown: axes, shapes and scales are what one looks for."""
    data = graph.constant(value)
    if data is None or data.size > LONGEST_TUPLE:
        return ""
    elements = [str(e) for e in data.numpy().reshape(-1)]
    return f" = {elements[0]}" if data.shape == () else f" = [{', '.join(elements)}]"


def _field(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(_shortened(value))
        case int() | float():
            return repr(value)
        case bytes():
            return f"<{len(value)} bytes>"
        case tuple() | list():
            return f"({','.join(_elements(value))})"
    return _opaque(value)


def _elements(values: tuple[object, ...] | list[object]) -> list[str]:
    shown = [_field(v) for v in values[:LONGEST_TUPLE]]
    return [*shown, f"... {len(values)} in all"] if len(values) > LONGEST_TUPLE else shown


def _opaque(value: Any) -> str:
    """A field of a type of the storage's own: its type and shape if it is a tensor, else its text."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        dtype = getattr(value.dtype, "name", None) or str(value.dtype)
        return f"{dtype}[{','.join(str(d) for d in value.shape)}]"
    if hasattr(value, "nodes") or hasattr(
        value, "outputs"
    ):  # a body: it is shown below, and its text is long
        return f"<{type(value).__name__}>"
    text = " ".join(str(value).split())
    # The default repr holds an address, which differs from run to run.
    return f"<{type(value).__name__}>" if " at 0x" in text else _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}... {len(text)} characters"


# ---- JSON ------------------------------------------------------------------------------------------------


def graph_dict(graph: Graph) -> dict[str, Any]:
    """`graph` as JSON-able data: inputs, state, constants, nodes (with bodies) and outputs."""
    return _survey_dict(survey_graph(graph))


def model_dict(model: Model) -> dict[str, Any]:
    """`model` as JSON-able data: its main graph and its local functions."""
    main, *functions = (_survey_dict(s) for s in survey_model(model))
    return {"storage": model.storage, "main": main, "functions": functions}


def _survey_dict(survey: Survey) -> dict[str, Any]:
    graph = survey.graph
    return {
        "inputs": _values(graph, graph.inputs()),
        "state": _values(graph, survey.captures),
        "constants": _values(graph, survey.constants),
        "nodes": [_node_dict(survey, i) for i in range(len(survey.calls))],
        "outputs": _values(graph, graph.outputs()),
    }


def _values(graph: Graph, values: Iterable[Value]) -> list[dict[str, Any]]:
    return [_value_dict(graph, v) for v in values]


def _value_dict(graph: Graph, value: Value | None) -> dict[str, Any]:
    if value is None:
        return {}
    type_ = graph.type(value)
    dtype = None if type_ is None else type_.dtype
    shape = None if type_ is None or type_.shape is None else list(type_.shape)
    return {"name": graph.name(value), "dtype": dtype, "shape": shape}


def _node_dict(survey: Survey, position: int) -> dict[str, Any]:
    graph = survey.graph
    node, call = survey.calls[position]
    return {
        "name": graph.node_name(node),
        "op": call.op,
        "raw": graph.raw_name(node),
        "operands": [_operand_json(graph, v) for v in call.operands],
        "fields": {name: _json(value) for name, value in sorted(call.fields.items())},
        "outputs": [_value_dict(graph, v) for v in call.outputs],
        "bodies": [_survey_dict(body) for body in survey.bodies.get(position, ())],
    }


def _operand_json(graph: Graph, value: Value | None) -> Any:
    if isinstance(value, Literal):
        return {"literal": _json(value.value), "dtype": value.dtype}
    return None if value is None else graph.name(value)


def _json(value: object) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case tuple() | list():
            return [_json(v) for v in value]
        case Mapping():
            return {str(k): _json(v) for k, v in value.items()}
        case bytes():
            return f"<{len(value)} bytes>"
        case TensorRef():
            return {"dtype": value.dtype, "shape": list(value.shape)}
    return _opaque(value)


# ---- Graphviz --------------------------------------------------------------------------------------------


def graph_dot(graph: Graph) -> str:
    """`graph` as Graphviz source: boxes are nodes, ellipses inputs and outputs, edges carry types. Weights
    are left out, a control-flow body is a cluster."""
    survey = survey_graph(graph)
    ids: dict[str, str] = {}
    lines = ["digraph {", '  node [shape=box fontname="monospace"];', *_dot_lines(survey, "", ids), "}"]
    return "\n".join(lines) + "\n"


def _dot_lines(survey: Survey, prefix: str, ids: dict[str, str]) -> Iterator[str]:
    """`prefix` makes the ids of nested bodies unique; `ids` has the box that computes each value."""
    graph = survey.graph
    for i, value in enumerate([*graph.inputs(), *survey.captures]):
        ids[graph.name(value)] = f"{prefix}i{i}"
        yield f"  {prefix}i{i} [shape=ellipse label={_label(graph.name(value), _type(graph, value))}];"
    for position, (node, call) in enumerate(survey.calls):
        box = f"{prefix}n{position}"
        yield f"  {box} [label={_label(call.op, graph.node_name(node))}];"
        yield from _edges(graph, call.operands, box, ids)
        ids.update({graph.name(v): box for v in call.outputs if v is not None})
        for number, body in enumerate(survey.bodies.get(position, ())):
            inner = f"{box}b{number}"
            yield f"  subgraph cluster_{inner} {{ label={_label(f'body {number}', graph.node_name(node))};"
            yield from _dot_lines(body, inner, ids)
            yield "  }"
    for i, value in enumerate(graph.outputs()):
        yield f"  {prefix}o{i} [shape=ellipse label={_label(graph.name(value), 'output')}];"
        yield from _edges(graph, [value], f"{prefix}o{i}", ids)


def _edges(
    graph: Graph, values: Iterable[Value | None], target: str, ids: Mapping[str, str]
) -> Iterator[str]:
    for value in values:
        if value is not None and not isinstance(value, Literal) and graph.name(value) in ids:
            yield f"  {ids[graph.name(value)]} -> {target} [label={_label(_type(graph, value))}];"


def _label(*lines: str) -> str:
    return '"' + "\\n".join(s.replace("\\", "\\\\").replace('"', '\\"') for s in lines) + '"'
