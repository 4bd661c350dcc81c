"""Readers of normalisation, softmax and reductions."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.ir.graph import Value
from graphopt.ir.onnx.reading import CannotRead, Reader, Reading, Said


def batch_norm(n: Reading) -> Said:
    operands = tuple(n.operand(i) for i in range(5))
    n.ignore("momentum")
    training = n.opset >= 14 and n.attr_flag("training_mode")
    if n.opset < 9:
        n.only("spatial", 1)
    if n.opset < 7 and n.attr_int("is_test", 0) == 0:
        raise CannotRead("BatchNormalization in training mode")
    if n.opset < 14 and n.output_count() > 1:
        raise CannotRead("BatchNormalization in training mode")
    return operands, {"eps": n.attr_float("epsilon", 1e-5), "training": training}


def instance_norm(n: Reading) -> Said:
    return (n.operand(0), n.operand(1), n.operand(2)), {"eps": n.attr_float("epsilon", 1e-5)}


def layer_norm(n: Reading) -> Said:
    return (n.operand(0), n.operand(1), n.optional(2)), _last_axes(n)


def rms_norm(n: Reading) -> Said:
    return (n.operand(0), n.operand(1)), _last_axes(n)


def _last_axes(n: Reading) -> dict[str, object]:
    n.only("stash_type", 1)
    axis = n.attr_int("axis", -1)
    if axis >= 0:
        axis -= n.rank(n.operand(0))
    return {"axis": axis, "eps": n.attr_float("epsilon", 1e-5)}


def group_norm(n: Reading) -> Said:
    if n.opset < 21:
        raise CannotRead("scale and shift per group before opset 21")
    n.only("stash_type", 1)
    return (n.operand(0), n.operand(1), n.operand(2)), {
        "groups": n.attr_int("num_groups"),
        "eps": n.attr_float("epsilon", 1e-5),
    }


def softmax(n: Reading) -> Said:
    x = n.operand(0)
    if n.opset >= 13:
        return (x,), {"axis": n.axis(n.attr_int("axis", -1), x)}
    return (x,), {"axis": _flattened_axis(n, x)}


def _flattened_axis(n: Reading, x: Value) -> int:
    """Before opset 13 softmax ran over all axes from `axis` on: readable where only one of them is not of
    size 1."""
    axis, shape = n.axis(n.attr_int("axis", 1), x), n.shape(x)
    wide = [i for i in range(axis, len(shape)) if shape[i] != 1]
    if len(wide) > 1:
        raise CannotRead("softmax over several axes at once")
    if not wide and axis >= len(shape):
        raise CannotRead("softmax over no axis")
    return wide[0] if wide else axis


def reduce(n: Reading) -> Said:
    """Axes are an attribute before opset 18 (ReduceSum: 13), an operand from then on."""
    x, axes = n.operand(0), n.attr_ints("axes")
    if n.has(1):
        axes = n.constant_ints(1, "axes")
    if not axes:
        if n.attr_flag("noop_with_empty_axes"):
            raise CannotRead("reduces no axis")
        axes = tuple(range(n.rank(x)))
    n.ignore("noop_with_empty_axes")
    if not axes:
        raise CannotRead("reduces a scalar")
    return (x,), {"axes": tuple(sorted(set(n.axes(axes, x)))), "keepdims": n.attr_flag("keepdims", True)}


def arg(n: Reading) -> Said:
    x = n.operand(0)
    n.only("select_last_index", 0)
    return (x,), {"axis": n.axis(n.attr_int("axis", 0), x), "keepdims": n.attr_flag("keepdims", True)}


def cumsum(n: Reading) -> Said:
    x = n.operand(0)
    return (x,), {
        "axis": n.axis(n.constant_int(1, "axis"), x),
        "exclusive": n.attr_flag("exclusive"),
        "reverse": n.attr_flag("reverse"),
    }


def topk(n: Reading) -> Said:
    x = n.operand(0)
    k = n.attr_int("k") if n.opset < 10 else n.constant_int(1, "k")
    n.only("sorted", 1)
    return (x,), {"k": k, "axis": n.axis(n.attr_int("axis", -1), x), "largest": n.attr_flag("largest", True)}


_REDUCTIONS = ("Mean", "Sum", "Max", "Min", "Prod", "L2")

READERS: Mapping[tuple[str, str], Reader] = {
    ("", "BatchNormalization"): Reader("batch_norm", batch_norm),
    ("", "InstanceNormalization"): Reader("instance_norm", instance_norm),
    ("", "LayerNormalization"): Reader("layer_norm", layer_norm),
    ("", "RMSNormalization"): Reader("rms_norm", rms_norm),
    ("", "SimplifiedLayerNormalization"): Reader("rms_norm", rms_norm),
    ("", "GroupNormalization"): Reader("group_norm", group_norm),
    ("", "Softmax"): Reader("softmax", softmax),
    ("", "LogSoftmax"): Reader("log_softmax", softmax),
    **{("", f"Reduce{name}"): Reader(f"reduce_{name.lower()}", reduce) for name in _REDUCTIONS},
    ("", "ArgMax"): Reader("arg_max", arg),
    ("", "ArgMin"): Reader("arg_min", arg),
    ("", "CumSum"): Reader("cumsum", cumsum),
    ("", "TopK"): Reader("topk", topk, outputs=2),
}
