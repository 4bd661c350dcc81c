"""Refusing tensors whose data is not what their shape and type say: protobuf does not notice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx
import onnx_ir as ir
from onnx import TensorProto

from graphopt.errors import ModelError
from graphopt.ir.onnx.external import entry_fault

_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.STRING: "string_data",
}
"""Where ONNX stores the elements of a type that are not raw bytes; all others lie in int32_data."""

_MOST_AXES = 64
"""As many as numpy can have."""


def check_tensors(proto: onnx.ModelProto, where: str) -> None:
    """Refuse a tensor that has more or less data than its shape and type need, or does not say where that lies."""
    bodies = [function.node for function in proto.functions]
    for tensor in (*_graph_tensors(proto.graph), *(t for nodes in bodies for t in _node_tensors(nodes))):
        if (reason := _fault(tensor)) is not None:
            raise ModelError(
                f"{where}: truncated or damaged: tensor {tensor.name!r} of shape {list(tensor.dims)} {reason}; "
                "download or export it again"
            )


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                yield from _graph_tensors(attribute.g)
            for body in attribute.graphs:
                yield from _graph_tensors(body)


def _fault(tensor: TensorProto) -> str | None:
    """What is wrong with `tensor`."""
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        return f"has the unknown element type {tensor.data_type}; expected one of onnx.TensorProto.DataType"
    if len(tensor.dims) > _MOST_AXES:
        return f"has {len(tensor.dims)} axes; expected at most {_MOST_AXES}"
    if any(size < 0 for size in tensor.dims):
        return "has a negative size; expected sizes of 0 and more"
    if tensor.data_location == TensorProto.EXTERNAL and dtype == ir.DataType.STRING:
        return "has strings in another file; expected string_data"
    if tensor.data_location == TensorProto.EXTERNAL:
        return entry_fault({entry.key: entry.value for entry in tensor.external_data})
    return _data_fault(tensor, dtype)


def _data_fault(tensor: TensorProto, dtype: ir.DataType) -> str | None:
    """What is wrong with data that lies in the message itself."""
    count = math.prod(tensor.dims)
    if tensor.HasField("raw_data") and dtype == ir.DataType.STRING:
        return "has strings as raw bytes; expected string_data"
    if tensor.HasField("raw_data"):
        expected, found, unit = -(-count * dtype.bitwidth // 8), len(tensor.raw_data), "bytes"
    else:
        expected, found, unit = _elements(tensor.data_type, count), _stored(tensor), "elements"
    return None if expected == found else f"has {found} {unit} of data; expected {expected}"


def _stored(tensor: TensorProto) -> int:
    return len(getattr(tensor, _FIELDS.get(tensor.data_type, "int32_data")))


def _elements(data_type: int, count: int) -> int:
    """How many numbers say `count` elements: two for a complex one; one for a byte of those below a byte."""
    if data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * count
    bits = 8 if data_type == TensorProto.STRING else ir.DataType(data_type).bitwidth
    return -(-count * bits // 8) if bits < 8 else count
