"""Writers of ops that move elements about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from graphopt.ir.graph import CannotEmit
from graphopt.ir.onnx.drafting import Draft, Fields, Slot, Writer
from graphopt.ir.onnx.dtypes import DATA_TYPES
from graphopt.ir.weights import ArrayRef, numpy_dtype


def _target(d: Draft, f: Fields, index: int) -> tuple[Slot, tuple[int, ...] | None]:
    """The target shape as an operand: the one given, or a constant of the field `shape`."""
    shape, target = f["shape"], d.optional(index)
    if (shape is None) == (target is None):
        raise CannotEmit("exactly one of target and shape has to be given")
    if target is not None:
        return target, None
    sizes = tuple(int(s) for s in shape)
    return d.ints(sizes, "shape"), sizes


def reshape(d: Draft, f: Fields) -> list[Slot]:
    x = d.operand(0, "x")
    target, sizes = _target(d, f, 1)
    zero = f["allow_zero"] or (sizes is not None and 0 in sizes)
    if zero and d.opset < 14:
        raise CannotEmit("Reshape to a size of 0 needs opset 14")
    return d.node("Reshape", [x, target], {"allowzero": 1 if zero else None}, since=5)


def transpose(d: Draft, f: Fields) -> list[Slot]:
    return d.node("Transpose", [d.operand(0, "x")], {"perm": [int(p) for p in f["perm"]]})


def expand(d: Draft, f: Fields) -> list[Slot]:
    return d.node("Expand", [d.operand(0, "x"), _target(d, f, 1)[0]], since=8)


def _with_axes(op_type: str) -> Writer:
    def write(d: Draft, f: Fields) -> list[Slot]:
        x, axes = d.operand(0, "x"), [int(a) for a in f["axes"]]
        if not axes:
            raise CannotEmit(f"{op_type} of no axis")
        if d.opset < 13:
            return d.node(op_type, [x], {"axes": axes})
        return d.node(op_type, [x, d.ints(axes, "axes")])

    return write


def concat(d: Draft, f: Fields) -> list[Slot]:
    operands = [d.operand(i, f"operand {i}") for i in range(len(d.operands))]
    return d.node("Concat", operands, {"axis": int(f["axis"])}, since=4)


def split(d: Draft, f: Fields) -> list[Slot]:
    x, sizes, axis = d.operand(0, "x"), [int(s) for s in f["sizes"]], int(f["axis"])
    if not sizes:
        raise CannotEmit("splits into no parts")
    if d.opset < 13:
        return d.node("Split", [x], {"axis": axis, "split": sizes}, since=2, outputs=len(sizes))
    return d.node("Split", [x, d.ints(sizes, "sizes")], {"axis": axis}, outputs=len(sizes))


def slice_(d: Draft, f: Fields) -> list[Slot]:
    x = d.operand(0, "x")
    parts = {name: [int(v) for v in f[name]] for name in ("starts", "ends", "axes", "steps")}
    if len({len(v) for v in parts.values()}) != 1 or not parts["axes"]:
        raise CannotEmit("starts, ends, axes and steps differ in length or are empty")
    if d.opset >= 10:
        return d.node("Slice", [x, *(d.ints(v, name) for name, v in parts.items())])
    if any(step != 1 for step in parts.pop("steps")):
        raise CannotEmit("Slice with steps needs opset 10")
    return d.node("Slice", [x], parts)


def pad(d: Draft, f: Fields) -> list[Slot]:
    x, pads, mode = d.operand(0, "x"), [int(p) for p in f["pads"]], str(f["mode"])
    if mode != "constant":
        d.absent(1, f"a value beside mode {mode}")
    if d.opset >= 11:
        return d.node("Pad", [x, d.ints(pads, "pads"), d.optional(1)], {"mode": mode})
    d.absent(1, "value")
    return d.node("Pad", [x], {"mode": mode, "pads": pads}, since=2)


def tile(d: Draft, f: Fields) -> list[Slot]:
    return d.node("Tile", [d.operand(0, "x"), d.ints([int(r) for r in f["repeats"]], "repeats")], since=6)


def shape(d: Draft, f: Fields) -> list[Slot]:
    start, end = int(f["start"]), f["end"]
    if d.opset < 15 and (start != 0 or end is not None):
        raise CannotEmit("Shape with start or end needs opset 15")
    attributes = {"start": start or None, "end": None if end is None else int(end)}
    return d.node("Shape", [d.operand(0, "x")], attributes)


def fill(d: Draft, f: Fields) -> list[Slot]:
    dtype: Any = f["dtype"]
    if dtype not in DATA_TYPES:
        raise CannotEmit(f"ONNX has no type {dtype!r}")
    value = ArrayRef(np.full((1,), f["value"]).astype(numpy_dtype(dtype)))
    return d.node("ConstantOfShape", [_target(d, f, 0)[0]], {"value": value}, since=9)


def range_(d: Draft, f: Fields) -> list[Slot]:
    operands = [d.operand(0, "start"), d.operand(1, "stop"), d.operand(2, "step")]
    return d.node("Range", operands, since=11)


def trilu(d: Draft, f: Fields) -> list[Slot]:
    k = d.constant(int(f["k"]), np.int64, "k")
    return d.node("Trilu", [d.operand(0, "x"), k], {"upper": int(bool(f["upper"]))}, since=14)


WRITERS: Mapping[str, Writer] = {
    "reshape": reshape,
    "transpose": transpose,
    "expand": expand,
    "unsqueeze": _with_axes("Unsqueeze"),
    "squeeze": _with_axes("Squeeze"),
    "concat": concat,
    "split": split,
    "slice": slice_,
    "pad": pad,
    "tile": tile,
    "shape": shape,
    "fill": fill,
    "range": range_,
    "trilu": trilu,
}
