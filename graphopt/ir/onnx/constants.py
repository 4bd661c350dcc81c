"""Constant tensors: onnx_ir tensors seen as TensorRefs, and TensorRefs stored as onnx_ir tensors."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir.graph import TensorType
from graphopt.ir.onnx.dtypes import DATA_TYPES, NAMES
from graphopt.ir.onnx.external import check_present
from graphopt.ir.weights import Array, ArrayRef, LazyRef, TensorRef, numpy_dtype


def tensor_ref(tensor: ir.TensorProtocol) -> TensorRef | None:
    """`tensor` read on demand, or None if it holds strings. Its identity is `tensor` itself."""
    dtype = NAMES.get(tensor.dtype)
    if dtype is None:
        return None
    shape = tuple(int(d) for d in tensor.shape.numpy())
    return LazyRef(dtype, shape, lambda: _array(tensor, dtype), tensor)


def _array(tensor: ir.TensorProtocol, dtype: str) -> Array:
    return np.asarray(reopened(tensor).numpy()).astype(numpy_dtype(dtype), copy=False)


def reopened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """`tensor`, or a new handle on the same file: an ExternalTensor keeps its mapping for life, and the
    pages read through it would count as this process's memory. Raises ModelError if the file has changed so that
    it cannot be read any more."""
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    check_present(tensor, "the model has changed since it was loaded")
    if not tensor.size:  # of which onnx_ir gives no bytes
        return ir.Tensor(np.empty(tensor.shape.numpy(), tensor.dtype.numpy()), tensor.dtype, name=tensor.name)
    return ir.ExternalTensor(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        base_dir=tensor.base_dir,
    )


def stored_tensor(ref: TensorRef, name: str) -> ir.TensorProtocol:
    """`ref` as an onnx_ir tensor. What is not in memory yet is read or computed when the model is saved."""
    dtype, shape = DATA_TYPES[ref.dtype], ir.Shape(ref.shape)
    if isinstance(ref, ArrayRef):
        return ir.Tensor(_contiguous(ref), dtype=dtype, shape=shape, name=name)
    source = ref.identity
    if isinstance(source, ir.TensorProtocol) and source.dtype == dtype:
        return ir.LazyTensor(lambda: reopened(source), dtype, shape, name=name)
    return ir.LazyTensor(lambda: ir.Tensor(_contiguous(ref), dtype=dtype, name=name), dtype, shape, name=name)


def _contiguous(ref: TensorRef) -> Array:
    # ascontiguousarray would turn a 0-d array into a 1-d one.
    return np.asarray(ref.numpy(), order="C")


def ref_type(ref: TensorRef) -> TensorType:
    return TensorType(ref.dtype, tuple(ref.shape))


_SCALARS = {
    "value_float": np.float32,
    "value_int": np.int64,
    "value_floats": np.float32,
    "value_ints": np.int64,
}


def constant_node_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor of a Constant node; None if it is sparse, holds strings or is a parameter of a function."""
    for attribute in node.attributes.values():
        if attribute.is_ref():
            return None
        if attribute.name == "value":
            return attribute.as_tensor()
        if attribute.name in _SCALARS:
            return ir.Tensor(np.asarray(attribute.value, _SCALARS[attribute.name]), name=attribute.name)
    return None
