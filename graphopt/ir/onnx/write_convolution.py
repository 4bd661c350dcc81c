"""Writers of convolution, pooling and resampling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphopt.ir.graph import CannotEmit
from graphopt.ir.onnx.drafting import Draft, Fields, Slot, Writer


def _window(f: Fields) -> dict[str, Any]:
    return {"strides": f.ints("stride"), "pads": f.ints("pads"), "dilations": f.ints("dilation")}


def conv(d: Draft, f: Fields) -> list[Slot]:
    attributes = _window(f) | {"group": int(f["groups"])}
    return d.node("Conv", [d.operand(0, "x"), d.operand(1, "w"), d.optional(2)], attributes)


def conv_transpose(d: Draft, f: Fields) -> list[Slot]:
    attributes = _window(f) | {"group": int(f["groups"]), "output_padding": f.ints("output_padding")}
    return d.node("ConvTranspose", [d.operand(0, "x"), d.operand(1, "w"), d.optional(2)], attributes)


FUSED_ACTIVATIONS: Mapping[str, str] = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "leaky_relu": "LeakyRelu",
    "clamp": "Clip",
    "hard_sigmoid": "HardSigmoid",
}
"""What onnxruntime's FusedConv calls the activations of fused_conv; their parameters have the same order."""


def fused_conv(d: Draft, f: Fields) -> list[Slot]:
    """onnxruntime's own op; its kernel is float32 only."""
    x = d.operand(0, "x")
    if (dtype := d.dtype(x, "x")) != "float32":
        raise CannotEmit(f"FusedConv is for float32, not {dtype}")
    activation = FUSED_ACTIVATIONS.get(f["activation"])
    if activation is None:
        raise CannotEmit(f"FusedConv has no activation {f['activation']}")
    attributes = _window(f) | {"group": int(f["groups"]), "activation": activation}
    attributes["activation_params"] = [float(p) for p in f["parameters"]] or None
    return d.node("FusedConv", [x, d.operand(1, "w"), d.optional(2)], attributes, domain="com.microsoft")


def _pool(d: Draft, f: Fields, op_type: str, dilation_since: int) -> dict[str, Any]:
    attributes = _window(f) | {"kernel_shape": f.ints("kernel")}
    if d.opset < dilation_since:
        if any(v != 1 for v in attributes["dilations"] or ()):
            raise CannotEmit(f"{op_type} with dilation needs opset {dilation_since}")
        attributes["dilations"] = None
    if f["ceil"]:
        if d.opset < 10:
            raise CannotEmit(f"{op_type} with ceil needs opset 10")
        attributes["ceil_mode"] = 1
    return attributes


def max_pool(d: Draft, f: Fields) -> list[Slot]:
    return d.node("MaxPool", [d.operand(0, "x")], _pool(d, f, "MaxPool", 10))


def avg_pool(d: Draft, f: Fields) -> list[Slot]:
    attributes = _pool(d, f, "AveragePool", 19)
    if f["count_include_pad"]:
        if d.opset < 7:
            raise CannotEmit("AveragePool with count_include_pad needs opset 7")
        attributes["count_include_pad"] = 1
    return d.node("AveragePool", [d.operand(0, "x")], attributes)


def depth_to_space(d: Draft, f: Fields) -> list[Slot]:
    mode = f["mode"]
    if d.opset < 11 and mode != "DCR":
        raise CannotEmit(f"DepthToSpace in mode {mode} needs opset 11")
    attributes = {"blocksize": int(f["block"]), "mode": mode if d.opset >= 11 else None}
    return d.node("DepthToSpace", [d.operand(0, "x")], attributes)


def space_to_depth(d: Draft, f: Fields) -> list[Slot]:
    return d.node("SpaceToDepth", [d.operand(0, "x")], {"blocksize": int(f["block"])})


def resize(d: Draft, f: Fields) -> list[Slot]:
    x, sizes, scales = d.operand(0, "x"), f["sizes"], f["scales"]
    if (sizes is None) == (scales is None):
        raise CannotEmit("resize takes either sizes or scales")
    attributes = {
        "mode": f["mode"],
        "coordinate_transformation_mode": f["coordinates"],
        "nearest_mode": f["nearest"],
    }
    # Operands that are absent are empty tensors in opset 11 and 12.
    absent = d.constant((), np.float32, "empty") if d.opset < 13 else None
    if sizes is not None:
        return d.node("Resize", [x, absent, absent, d.ints(sizes, "sizes")], attributes, since=11)
    return d.node("Resize", [x, absent, d.constant(scales, np.float32, "scales")], attributes, since=11)


WRITERS: Mapping[str, Writer] = {
    "conv": conv,
    "conv_transpose": conv_transpose,
    "fused_conv": fused_conv,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "depth_to_space": depth_to_space,
    "space_to_depth": space_to_depth,
    "resize": resize,
}
