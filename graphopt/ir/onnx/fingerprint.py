"""A hash of a region's structure and names, the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import onnx_ir as ir


def graph_fingerprint(graph: ir.Graph, opsets: Mapping[str, int]) -> str:
    """Hash of nodes (op, attributes, bodies, names of inputs and outputs), graph inputs and outputs, and
    names, dtypes and shapes of initialisers. Weight data is not read."""
    digest = hashlib.sha256(repr(sorted(opsets.items())).encode())
    for line in _graph_lines(graph):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _graph_lines(graph: ir.Graph) -> Iterator[str]:
    yield f"graph {graph.name!r}"
    for kind, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in values:
            yield f"{kind} {value.name!r} {value.type} {value.shape}"
    for name, value in graph.initializers.items():
        yield f"initializer {name!r} {_tensor_text(value.const_value)}"
    for node in graph:
        yield from _node_lines(node)
    yield "end"


def _node_lines(node: ir.Node) -> Iterator[str]:
    inputs = [None if value is None else value.name for value in node.inputs]
    outputs = [value.name for value in node.outputs]
    yield f"node {node.name!r} {node.domain}::{node.op_type}:{node.overload} {inputs} {outputs}"
    for attribute in node.attributes.values():
        yield f"attribute {attribute.name!r} {attribute.type}"
        if attribute.is_ref():
            yield f"parameter {attribute.ref_attr_name!r}"
        elif attribute.type == ir.AttributeType.GRAPH:
            yield from _graph_lines(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            for body in attribute.as_graphs():
                yield from _graph_lines(body)
        elif attribute.type == ir.AttributeType.TENSOR:
            yield _tensor_text(attribute.as_tensor())
        elif attribute.type == ir.AttributeType.TENSORS:
            yield from map(_tensor_text, attribute.as_tensors())
        else:
            yield repr(attribute.value)


def _tensor_text(tensor: ir.TensorProtocol | None) -> str:
    return "none" if tensor is None else f"tensor {tensor.dtype} {tensor.shape}"
