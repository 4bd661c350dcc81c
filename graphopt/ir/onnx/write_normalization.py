"""Writers of normalisation, softmax and reductions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.ir.graph import CannotEmit
from graphopt.ir.onnx.drafting import Draft, Fields, Slot, Writer
from graphopt.ir.weights import numpy_dtype


def batch_norm(d: Draft, f: Fields) -> list[Slot]:
    """Scale and shift are not optional in ONNX; absent ones are written as ones and zeros."""
    x, mean, var = d.operand(0, "x"), d.operand(3, "mean"), d.operand(4, "var")
    training = bool(f["training"])
    if training and d.opset < 14:
        raise CannotEmit("BatchNormalization in training mode needs opset 14")
    scale = d.optional(1) or _filled(d, mean, [0], 1, "scale")
    shift = d.optional(2) or _filled(d, mean, [0], 0, "shift")
    attributes = {"epsilon": float(f["eps"]), "training_mode": 1 if training else None}
    outputs = d.node(
        "BatchNormalization", [x, scale, shift, mean, var], attributes, since=7, outputs=3 if training else 1
    )
    return outputs[:1]


def _filled(d: Draft, like: Slot, axes: Sequence[int], value: float, name: str) -> Slot:
    shape = [d.size(like, axis, "an operand") for axis in axes]
    return d.constant(np.full(shape, value), numpy_dtype(d.dtype(like, "an operand")), name)


def instance_norm(d: Draft, f: Fields) -> list[Slot]:
    x = d.operand(0, "x")
    scale = d.optional(1) or _filled(d, x, [1], 1, "scale")
    shift = d.optional(2) or _filled(d, x, [1], 0, "shift")
    return d.node("InstanceNormalization", [x, scale, shift], {"epsilon": float(f["eps"])}, since=6)


def layer_norm(d: Draft, f: Fields) -> list[Slot]:
    attributes = _last_axes(f)
    x = d.operand(0, "x")
    scale = d.optional(1) or _filled(d, x, range(attributes["axis"], 0), 1, "scale")
    return d.node("LayerNormalization", [x, scale, d.optional(2)], attributes, since=17)


def rms_norm(d: Draft, f: Fields) -> list[Slot]:
    attributes = _last_axes(f)
    x = d.operand(0, "x")
    scale = d.optional(1) or _filled(d, x, range(attributes["axis"], 0), 1, "scale")
    return d.node("RMSNormalization", [x, scale], attributes, since=23)


def _last_axes(f: Fields) -> dict[str, Any]:
    axis = int(f["axis"])
    if axis >= 0:
        raise CannotEmit("the first normalised axis has to be negative")
    return {"axis": axis, "epsilon": float(f["eps"])}


def group_norm(d: Draft, f: Fields) -> list[Slot]:
    x = d.operand(0, "x")
    scale = d.optional(1) or _filled(d, x, [1], 1, "scale")
    shift = d.optional(2) or _filled(d, x, [1], 0, "shift")
    attributes = {"num_groups": int(f["groups"]), "epsilon": float(f["eps"])}
    return d.node("GroupNormalization", [x, scale, shift], attributes, since=21)


def _softmax(op_type: str) -> Writer:
    def write(d: Draft, f: Fields) -> list[Slot]:
        x, axis = d.operand(0, "x"), int(f["axis"])
        if d.opset < 13 and axis != d.rank(x, "x") - 1:
            raise CannotEmit(f"{op_type} over an axis that is not the last needs opset 13")
        return d.node(op_type, [x], {"axis": axis})

    return write


def _reduction(op_type: str, operand_since: int) -> Writer:
    """Axes are an operand from `operand_since` on, an attribute before."""

    def write(d: Draft, f: Fields) -> list[Slot]:
        x, axes = d.operand(0, "x"), [int(a) for a in f["axes"]]
        if not axes:
            raise CannotEmit("reduces no axis")
        attributes: dict[str, Any] = {"keepdims": int(bool(f["keepdims"]))}
        if d.opset < operand_since:
            return d.node(op_type, [x], attributes | {"axes": axes})
        return d.node(op_type, [x, d.ints(axes, "axes")], attributes)

    return write


def _arg(op_type: str) -> Writer:
    def write(d: Draft, f: Fields) -> list[Slot]:
        attributes = {"axis": int(f["axis"]), "keepdims": int(bool(f["keepdims"]))}
        return d.node(op_type, [d.operand(0, "x")], attributes)

    return write


def cumsum(d: Draft, f: Fields) -> list[Slot]:
    axis = d.constant(int(f["axis"]), np.int64, "axis")
    attributes = {"exclusive": int(bool(f["exclusive"])), "reverse": int(bool(f["reverse"]))}
    return d.node("CumSum", [d.operand(0, "x"), axis], attributes, since=11)


def topk(d: Draft, f: Fields) -> list[Slot]:
    attributes = {"axis": int(f["axis"]), "largest": int(bool(f["largest"])), "sorted": 1}
    return d.node("TopK", [d.operand(0, "x"), d.ints([int(f["k"])], "k")], attributes, since=11, outputs=2)


WRITERS: Mapping[str, Writer] = {
    "batch_norm": batch_norm,
    "instance_norm": instance_norm,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "softmax": _softmax("Softmax"),
    "log_softmax": _softmax("LogSoftmax"),
    "reduce_sum": _reduction("ReduceSum", 13),
    **{
        f"reduce_{name.lower()}": _reduction(f"Reduce{name}", 18)
        for name in ("Mean", "Max", "Min", "Prod", "L2")
    },
    "arg_max": _arg("ArgMax"),
    "arg_min": _arg("ArgMin"),
    "cumsum": cumsum,
    "topk": topk,
}
