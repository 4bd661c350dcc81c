"""Sparse initialisers, which onnx_ir does not keep: made dense on import."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt.errors import ModelError

_LIMIT = 1 << 30
"""Bytes that a dense copy may take."""


def densified(proto: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """`proto` itself if it has no sparse tensor, else a copy in which they are dense.

    Raises ModelError for one that would take more than 1 GiB.
    """
    if not any(_sparse_graphs(proto.graph)):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in list(_sparse_graphs(copy.graph)):
        graph.initializer.extend(
            _dense(tensor, tensor.values.name, where) for tensor in graph.sparse_initializer
        )
        del graph.sparse_initializer[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("sparse_tensor"):
                    _densify_attribute(attribute, where)
    return copy


def _densify_attribute(attribute: onnx.AttributeProto, where: str) -> None:
    """`sparse_value` of a Constant node becomes `value`."""
    dense = _dense(attribute.sparse_tensor, attribute.name, where)
    attribute.ClearField("sparse_tensor")
    attribute.t.CopyFrom(dense)
    attribute.type = onnx.AttributeProto.TENSOR
    attribute.name = "value"


def _sparse_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    attributes = [attribute for node in graph.node for attribute in node.attribute]
    if graph.sparse_initializer or any(a.HasField("sparse_tensor") for a in attributes):
        yield graph
    for attribute in attributes:
        if attribute.HasField("g"):
            yield from _sparse_graphs(attribute.g)
        for body in attribute.graphs:
            yield from _sparse_graphs(body)


def _dense(sparse: onnx.SparseTensorProto, name: str, where: str) -> onnx.TensorProto:
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    shape = tuple(sparse.dims)
    if np.prod(shape, dtype=np.float64) * values.itemsize > _LIMIT:
        raise ModelError(
            f"{where}: sparse initialiser {name!r} of shape {list(shape)} is too large to be made "
            "dense; expected at "
            f"most {_LIMIT} bytes; store it dense"
        )
    dense = np.zeros(shape, values.dtype)
    flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
    dense.reshape(-1)[flat] = values
    return numpy_helper.from_array(dense, name)
