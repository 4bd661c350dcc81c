"""Writers of ops that move elements about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from graphopt.ir.graph import CannotEmit, Dim, TensorType
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
    result = partial(_reshaped, x, sizes)
    return d.node("Reshape", [x, target], {"allowzero": 1 if zero else None}, since=5, result=result)


def _reshaped(x: Slot, sizes: tuple[int, ...] | None) -> TensorType | None:
    """The type of `x` in the shape `sizes`, of which -1 is known if all of x is."""
    if x.type is None or sizes is None:
        return None
    shape: list[Dim] = [s if s >= 0 else None for s in sizes]
    rest = math.prod(s for s in sizes if s >= 0)
    if None in shape and rest > 0 and x.type.is_static:
        shape[shape.index(None)] = math.prod(int(d or 0) for d in x.type.shape or ()) // rest
    return TensorType(x.type.dtype, tuple(shape))


def transpose(d: Draft, f: Fields) -> list[Slot]:
    x, perm = d.operand(0, "x"), [int(p) for p in f["perm"]]
    return d.node("Transpose", [x], {"perm": perm}, result=partial(_transposed, x, perm))


def _transposed(x: Slot, perm: Sequence[int]) -> TensorType | None:
    if x.type is None or x.type.shape is None or len(x.type.shape) != len(perm):
        return None
    return TensorType(x.type.dtype, tuple(x.type.shape[p] for p in perm))


def expand(d: Draft, f: Fields) -> list[Slot]:
    x, (target, sizes) = d.operand(0, "x"), _target(d, f, 1)
    return d.node("Expand", [x, target], since=8, result=partial(_expanded, x, sizes))


def _expanded(x: Slot, sizes: tuple[int, ...] | None) -> TensorType | None:
    if x.type is None or x.type.shape is None or sizes is None:
        return None
    rank = max(len(sizes), len(x.type.shape))
    given = (1,) * (rank - len(x.type.shape)) + x.type.shape
    asked = (1,) * (rank - len(sizes)) + sizes
    return TensorType(x.type.dtype, tuple(d if s == 1 else s for d, s in zip(given, asked, strict=True)))


def _with_axes(op_type: str) -> Writer:
    def write(d: Draft, f: Fields) -> list[Slot]:
        x, axes = d.operand(0, "x"), [int(a) for a in f["axes"]]
        if not axes:
            raise CannotEmit(f"{op_type} of no axis")
        result = partial(_unsqueezed, x, axes) if op_type == "Unsqueeze" else None
        if d.opset < 13:
            return d.node(op_type, [x], {"axes": axes}, result=result)
        return d.node(op_type, [x, d.ints(axes, "axes")], result=result)

    return write


def _unsqueezed(x: Slot, axes: Sequence[int]) -> TensorType | None:
    """The type of `x` with sizes of 1 put in; `axes` are those of the result."""
    if x.type is None or x.type.shape is None:
        return None
    rest = iter(x.type.shape)
    rank = len(x.type.shape) + len(axes)
    return TensorType(x.type.dtype, tuple(1 if axis in axes else next(rest) for axis in range(rank)))


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
