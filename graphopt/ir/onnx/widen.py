"""An ONNX model with its low-precision floats in float32: what fragments run as where kernels are missing."""

from __future__ import annotations

from typing import Any

import numpy as np


def widen_to_float32(model: Any) -> tuple[Any, list[np.dtype[Any] | None]]:
    """A copy of `model` (onnx.ModelProto) in which float16 and bfloat16 are float32.

    Returns the copy and, per output, the numpy dtype to round the result back to, None where it was not low.
    Casts to low precision become casts to float32, so intermediate rounding is not reproduced.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    low = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    originals = [o.type.tensor_type.elem_type for o in wide.graph.output]

    def widen_graph(graph: Any) -> None:
        for info in [*graph.input, *graph.output, *graph.value_info]:
            if info.type.tensor_type.elem_type in low:
                info.type.tensor_type.elem_type = TensorProto.FLOAT
        for tensor in graph.initializer:
            widen_tensor(tensor)
        for node in graph.node:
            for attribute in node.attribute:
                widen_attribute(node, attribute)

    def widen_attribute(node: Any, attribute: Any) -> None:
        if attribute.type == onnx.AttributeProto.TENSOR:
            widen_tensor(attribute.t)
        elif attribute.type == onnx.AttributeProto.GRAPH:
            widen_graph(attribute.g)
        elif attribute.name in ("to", "dtype") and attribute.i in low:
            attribute.i = TensorProto.FLOAT

    def widen_tensor(tensor: Any) -> None:
        if tensor.data_type in low:
            data = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(data, tensor.name))

    widen_graph(wide.graph)
    return wide, [helper.tensor_dtype_to_np_dtype(t) if t in low else None for t in originals]
