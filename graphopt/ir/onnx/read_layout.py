"""Readers of ops that move elements about: reshape, transpose, slice, pad and the like."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.ir.graph import Dim, Value
from graphopt.ir.onnx.dtypes import NAMES
from graphopt.ir.onnx.reading import CannotRead, Reader, Reading, Said


def reshape(n: Reading) -> Said:
    x, allow_zero = n.operand(0), n.attr_flag("allowzero")
    if n.opset < 5:
        target = n.attr_ints("shape")
    elif n.is_constant(1):
        target = n.constant_ints(1, "shape")
    else:
        target = None
    if target is not None:
        shape = target if allow_zero else _copied(n, x, target)
        if shape is not None and _plain(shape):
            n.optional(1)
            return (x, None), {"shape": shape}
    inferred = _inferred_shape(n)
    if inferred is not None:
        n.optional(1)
        return (x, None), {"shape": inferred}
    return (x, n.operand(1)), {"shape": None, "allow_zero": allow_zero}


def _plain(shape: Sequence[int]) -> bool:
    """Sizes with at most one -1, and no 0 beside it (ONNX forbids that when 0 is a size)."""
    return shape.count(-1) <= 1 and all(s >= -1 for s in shape) and not (-1 in shape and 0 in shape)


def _copied(n: Reading, x: Value, target: tuple[int, ...]) -> tuple[int, ...] | None:
    """`target` with its 0s, which copy the operand's size, filled in; None if that takes more than one -1.

    A copied size that is not known as a number can be inferred instead, if nothing else is.
    """
    if 0 not in target:
        return target
    known = n.type(x)
    sizes: Sequence[Dim] = () if known is None or known.shape is None else known.shape
    copied = [s if s != 0 else (sizes[i] if i < len(sizes) else None) for i, s in enumerate(target)]
    unknown = [i for i, s in enumerate(copied) if not isinstance(s, int)]
    if len(unknown) > 1 or (unknown and -1 in target):
        return None
    return tuple(s if isinstance(s, int) else -1 for s in copied)


def _inferred_shape(n: Reading) -> tuple[int, ...] | None:
    """The shape of the result, however its target is computed: all its sizes but one have to be known."""
    known = n.inferred_type(n.node.outputs[0])
    if known is None or known.shape is None or 0 in known.shape:
        return None
    shape = tuple(s if isinstance(s, int) else -1 for s in known.shape)
    return shape if shape.count(-1) <= 1 else None


def flatten(n: Reading) -> Said:
    x = n.operand(0)
    shape = n.shape(x)
    axis = n.attr_int("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    sides = [_product(shape[:axis]), _product(shape[axis:])]
    if sides.count(-1) > 1:
        raise CannotRead("both sizes of the result are unknown")
    if -1 in sides and 0 in sides:
        raise CannotRead("an unknown size beside a zero")
    return (x, None), {"shape": tuple(sides)}


def _product(sizes: Sequence[Dim]) -> int:
    numbers = [s for s in sizes if isinstance(s, int)]
    return math.prod(numbers) if len(numbers) == len(sizes) else -1


def transpose(n: Reading) -> Said:
    x, perm = n.operand(0), n.attr_ints("perm")
    return (x,), {"perm": tuple(reversed(range(n.rank(x)))) if perm is None else perm}


def expand(n: Reading) -> Said:
    x = n.operand(0)
    if n.is_constant(1):
        return (x, None), {"shape": n.constant_ints(1, "shape")}
    return (x, n.operand(1)), {"shape": None}


def _axes(n: Reading) -> tuple[int, ...] | None:
    """Axes of Squeeze and Unsqueeze: an attribute before opset 13, an operand from then on."""
    if n.opset < 13:
        return n.attr_ints("axes")
    return n.constant_ints(1, "axes") if n.has(1) else None


def unsqueeze(n: Reading) -> Said:
    x, axes = n.operand(0), _axes(n)
    if axes is None:
        raise CannotRead("axes are missing")
    if any(a < 0 for a in axes):
        rank = n.rank(x) + len(axes)
        axes = tuple(a + rank if a < 0 else a for a in axes)
    return (x,), {"axes": tuple(sorted(axes))}


def squeeze(n: Reading) -> Said:
    x, axes = n.operand(0), _axes(n)
    if axes is None:
        shape = n.shape(x)
        if not all(isinstance(s, int) for s in shape):
            raise CannotRead("squeezes every axis of size 1 of an unknown shape")
        axes = tuple(i for i, s in enumerate(shape) if s == 1)
    if not axes:
        raise CannotRead("squeezes no axis")
    return (x,), {"axes": tuple(sorted(n.axes(axes, x)))}


def concat(n: Reading) -> Said:
    axis = n.attr_int("axis", 1 if n.opset < 4 else None)
    operands = n.operands()
    if axis < 0:
        ranked = [
            v for v in (*operands, n.node.outputs[0]) if (t := n.type(v)) is not None and t.shape is not None
        ]
        if not ranked:
            raise CannotRead("the rank is not known")
        axis = n.axis(axis, ranked[0])
    return operands, {"axis": axis}


def split(n: Reading) -> Said:
    x = n.operand(0)
    axis = n.axis(n.attr_int("axis", 0), x)
    sizes = n.attr_ints("split") if n.opset < 13 else None
    if n.has(1):
        sizes = n.constant_ints(1, "split")
    n.ignore("num_outputs")
    return (x,), {"sizes": _even(n, x, axis) if sizes is None else sizes, "axis": axis}


def _even(n: Reading, x: Value, axis: int) -> tuple[int, ...]:
    parts, size = len(n.node.outputs), n.shape(x)[axis]
    if n.attr_int("num_outputs", parts) != parts:
        raise CannotRead("num_outputs contradicts the number of outputs")
    if not isinstance(size, int):
        raise CannotRead("splits an unknown size")
    part = -(-size // parts)
    sizes = (part,) * (parts - 1) + (size - part * (parts - 1),)
    if sizes[-1] < 0 or (n.opset < 18 and sizes[-1] != part):
        raise CannotRead("splits into uneven parts")
    return sizes


def slice_(n: Reading) -> Said:
    x = n.operand(0)
    if n.opset < 10:
        starts, ends, axes, steps = n.attr_ints("starts"), n.attr_ints("ends"), n.attr_ints("axes"), None
        if starts is None or ends is None:
            raise CannotRead("starts or ends are missing")
    else:
        starts, ends = n.constant_ints(1, "starts"), n.constant_ints(2, "ends")
        axes = n.constant_ints(3, "axes") if n.has(3) else None
        steps = n.constant_ints(4, "steps") if n.has(4) else None
    axes = tuple(range(len(starts))) if axes is None else n.axes(axes, x)
    steps = (1,) * len(starts) if steps is None else steps
    if len(set(axes)) != len(axes):
        raise CannotRead("slices an axis twice")
    return (x,), {"starts": starts, "ends": ends, "axes": axes, "steps": steps}


def pad(n: Reading) -> Said:
    x, mode = n.operand(0), n.attr_string("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise CannotRead(f"mode is {mode!r}")
    if n.opset < 11:
        pads, number = n.attr_ints("pads"), n.attr_float("value", 0.0)
        if pads is None:
            raise CannotRead("pads are missing")
        value = None if number == 0.0 or mode != "constant" else n.literal(number, x)
        return (x, value), {"pads": pads, "mode": mode}
    pads, value = n.constant_ints(1, "pads"), n.optional(2)
    if n.has(3):
        pads = _spread_pads(n, x, n.constant_ints(3, "axes"), pads)
    return (x, value if mode == "constant" else None), {"pads": pads, "mode": mode}


def _spread_pads(n: Reading, x: Value, axes: tuple[int, ...], pads: tuple[int, ...]) -> tuple[int, ...]:
    rank, count = n.rank(x), len(axes)
    full = [0] * (2 * rank)
    for i, axis in enumerate(n.axes(axes, x)):
        full[axis], full[axis + rank] = pads[i], pads[i + count]
    return tuple(full)


def tile(n: Reading) -> Said:
    if n.opset < 6:
        raise CannotRead("Tile before opset 6")
    return (n.operand(0),), {"repeats": n.constant_ints(1, "repeats")}


def shape(n: Reading) -> Said:
    end = n.attr_int("end") if n.has_attribute("end") else None
    return (n.operand(0),), {"start": n.attr_int("start", 0), "end": end}


def fill(n: Reading) -> Said:
    tensor = n.attr_tensor("value")
    array = np.zeros((), np.float32) if tensor is None else tensor.numpy().reshape(())
    dtype = "float32" if tensor is None else NAMES.get(tensor.dtype)
    if dtype is None:
        raise CannotRead("fills with something that is no number")
    fields = {"value": array.item(), "dtype": dtype}
    if n.is_constant(0):
        return (None,), fields | {"shape": n.constant_ints(0, "shape")}
    return (n.operand(0),), fields | {"shape": None}


def range_(n: Reading) -> Said:
    return (n.operand(0), n.operand(1), n.operand(2)), {}


def trilu(n: Reading) -> Said:
    k = n.constant_int(1, "k") if n.has(1) else 0
    return (n.operand(0),), {"k": k, "upper": n.attr_flag("upper", True)}


READERS: Mapping[tuple[str, str], Reader] = {
    ("", "Reshape"): Reader("reshape", reshape),
    ("", "Flatten"): Reader("reshape", flatten),
    ("", "Transpose"): Reader("transpose", transpose),
    ("", "Expand"): Reader("expand", expand),
    ("", "Unsqueeze"): Reader("unsqueeze", unsqueeze),
    ("", "Squeeze"): Reader("squeeze", squeeze),
    ("", "Concat"): Reader("concat", concat),
    ("", "Split"): Reader("split", split, outputs=None),
    ("", "Slice"): Reader("slice", slice_),
    ("", "Pad"): Reader("pad", pad),
    ("", "Tile"): Reader("tile", tile),
    ("", "Shape"): Reader("shape", shape),
    ("", "ConstantOfShape"): Reader("fill", fill),
    ("", "Range"): Reader("range", range_),
    ("", "Trilu"): Reader("trilu", trilu),
}
