"""Reductions along axes, running sums and selection of the greatest."""

from __future__ import annotations

import math

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.spec import op


@op()
def reduce_sum(d: Domain, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Sum over axes, in the dtype of x; truth values are counted in int64."""
    return np.sum(x, axis=axes, keepdims=keepdims, dtype=_accumulator(x))


@op()
def reduce_mean(d: Domain, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Mean over axes; of integers: truncated."""
    total = reduce_sum(d, x, axes=axes, keepdims=keepdims)
    count = math.prod(x.shape[a] for a in axes)
    return total / count if d.is_real(x) else d.trunc_divide(total, count)


@op()
def reduce_prod(d: Domain, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Product over axes, in the dtype of x."""
    return np.prod(x, axis=axes, keepdims=keepdims, dtype=_accumulator(x))


@op()
def reduce_max(d: Domain, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Greatest over axes; NaN if there is one; the least number of the dtype if there is no element."""
    return d.reduce_max(x, axes, keepdims)


@op()
def reduce_min(d: Domain, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Least over axes; NaN if there is one; the greatest number of the dtype if there is no element."""
    return d.reduce_min(x, axes, keepdims)


@op()
def reduce_l2(d: Domain, x: Tensor, *, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """sqrt(sum(x^2)) over axes."""
    return d.sqrt(np.sum(x * x, axis=axes, keepdims=keepdims))


@op()
def arg_max(d: Domain, x: Tensor, *, axis: int, keepdims: bool) -> Tensor:
    """Index of the first greatest element along axis, int64; a NaN is greatest."""
    index = d.arg_max(x, axis)
    return index if keepdims else np.squeeze(index, axis=axis)


@op()
def arg_min(d: Domain, x: Tensor, *, axis: int, keepdims: bool) -> Tensor:
    """Index of the first least element along axis, int64; a NaN is least."""
    index = d.arg_min(x, axis)
    return index if keepdims else np.squeeze(index, axis=axis)


@op()
def cumsum(
    d: Domain, x: Tensor, *, axis: int, exclusive: bool = False, reverse: bool = False, dtype: str | None = None
) -> Tensor:
    """Sum of the elements up to each one along axis, in the dtype of x, or of x cast to dtype; exclusive: without
    itself; reverse: from the end."""
    x = x if dtype is None else d.cast(x, dtype)
    x = np.flip(x, axis=axis) if reverse else x
    y = np.cumsum(x, axis=axis, dtype=_accumulator(x))
    if exclusive:
        size = y.shape[axis]
        y = np.concatenate([np.zeros_like(y), y], axis=axis)
        y = np.take(y, np.arange(size - 1, 2 * size - 1), axis=axis) if size else y
    return np.flip(y, axis=axis) if reverse else y


@op(outputs=2)
def topk(d: Domain, x: Tensor, *, k: int, axis: int, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k greatest (or least) elements along axis in order, and their indices (int64); of equals the first;
    NaN is greatest."""
    if largest:
        # Sorting the flipped tensor upwards and flipping the result sorts downwards with ties in order.
        order = d.argsort(np.flip(x, axis=axis), axis)
        index = x.shape[axis] - 1 - np.flip(order, axis=axis)
    else:
        index = d.argsort(x, axis)
    if k > x.shape[axis]:
        raise ValueError(f"topk: k = {k} of {x.shape[axis]} elements")
    index = np.take(index, np.arange(k), axis=axis)
    return np.take_along_axis(x, index, axis=axis), index


@op(outputs=2)
def sort(d: Domain, x: Tensor, *, axis: int, descending: bool = False) -> tuple[Tensor, Tensor]:
    """x in ascending (or descending) order along axis, and the indices (int64) of where each element was; equals stay
    in their order; NaN is greatest."""
    if descending:
        return topk(d, x, k=x.shape[axis], axis=axis)
    index = d.argsort(x, axis)
    return np.take_along_axis(x, index, axis=axis), index


@op()
def histogram(d: Domain, x: Tensor, *, bins: int, low: float | None, high: float | None) -> Tensor:
    """How many elements of x lie in each of `bins` intervals of one width from low to high, in the dtype of x; the
    last interval includes high, and what lies outside of all is not counted. Without low and high from the least to the
    greatest of x."""
    counts = np.histogram(np.ravel(x), bins=bins, range=None if low is None or high is None else (low, high))[0]
    return counts.astype(x.dtype)


def _accumulator(x: Tensor) -> np.dtype[np.generic]:
    return np.dtype(np.int64) if x.dtype == np.bool_ else x.dtype
