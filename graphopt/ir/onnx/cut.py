"""Fragments: copies of some nodes as a small model of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Literal, TensorType, Value
from graphopt.ir.onnx import dtypes
from graphopt.ir.onnx.shared import body_graphs, nested_graphs
from graphopt.ir.weights import TensorRef

if TYPE_CHECKING:
    from graphopt.ir.onnx.storage import OnnxGraph

Copies: TypeAlias = dict[ir.Value, ir.Value]
Refs: TypeAlias = dict[ir.TensorProtocol, TensorRef]


@dataclass(frozen=True)
class Fragment:
    """A model with what is known about it beyond its file: where its constants come from, and types."""

    model: ir.Model
    refs: Refs
    types: dict[ir.Value, TensorType]


def cut_fragment(
    region: OnnxGraph, nodes: Iterable[ir.Node], inputs: Sequence[Value], outputs: Sequence[Value]
) -> Fragment:
    """A model that computes `outputs` from `inputs` by copies of `nodes`; other values that it reads are
    constants and become initialisers.

    Raises UnsupportedError if a value that is neither an input nor a constant is read from outside, or if a
    node depends on a parameter of its function.
    """
    ordered = region.in_order(nodes)
    copies: Copies = {}
    graph_inputs = [_copy_input(region, value, copies) for value in inputs]
    refs: Refs = {}
    initializers = [
        _copy_constant(region, value, copies, refs) for value in captured_values(ordered, outputs, copies)
    ]
    copied = [clone_node(node, copies) for node in ordered]
    graph = ir.Graph(
        graph_inputs,
        [],
        nodes=copied,
        initializers=initializers,
        opset_imports=dict(region.opsets),
        name=f"{region.ir.name or 'graph'}_fragment",
    )
    types = {
        copy: known for value, copy in copies.items() if (known := region.shared.type(value)) is not None
    }
    _set_outputs(graph, [copies[value] for value in outputs], types)
    # Before version 4 an initialiser is an input as well; a fragment's constants never are.
    version = max(region.shared.model.ir_version, 4)
    model = ir.Model(graph, ir_version=version, functions=_functions(region.shared.model, ordered))
    return Fragment(model, refs, types)


def _copy_input(region: OnnxGraph, value: Value, copies: Copies) -> ir.Value:
    if isinstance(value, Literal):
        raise UnsupportedError(f"the literal {value.value} cannot be an input of a fragment")
    copy = copies[value] = ir.Value(name=value.name)
    if (known := region.type(value)) is not None:
        dtypes.set_type(copy, known)
    return copy


def captured_values(
    nodes: Sequence[ir.Node], outputs: Sequence[Value] = (), known: Iterable[ir.Value] = ()
) -> list[ir.Value]:
    """Values read by `nodes`, their bodies or as outputs that are neither `known` nor defined among them."""
    defined = set(known)
    read: dict[ir.Value, None] = {}
    for node in nodes:
        defined.update(node.outputs)
        read.update(dict.fromkeys(v for v in node.inputs if v is not None))
        for body in body_graphs(node):
            for graph in nested_graphs(body):
                defined.update(graph.inputs, graph.initializers.values())
                for inner in graph:
                    defined.update(inner.outputs)
                    read.update(dict.fromkeys(v for v in inner.inputs if v is not None))
    read.update(dict.fromkeys(outputs))
    return [value for value in read if value not in defined]


def _copy_constant(region: OnnxGraph, value: Value, copies: Copies, refs: Refs) -> ir.Value:
    ref = region.constant(value)
    tensor = None if isinstance(value, Literal) else region.shared.tensor(value)
    if ref is None or tensor is None:
        raise UnsupportedError(
            f"the fragment reads {region.name(value)!r}, which is neither an input nor a constant"
        )
    # A tensor is renamed when it is serialised; the original's must keep its own name.
    alias = ir.LazyTensor(lambda: tensor, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=value.name)
    copy = copies[value] = ir.Value(name=value.name, const_value=alias)
    dtypes.set_type(copy, TensorType(ref.dtype, ref.shape))
    refs[alias] = ref
    return copy


def clone_node(node: ir.Node, copies: Copies) -> ir.Node:
    """A copy of `node` that reads the copies of its operands, bodies included."""
    outputs = [_copy_value(value, copies) for value in node.outputs]
    return ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else copies[value] for value in node.inputs],
        [_clone_attribute(attribute, copies) for attribute in node.attributes.values()],
        overload=node.overload,
        outputs=outputs,
        version=node.version,
        name=node.name,
        doc_string=node.doc_string,
        metadata_props=dict(node.metadata_props),
    )


def _copy_value(value: ir.Value, copies: Copies) -> ir.Value:
    copy = copies[value] = ir.Value(
        name=value.name,
        type=value.type,
        shape=None if value.shape is None else value.shape.copy(),
        doc_string=value.doc_string,
        const_value=value.const_value if value.is_initializer() else None,
        metadata_props=dict(value.metadata_props),
    )
    return copy


def _clone_attribute(attribute: ir.Attr, copies: Copies) -> ir.Attr:
    if attribute.is_ref():
        raise UnsupportedError(
            f"attribute {attribute.name} is a parameter of the function around the fragment"
        )
    if attribute.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attribute.name, _clone_graph(attribute.as_graph(), copies))
    if attribute.type == ir.AttributeType.GRAPHS:
        return ir.AttrGraphs(attribute.name, [_clone_graph(g, copies) for g in attribute.as_graphs()])
    return attribute


def _clone_graph(graph: ir.Graph, copies: Copies) -> ir.Graph:
    inputs = [_copy_value(value, copies) for value in graph.inputs]
    initializers = [copies.get(value) or _copy_value(value, copies) for value in graph.initializers.values()]
    nodes = [clone_node(node, copies) for node in graph]
    return ir.Graph(
        inputs,
        [copies[value] for value in graph.outputs],
        nodes=nodes,
        initializers=initializers,
        opset_imports=dict(graph.opset_imports),
        name=graph.name,
        doc_string=graph.doc_string,
        metadata_props=dict(graph.metadata_props),
    )


def _set_outputs(graph: ir.Graph, values: Sequence[ir.Value], types: dict[ir.Value, TensorType]) -> None:
    """An input, a constant or a value that is an output already becomes one more output through an
    Identity."""
    for number, value in enumerate(values):
        known = types.get(value)
        if value.producer() is None or value.is_graph_output():
            output = ir.Value(name=f"{value.name}_output_{number}")
            graph.append(
                ir.Node("", "Identity", [value], outputs=[output], name=f"{value.name}_identity_{number}")
            )
            value = output
        if known is not None:
            dtypes.set_type(value, known)
        graph.outputs.append(value)


def _functions(model: ir.Model, nodes: Sequence[ir.Node]) -> list[ir.Function]:
    """Copies of the functions that `nodes` call, directly or not."""
    needed: dict[ir.OperatorIdentifier, ir.Function] = {}
    pending = list(nodes)
    while pending:
        node = pending.pop()
        pending.extend(inner for body in body_graphs(node) for inner in body)
        identifier = node.op_identifier()
        if identifier in model.functions and identifier not in needed:
            needed[identifier] = model.functions[identifier]
            pending.extend(model.functions[identifier])
    return [function.clone() for function in needed.values()]
