"""An ONNX model with its low-precision floats in float32: what fragments run as where kernels are missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOW = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def widen_to_float32(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[np.dtype[Any] | None]]:
    """A copy of `model` in which float16 and bfloat16 are float32.

    Returns the copy and, per output, the numpy dtype to round the result back to, None where it was not low.
    Casts to low precision become casts to float32, so intermediate rounding is not reproduced.
    """
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    originals = [o.type.tensor_type.elem_type for o in wide.graph.output]
    _widen_graph(wide.graph)
    return wide, [helper.tensor_dtype_to_np_dtype(t) if t in LOW else None for t in originals]


def _widen_graph(graph: Any) -> None:
    for info in [*graph.input, *graph.output, *graph.value_info]:
        if info.type.tensor_type.elem_type in LOW:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            _widen_attribute(attribute)


def _widen_attribute(attribute: Any) -> None:
    if attribute.type == onnx.AttributeProto.TENSOR:
        _widen_tensor(attribute.t)
    elif attribute.type == onnx.AttributeProto.GRAPH:
        _widen_graph(attribute.g)
    elif attribute.name in ("to", "dtype") and attribute.i in LOW:
        attribute.i = TensorProto.FLOAT


def _widen_tensor(tensor: Any) -> None:
    if tensor.data_type in LOW:
        data = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))
