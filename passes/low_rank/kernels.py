"""Factors of convolution kernels: separated along the axes of the image, or a core between two maps of channels.

Neither has a best rank-r approximation in closed form on data. Both start from the weight alone (a singular value
decomposition; HOSVD and a few steps of HOOI), and then the last factor is fitted to the data: with everything before
it fixed, it is a linear layer on what the others make of the input, a least-squares problem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from graphopt.ir.weights import Array
from graphopt.passes.low_rank.directions import apply, damping, directions, relative_error

HOOI_STEPS = 3
"""Sweeps of higher-order orthogonal iteration; they converge linearly from HOSVD, which is near already (De Lathauwer,
De Moor and Vandewalle, "On the best rank-1 and rank-(R1, ..., RN) approximation", SIAM J. Matrix Anal. Appl. 2000)."""


@dataclass(frozen=True)
class Chain:
    """Factors of a convolution in the order in which they run, and |X (W - product)|^2 / |X W|^2."""

    factors: tuple[Array, ...]
    error: float


def separate(weight: Array, rank: int, covariance: Array | None, *, whiten: bool) -> Chain:
    """F [r, in, h, 1] and S [out, r, 1, w] for `weight` [out, in, h, w].

    `covariance` [in * h * w, in * h * w] is X^T X of the patches that the convolution reads.
    """
    out, into, height, width = weight.shape
    matrix = weight.transpose(1, 2, 0, 3).reshape(into * height, out * width)
    columns = None
    if covariance is not None:
        blocks = covariance.reshape(into, height, width, into, height, width)
        columns = np.einsum("iyxjzx->iyjz", blocks).reshape(into * height, into * height)
    first, second = directions(matrix, columns, whiten=whiten).factors(matrix, rank)
    spread = np.einsum("iyr,xz->iyxrz", first.reshape(into, height, rank), np.eye(width))
    spread = spread.reshape(into * height * width, rank * width)
    last = second.reshape(rank, out, width).transpose(0, 2, 1).reshape(rank * width, out)
    last, error = _fitted(weight, spread, last, covariance, whiten=whiten)
    return Chain(
        (
            first.T.reshape(rank, into, height, 1),
            last.reshape(rank, width, out).transpose(2, 0, 1)[:, :, None, :],
        ),
        error,
    )


def tucker(weight: Array, ranks: tuple[int, int], covariance: Array | None, *, whiten: bool) -> Chain:
    """B [q, in, 1, ..], G [p, q, *kernel] and A [out, p, 1, ..] for `weight` [out, in, *kernel] and `ranks` (q, p)."""
    out, into, *kernel = weight.shape
    (q, p), size, ones = ranks, math.prod(kernel), (1,) * len(kernel)
    cube = weight.reshape(out, into, size)
    inner, outer = _leading(_unfolded(cube, 1), q), _leading(_unfolded(cube, 0), p)
    for _ in range(HOOI_STEPS):
        outer = _leading(_unfolded(np.einsum("oik,iq->oqk", cube, inner), 0), p)
        inner = _leading(_unfolded(np.einsum("oik,op->pik", cube, outer), 1), q)
    core = np.einsum("oik,op,iq->pqk", cube, outer, inner, optimize=True)
    spread = np.einsum("iq,pqk->ikp", inner, core, optimize=True).reshape(into * size, p)
    last, error = _fitted(weight, spread, outer.T, covariance, whiten=whiten)
    return Chain(
        (inner.T.reshape(q, into, *ones), core.reshape(p, q, *kernel), last.T.reshape(out, p, *ones)), error
    )


def _fitted(
    weight: Array, spread: Array, last: Array, covariance: Array | None, *, whiten: bool
) -> tuple[Array, float]:
    """`last` [k, out] fitted so that `spread` [in * kernel, k] @ `last` is near the weight on the data, and its error.

    Where the data says nothing, it stays as it was.
    """
    wanted = weight.reshape(len(weight), -1).T
    if whiten and covariance is not None:
        seen = apply(covariance, spread)
        normal = spread.T @ seen
        normal += damping(normal) * np.eye(len(normal))
        last = last + np.linalg.lstsq(normal, seen.T @ (wanted - spread @ last), rcond=None)[0]
    return last, relative_error(wanted, spread @ last, covariance)


def _unfolded(cube: Array, axis: int) -> Array:
    moved = np.moveaxis(cube, axis, 0)
    return moved.reshape(len(moved), -1)


def _leading(matrix: Array, rank: int) -> Array:
    """The first left singular vectors, [rows, rank]."""
    return np.linalg.eigh(matrix @ matrix.T)[1][:, ::-1][:, :rank]
