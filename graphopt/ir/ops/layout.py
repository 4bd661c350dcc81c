"""Ops that move elements or make them from nothing: no arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.spec import op


@op()
def reshape(
    d: Domain,
    x: Tensor,
    target: Tensor | None = None,
    *,
    shape: tuple[int, ...] | None = None,
    allow_zero: bool = False,
) -> Tensor:
    """x, row by row, in another shape: `shape` (one -1 is inferred, 0 is a size), or the int64 tensor
    `target`, where 0 means the size that x has there unless `allow_zero` makes it a size too."""
    sizes = _sizes(target, shape)
    if target is not None and not allow_zero:
        sizes = tuple(x.shape[i] if size == 0 else size for i, size in enumerate(sizes))
    return np.reshape(x, sizes)


def _sizes(target: Tensor | None, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The one of an operand and a field that is given."""
    if (target is None) == (shape is None):
        raise ValueError("exactly one of target and shape must be given")
    return tuple(int(t) for t in np.ravel(target)) if shape is None else shape  # type: ignore[arg-type]


@op()
def transpose(d: Domain, x: Tensor, *, perm: tuple[int, ...]) -> Tensor:
    """Axis i of the result is axis perm[i] of x."""
    return np.transpose(x, perm)


@op()
def expand(
    d: Domain, x: Tensor, target: Tensor | None = None, *, shape: tuple[int, ...] | None = None
) -> Tensor:
    """x repeated to the shape that its own and the given one broadcast to (a given 1 keeps x's size)."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, _sizes(target, shape)))


@op()
def unsqueeze(d: Domain, x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """x with new axes of size 1, at these places of the result."""
    return np.expand_dims(x, axes)


@op()
def squeeze(d: Domain, x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """x without these axes, which must have size 1."""
    return np.squeeze(x, axis=axes)


@op()
def concat(d: Domain, *xs: Tensor, axis: int) -> Tensor:
    """The tensors one after the other along axis."""
    return np.concatenate(xs, axis=axis)


@op()
def stack(d: Domain, *xs: Tensor, axis: int) -> Tensor:
    """Tensors of one shape along a new axis, at this place of the result."""
    return np.stack(xs, axis=axis)


@op(outputs=None)
def split(d: Domain, x: Tensor, *, sizes: tuple[int, ...], axis: int) -> tuple[Tensor, ...]:
    """x cut along axis into pieces of these sizes, which add up to its own."""
    if sum(sizes) != x.shape[axis]:
        raise ValueError(f"split: sizes {sizes} do not add up to {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1], axis=axis))


@op()
def slice_(
    d: Domain,
    x: Tensor,
    *,
    starts: tuple[int, ...],
    ends: tuple[int, ...],
    axes: tuple[int, ...],
    steps: tuple[int, ...],
) -> Tensor:
    """x[start:end:step] along each of axes, as Python slices: negative bounds count from the end, bounds
    beyond the tensor are clamped."""
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(start, end, step)
    return x[tuple(index)]


@op()
def pad(
    d: Domain, x: Tensor, value: Tensor | None = None, *, pads: tuple[int, ...], mode: str = "constant"
) -> Tensor:
    """x with elements added around (pads: at the begin of every axis, then at the end), negative ones cut off
    after.

    mode: "constant" (value, default 0), "edge" (the border's element) or "reflect" (mirrored at the border's
    element).
    """
    n = x.ndim
    widths = [(max(b, 0), max(e, 0)) for b, e in zip(pads[:n], pads[n:], strict=True)]
    match mode:
        case "constant":
            fill_value: Any = 0 if value is None else np.reshape(value, ())
            padded = np.pad(x, widths, constant_values=fill_value)
        case "edge" | "reflect":
            padded = np.pad(x, widths, mode=mode)
        case _:
            raise ValueError(f"pad: mode must be 'constant', 'edge' or 'reflect', got {mode!r}")
    cuts = (
        slice(max(-b, 0), size - max(-e, 0))
        for size, b, e in zip(padded.shape, pads[:n], pads[n:], strict=True)
    )
    return padded[tuple(cuts)]


@op()
def tile(d: Domain, x: Tensor, *, repeats: tuple[int, ...]) -> Tensor:
    """x repeated as a whole repeats[i] times along axis i."""
    return np.tile(x, repeats)


@op()
def repeat_interleave(d: Domain, x: Tensor, *, repeats: int, axis: int) -> Tensor:
    """x with every slice of axis repeated in its place: element i of the result's axis is element i // repeats."""
    return np.repeat(x, repeats, axis=axis)


@op()
def roll(d: Domain, x: Tensor, *, shifts: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """x moved up each of axes by its shift; what leaves at the end comes in at the begin."""
    return np.roll(x, shifts, axes)


@op()
def shape(d: Domain, x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """The sizes of axes start to end (excluded) of x, int64."""
    return np.asarray(x.shape[start:end], dtype=np.int64)


@op()
def fill(
    d: Domain,
    target: Tensor | None = None,
    *,
    value: float,
    dtype: str,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """A tensor of `value`s; its shape is the field, or the int64 tensor `target`."""
    return d.full(_sizes(target, shape), value, dtype)


@op()
def range_(d: Domain, start: Tensor, stop: Tensor, step: Tensor) -> Tensor:
    """start, start + step, ... before stop: max(0, ceil((stop - start) / step)) elements in the dtype of
    start."""
    start, stop, step = (np.reshape(t, ()) for t in (start, stop, step))
    count = d.ceil((stop - start) / step) if d.is_real(start) else -((start - stop) // step)
    return start + step * np.arange(max(0, int(count)), dtype=start.dtype)


@op()
def trilu(d: Domain, x: Tensor, *, k: int = 0, upper: bool) -> Tensor:
    """The matrices in the last two axes with zeros below (upper) or above the k-th diagonal."""
    return np.triu(x, k) if upper else np.tril(x, k)
