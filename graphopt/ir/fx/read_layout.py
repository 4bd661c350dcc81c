"""Readers of what moves elements: shapes, axes, joining, slicing, filling."""

from __future__ import annotations

from typing import Any

import torch

from graphopt.ir.fx.read import KEYS, CannotRead, Reading, Said, literal, reads
from graphopt.ir.fx.schema import find_operator
from graphopt.ir.graph import Node, TensorType, Value

_MAX = 2**63 - 1


def _target_shape(found: TensorType) -> tuple[int, ...]:
    """The shape to reshape to: of symbolic sizes there may be one, which is then inferred (-1)."""
    assert found.shape is not None
    shape = tuple(s if isinstance(s, int) else -1 for s in found.shape)
    if shape.count(-1) > 1 or (-1 in shape and 0 in shape):
        raise CannotRead("dynamic size")
    return shape


@reads(
    "reshape", "view.default", "_unsafe_view.default", "reshape.default", "_reshape_alias.default",
    "flatten.using_ints", "unflatten.int", "view_copy.default",
)  # fmt: skip
def reshape(r: Reading) -> Said:
    r.type(r["self"])
    return Said((r["self"], None), {"shape": _target_shape(r.result()), "allow_zero": False})


@reads("squeeze", "squeeze.default", "squeeze.dim", "squeeze.dims")
def squeeze(r: Reading) -> Said:
    x = r["self"]
    dims = r.dims(x)
    if r.op == "identity":
        return Said((x,))
    asked = r.axes("dim", len(dims)) if "dim" in r.args else tuple(range(len(dims)))
    axes = tuple(a for a in asked if isinstance(dims[a], int) and dims[a] == 1)
    return Said((x,), {"axes": axes})


def _squeeze_key(node: Node) -> str:
    """torch ignores axes of another size than 1: a squeeze may do nothing."""
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    tensors = isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)
    return "identity" if tensors and before.dim() == after.dim() else "squeeze"


for _overload in ("default", "dim", "dims"):
    KEYS[find_operator(f"aten.squeeze.{_overload}")] = _squeeze_key


@reads("unsqueeze", "unsqueeze.default")
def unsqueeze(r: Reading) -> Said:
    return Said((r["self"],), {"axes": (r.axis("dim", r.rank(r["self"]) + 1),)})


@reads("transpose", "permute.default")
def permute(r: Reading) -> Said:
    rank = r.rank(r["self"])
    perm = tuple(d + rank if d < 0 else d for d in r.numbers("dims", rank) if rank) if rank else ()
    return Said((r["self"],), {"perm": perm})


@reads("transpose", "transpose.int", "swapaxes.default")
def transpose(r: Reading) -> Said:
    rank = r.rank(r["self"])
    names = ("dim0", "dim1") if "dim0" in r.args else ("axis0", "axis1")
    a, b = (r.axis(n, rank) for n in names)
    perm = list(range(rank))
    if rank:
        perm[a], perm[b] = perm[b], perm[a]
    return Said((r["self"],), {"perm": tuple(perm)})


@reads("transpose", "t.default", "numpy_T.default")
def reverse_axes(r: Reading) -> Said:
    return Said((r["self"],), {"perm": tuple(reversed(range(r.rank(r["self"]))))})


@reads("expand", "expand.default")
def expand(r: Reading) -> Said:
    old, new = r.dims(r["self"]), r.result().shape or ()
    kept = (1,) * (len(new) - len(old)) + old
    shape = []
    for before, after in zip(kept, new, strict=True):
        # A symbolic size that is kept is said as 1: the two are broadcast against each other.
        unchanged = isinstance(before, str) and before == after
        r.require(unchanged or isinstance(after, int), "dynamic size")
        shape.append(1 if unchanged else after)
    return Said((r["self"], None), {"shape": tuple(shape)})


@reads("concat", "cat.default", "concat.default", "concatenate.default")
def concat(r: Reading) -> Said:
    xs = tuple(r["tensors"])
    r.keeps_dtype(*xs)
    rank = r.rank(xs[0])
    r.require(all(r.rank(x) == rank for x in xs), "joins an empty vector to tensors of another rank")
    return Said(xs, {"axis": r.axis("dim", rank)})


@reads("stack", "stack.default")
def stack(r: Reading) -> Said:
    xs = tuple(r["tensors"])
    r.keeps_dtype(*xs)
    return Said(xs, {"axis": r.axis("dim", r.rank(xs[0]) + 1)})


@reads("split", "split.Tensor", "split_with_sizes.default", "chunk.default", "split.sizes")
def split(r: Reading) -> Said:
    x = r["self"]
    axis = r.axis("dim", r.rank(x))
    parts = [r.result(i).shape for i in range(len(r.node.meta["val"]))]
    sizes = tuple(p[axis] for p in parts if p is not None)
    r.require(all(isinstance(s, int) for s in sizes), "dynamic size")
    return Said((x,), {"sizes": sizes, "axis": axis}, outputs=len(sizes))


@reads("slice", "slice.Tensor")
def slice_(r: Reading) -> Said:
    axis = r.axis("dim", r.rank(r["self"]))
    start, end = r.number("start"), r.number("end")
    fields = {
        "starts": (0 if start is None else start,),
        "ends": (_MAX if end is None else end,),
        "axes": (axis,),
        "steps": (r.number("step"),),
    }
    return Said((r["self"],), fields)


def _pads(rank: int, pairs: tuple[int, ...]) -> tuple[int, ...]:
    """(begin..., end...) over all axes, from torch's pairs, which start at the last axis."""
    begins, ends = [0] * rank, [0] * rank
    for i in range(len(pairs) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = pairs[2 * i], pairs[2 * i + 1]
    return (*begins, *ends)


def _padded(r: Reading, mode: str, value: Any = None) -> Said:
    x = r["self"]
    r.keeps_dtype(x)
    pairs = r.numbers("pad" if "pad" in r.args else "padding")
    r.require(mode == "constant" or min(pairs, default=0) >= 0, "negative padding")
    filler: Value | None = None if not value else literal(value, r.type(x).dtype)
    return Said((x, filler), {"pads": _pads(r.rank(x), pairs), "mode": mode})


@reads("pad", "constant_pad_nd.default")
def constant_pad(r: Reading) -> Said:
    return _padded(r, "constant", r.number("value"))


@reads("pad", "reflection_pad1d.default", "reflection_pad2d.default", "reflection_pad3d.default")
def reflection_pad(r: Reading) -> Said:
    return _padded(r, "reflect")


@reads("pad", "replication_pad1d.default", "replication_pad2d.default", "replication_pad3d.default")
def replication_pad(r: Reading) -> Said:
    return _padded(r, "edge")


@reads("pad", "pad.default")
def pad(r: Reading) -> Said:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    r.require(r["mode"] in modes, f"padding mode {r['mode']}")
    return _padded(r, modes[r["mode"]], r["value"])


@reads("tile", "repeat.default")
def tile(r: Reading) -> Said:
    repeats = r.numbers("repeats")
    r.require(len(repeats) == r.rank(r["self"]), "repeats along new axes")
    return Said((r["self"],), {"repeats": repeats})


@reads("repeat_interleave", "repeat_interleave.self_int")
def repeat_interleave(r: Reading) -> Said:
    x = r["self"]
    r.require(r["dim"] is not None, "repeats the flattened tensor")
    return Said((x,), {"repeats": r.number("repeats"), "axis": r.axis("dim", r.rank(x))})


@reads("roll", "roll.default")
def roll(r: Reading) -> Said:
    x, rank = r["self"], r.rank(r["self"])
    r.require(bool(r["dims"]), "rolls the flattened tensor")
    axes = tuple(axis + rank if axis < 0 else axis for axis in r.numbers("dims"))
    return Said((x,), {"shifts": r.numbers("shifts", len(axes)), "axes": axes})


@reads("trilu", "tril.default")
def tril(r: Reading) -> Said:
    return Said((r["self"],), {"k": r.number("diagonal"), "upper": False})


@reads("trilu", "triu.default")
def triu(r: Reading) -> Said:
    return Said((r["self"],), {"k": r.number("diagonal"), "upper": True})


@reads("fill", "full.default", "full_like.default", "new_full.default", "scalar_tensor.default")
def full(r: Reading) -> Said:
    value = r.args.get("fill_value", r.args.get("s"))
    return _filled(r, value)


@reads("fill", "zeros.default", "zeros_like.default", "new_zeros.default")
def zeros(r: Reading) -> Said:
    return _filled(r, 0)


@reads("fill", "ones.default", "ones_like.default", "new_ones.default")
def ones(r: Reading) -> Said:
    return _filled(r, 1)


def _filled(r: Reading, value: Any) -> Said:
    result = r.result()
    r.require(result.is_static, "dynamic size")
    if result.dtype == "bool":
        value = bool(value)
    number = r.literal(value, result.dtype).value
    return Said((None,), {"value": number, "dtype": result.dtype, "shape": result.shape})


@reads("range", "arange.default", "arange.start", "arange.start_step")
def arange(r: Reading) -> Said:
    dtype = r.result().dtype
    bounds = [r.literal(v, dtype) for v in (r.args.get("start", 0), r["end"], r.args.get("step", 1))]
    # Multiples of a fraction are rounded differently by every implementation.
    r.require(all(b.value == int(b.value) for b in bounds), "a range of fractions")
    return Said(bounds)
