"""The best low rank of a matrix: directions of the output, the best first, with and without data.

A layer y = x W of rank r is x (W Q) Q^T with orthonormal columns Q [out, r]. Without data, the best Q are the first
right singular vectors of W (Eckart and Young 1936). With inputs X, the error is |X (W - W Q Q^T)|, and with
X^T X = L L^T it is |L^T W (1 - Q Q^T)|: the best Q are the right singular vectors of L^T W, and the squared error is
the sum of the squares of the singular values that are dropped. This is the whitened decomposition of SVD-LLM
(Wang et al., arXiv 2403.07378), whose factors L^-T P S, Q^T have the same product; in this form nothing is inverted,
so that directions which the data never takes do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphopt.ir.weights import Array
from graphopt.verify.compare import EPS


@dataclass(frozen=True)
class Inputs:
    """X^T X of the inputs X [rows, in] of a layer, in float64: as it was measured, and as it is to be expected.

    `measured` [in, in] is what errors on the tuning data are predicted with. `expected` is what factors are chosen for:
    `measured`, shrunk towards a multiple of the identity as far as there is little data. Both are but the diagonals
    [in] where these are diagonal.
    """

    measured: Array
    expected: Array


def shrunk(covariance: Array, rows: float, fourth: float) -> Array:
    """`covariance` = X^T X shrunk towards a multiple of the identity.

    The share is that of Ledoit and Wolf ("A well-conditioned estimator for large-dimensional covariance matrices",
    Journal of Multivariate Analysis 2004), about the origin in place of the mean, with the unbiased variance: it
    vanishes as rows get many, a timestep that was seen four times does not decide which directions of its embedding
    matter, and one row decides nothing.

    Args:
        covariance: [in, in], or [in] for a diagonal that counts entries of a table; that is smoothed as Laplace did.
        rows: number of rows of X.
        fourth: sum of |x|^4 over its rows x.
    """
    if covariance.ndim == 1:
        return covariance + max(1.0, float(np.sum(covariance))) / max(1.0, rows)
    width = len(covariance)
    mean = covariance / max(rows, 1.0)
    level = float(np.trace(mean)) / width
    spread = float(np.sum(np.square(mean)))
    away = spread - width * level * level
    noise = (fourth / rows - spread) / (rows - 1.0) if rows > 1.0 else away
    share = min(1.0, max(LEAST, noise / away)) if away > 0.0 else 1.0
    shrunken: Array = (1.0 - share) * covariance
    shrunken[np.diag_indices(width)] += share * level * rows
    return shrunken


LEAST = 1e-6
"""The least share of shrinking, which orders the directions that no data takes by the weight alone."""


@dataclass(frozen=True)
class Directions:
    """Directions of the output of y = x W, the best first.

    `basis` is [out, k] with k = min(in, out). `dropped` [k + 1] is the squared error |X (W - W Q_r Q_r^T)|^2 for each
    r, relative to |X W|^2; `expected` likewise for the inputs as they are to be expected. Both are of the weight itself
    where there is no data.
    """

    basis: Array
    dropped: Array
    expected: Array

    def factors(self, weight: Array, rank: int) -> tuple[Array, Array]:
        """W Q_r [in, r] and Q_r^T [r, out], in float64."""
        kept = self.basis[:, :rank]
        return weight @ kept, np.ascontiguousarray(kept.T)


def directions(weight: Array, inputs: Inputs | None, *, whiten: bool) -> Directions:
    """Directions for `weight` [in, out], in float64.

    Without `whiten` they are those of the weight alone; the errors are still those on the data.
    """
    looked_at = _whitened(weight, inputs.expected) if whiten and inputs is not None else weight
    basis = np.linalg.svd(looked_at, full_matrices=False)[2].T
    measured, expected = (None, None) if inputs is None else (inputs.measured, inputs.expected)
    dropped = _dropped(weight, basis, measured)
    return Directions(basis, dropped, dropped if inputs is None else _dropped(weight, basis, expected))


def _dropped(weight: Array, basis: Array, covariance: Array | None) -> Array:
    """The squared error that is left behind each direction."""
    along = weight @ basis
    gains = np.sum(along * apply(covariance, along), axis=0)
    total = float(np.sum(weight * apply(covariance, weight)))
    tail = np.maximum(np.concatenate([np.cumsum(gains[::-1])[::-1], [0.0]]), 0.0)
    return tail / total if total > 0.0 else np.zeros_like(tail)


def apply(covariance: Array | None, matrix: Array) -> Array:
    """`covariance` @ `matrix`; None stands for the identity, one axis for a diagonal."""
    if covariance is None:
        return matrix
    return covariance[:, None] * matrix if covariance.ndim == 1 else covariance @ matrix


def relative_error(weight: Array, other: Array, covariance: Array | None) -> float:
    """|X (weight - other)|^2 / |X weight|^2 for matrices [in, out]."""
    difference = weight - other
    total = float(np.sum(weight * apply(covariance, weight)))
    return max(0.0, float(np.sum(difference * apply(covariance, difference)))) / total if total > 0.0 else 0.0


def _whitened(weight: Array, covariance: Array) -> Array:
    """R `weight` with R^T R = X^T X: Cholesky's R, or the symmetric square root where rounding leaves a negative
    eigenvalue."""
    if covariance.ndim == 1:
        root: Array = np.sqrt(covariance)
        return root[:, None] * weight
    try:
        return np.linalg.cholesky(covariance).T @ weight
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        whitened: Array = np.sqrt(np.maximum(values, 0.0))[:, None] * (vectors.T @ weight)
        return whitened


@dataclass(frozen=True)
class Noise:
    """What rounding to a dtype leaves in the singular values of a matrix."""

    weight: Array
    dtype: str

    @cached_property
    def rank(self) -> int:
        """How many singular values are above what rounding makes of zeros.

        Rounding adds independent errors of about u = eps / 2 of each element, whose largest singular value is about
        u * rms * (sqrt(in) + sqrt(out)) (Vershynin, High-Dimensional Probability, theorem 4.4.5); 4 times that is
        allowed, since the weight may itself be a product that was rounded as it was summed up.
        """
        values = np.linalg.svd(self.weight, compute_uv=False)
        rms = float(np.sqrt(np.mean(np.square(self.weight))))
        largest = 2.0 * EPS[self.dtype] * rms * sum(np.sqrt(self.weight.shape))
        return int(np.sum(values > largest))
