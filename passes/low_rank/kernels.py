"""Factors of convolution kernels: separated along the axes of the image, or a core between two maps of channels.

Neither has a best rank-r approximation in closed form on data. Both start from the weight alone (a singular value
decomposition; HOSVD and a few steps of HOOI), and then the last factor is fitted to the data: with everything before
it fixed, it is a linear layer on what the others make of the input, a least-squares problem.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from graphopt.ir.weights import Array
from graphopt.passes.low_rank.directions import Inputs, apply, directions, relative_error

HOOI_STEPS = 3
"""Sweeps of higher-order orthogonal iteration; they converge linearly from HOSVD, which is near already (De Lathauwer,
De Moor and Vandewalle, "On the best rank-1 and rank-(R1, ..., RN) approximation", SIAM J. Matrix Anal. Appl. 2000)."""


@dataclass(frozen=True)
class Chain:
    """Factors of a convolution in the order in which they run; |X (W - product)|^2 / |X W|^2 on the data, and for the
    inputs as they are to be expected."""

    factors: tuple[Array, ...]
    error: float
    expected: float


def separated(weight: Array, inputs: Inputs | None, *, whiten: bool) -> Callable[[int], Chain]:
    """What gives F [r, in, h, 1] and S [out, r, 1, w] for `weight` [out, in, h, w] and a rank r.

    `inputs` are of the patches that the convolution reads: [in * h * w, in * h * w].
    """
    out, into, height, width = weight.shape
    matrix = columns_and_rows(weight)
    columns = None
    if inputs is not None:
        measured, expected = (_columns(c, (into, height, width)) for c in (inputs.measured, inputs.expected))
        columns = Inputs(measured, expected)
    chosen = directions(matrix, columns, whiten=whiten)

    def chain(rank: int) -> Chain:
        first, second = chosen.factors(matrix, rank)
        spread = np.einsum("iyr,xz->iyxrz", first.reshape(into, height, rank), np.eye(width))
        spread = spread.reshape(into * height * width, rank * width)
        last = second.reshape(rank, out, width).transpose(0, 2, 1).reshape(rank * width, out)
        last = _fitted(weight, spread, last, inputs, whiten=whiten)
        factors = (
            first.T.reshape(rank, into, height, 1),
            last.reshape(rank, width, out).transpose(2, 0, 1)[:, :, None, :],
        )
        return Chain(factors, *_errors(weight, spread @ last, inputs))

    return chain


def product_of(factors: tuple[Array, ...]) -> Array:
    """The kernel that a spatial (two factors) or Tucker chain (three) stands for, as a matrix [in * kernel, out]."""
    if len(factors) == 2:
        first, second = factors
        kernel = np.einsum("riy,orx->oiyx", first[..., 0], second[:, :, 0])
    else:
        inner, core, outer = (f.reshape(*f.shape[:2], -1) for f in factors)
        kernel = np.einsum("qi,pqk,op->oik", inner[..., 0], core, outer[..., 0], optimize=True)
    return _matrix(kernel)


def columns_and_rows(weight: Array) -> Array:
    """A kernel [out, in, h, w] as [in * h, out * w]: its rank is that of a vertical and a horizontal one."""
    out, into, height, width = weight.shape
    return weight.transpose(1, 2, 0, 3).reshape(into * height, out * width)


def _columns(covariance: Array, shape: tuple[int, int, int]) -> Array:
    """X^T X of patches [in, h, w], summed over columns: that of patches [in, h]."""
    into, height, width = shape
    blocks = covariance.reshape(into, height, width, into, height, width)
    summed: Array = np.einsum("iyxjzx->iyjz", blocks).reshape(into * height, into * height)
    return summed


def tucker(weight: Array, ranks: tuple[int, int], inputs: Inputs | None, *, whiten: bool) -> Chain:
    """B [q, in, 1, ..], G [p, q, *kernel] and A [out, p, 1, ..] for `weight` [out, in, *kernel] and `ranks` (q, p)."""
    out, into, *kernel = weight.shape
    (q, p), size, ones = ranks, math.prod(kernel), (1,) * len(kernel)
    cube = weight.reshape(out, into, size)
    inner, outer = _leading(unfolded(cube, 1), q), _leading(unfolded(cube, 0), p)
    for _ in range(HOOI_STEPS):
        outer = _leading(unfolded(np.einsum("oik,iq->oqk", cube, inner), 0), p)
        inner = _leading(unfolded(np.einsum("oik,op->pik", cube, outer), 1), q)
    core = np.einsum("oik,op,iq->pqk", cube, outer, inner, optimize=True)
    spread = np.einsum("iq,pqk->ikp", inner, core, optimize=True).reshape(into * size, p)
    last = _fitted(weight, spread, outer.T, inputs, whiten=whiten)
    factors = inner.T.reshape(q, into, *ones), core.reshape(p, q, *kernel), last.T.reshape(out, p, *ones)
    return Chain(factors, *_errors(weight, spread @ last, inputs))


def _fitted(weight: Array, spread: Array, last: Array, inputs: Inputs | None, *, whiten: bool) -> Array:
    """`last` [k, out] fitted so that `spread` [in * kernel, k] @ `last` is near the weight on the data."""
    if not whiten or inputs is None:
        return last
    seen = apply(inputs.expected, spread)
    missing = _matrix(weight) - spread @ last
    fitted: Array = last + np.linalg.lstsq(spread.T @ seen, seen.T @ missing, rcond=None)[0]
    return fitted


def _errors(weight: Array, product: Array, inputs: Inputs | None) -> tuple[float, float]:
    covariances = (None, None) if inputs is None else (inputs.measured, inputs.expected)
    measured, expected = (relative_error(_matrix(weight), product, c) for c in covariances)
    return measured, expected


def _matrix(weight: Array) -> Array:
    """A kernel as [in * kernel, out]."""
    return weight.reshape(len(weight), -1).T


def unfolded(cube: Array, axis: int) -> Array:
    """`cube` as a matrix with a row for each index of `axis`."""
    moved = np.moveaxis(cube, axis, 0)
    return moved.reshape(len(moved), -1)


def _leading(matrix: Array, rank: int) -> Array:
    """The first left singular vectors, [rows, rank]."""
    return np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank]
