"""Ops whose operands say where to read or write. Negative indices count from the end."""

from __future__ import annotations

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.spec import op


@op()
def gather(d: Domain, x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """The slices of x at these indices of axis, which the axes of indices replace."""
    return np.take(x, indices, axis=axis)


@op()
def gather_elements(d: Domain, x: Tensor, indices: Tensor, *, axis: int) -> Tensor:
    """y[.., i, ..] = x[.., indices[.., i, ..], ..] at axis; indices may be smaller than x elsewhere."""
    return x[_along(indices, axis)]


@op()
def gather_nd(d: Domain, x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The slices of x whose leading indices are the rows (last axis) of indices; the first batch_dims axes of
    both go together."""
    batch = np.indices(indices.shape[:batch_dims])
    batch = np.reshape(batch, (*batch.shape, *[1] * (indices.ndim - 1 - batch_dims)))
    return x[(*batch, *_rows(indices))]


@op()
def scatter_elements(
    d: Domain, x: Tensor, indices: Tensor, updates: Tensor, *, axis: int, reduction: str | None = None
) -> Tensor:
    """x where x[.., indices[.., i, ..], ..] at axis is replaced by, or combined with, updates[.., i, ..]."""
    if indices.shape != updates.shape:
        raise ValueError(f"scatter_elements: {updates.shape} updates for {indices.shape} indices")
    return d.scatter(x, _along(indices, axis), updates, reduction)


@op()
def scatter_nd(
    d: Domain, x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str | None = None
) -> Tensor:
    """x where the slices whose leading indices are the rows of indices are replaced by, or combined with,
    updates."""
    expected = (*indices.shape[:-1], *x.shape[indices.shape[-1] :])
    if updates.shape != expected:
        raise ValueError(f"scatter_nd: {updates.shape} updates, expected {expected}")
    return d.scatter(x, _rows(indices), updates, reduction)


@op()
def one_hot(d: Domain, indices: Tensor, depth: Tensor, values: Tensor, *, axis: int) -> Tensor:
    """values[1] where the place along the new axis of size depth is the index, else values[0]; indices beyond
    depth hit nothing."""
    size = int(np.reshape(depth, ()))
    places = np.reshape(np.arange(size), (-1, *[1] * (np.ndim(indices) - axis)))
    from_start = np.expand_dims(np.where(np.less(indices, 0), indices + size, indices), axis)
    return d.where(np.equal(from_start, places), values[1], values[0])


def _along(indices: Tensor, axis: int) -> tuple[Tensor, ...]:
    """The numpy index that reads `indices` along `axis` and each element's own place along the others."""
    places = list(np.indices(indices.shape, sparse=True))
    places[axis] = indices
    return tuple(places)


def _rows(indices: Tensor) -> tuple[Tensor, ...]:
    """The numpy index made of the rows of `indices`."""
    if indices.shape[-1] == 0:
        raise ValueError("the rows of indices must not be empty")
    return tuple(np.moveaxis(indices, -1, 0))
