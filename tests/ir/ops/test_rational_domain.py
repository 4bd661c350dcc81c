"""Meanings are generic: over exact fractions an algebraic identity holds to the last digit."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64


class Rational(Float64):
    """Object arrays of fractions; the square root is that of perfect squares."""

    def is_real(self, x: Any) -> bool:
        return True

    def sqrt(self, x: Any) -> Any:
        return np.vectorize(lambda v: Fraction(math.isqrt(v.numerator), math.isqrt(v.denominator)))(x)


d = Rational()
generator = np.random.default_rng(8)


def fractions(*shape: int) -> np.ndarray:
    numerators = generator.integers(-9, 10, size=shape).astype(object)
    return numerators * Fraction(1, 7)


def squares(*shape: int) -> np.ndarray:
    return generator.integers(1, 9, size=shape).astype(object) ** 2 * Fraction(1, 9)


def run(op: str, *operands: Any, **fields: Any) -> np.ndarray:
    result: np.ndarray = OPS[op].meaning(d, *operands, **fields)
    assert all(isinstance(v, Fraction) for v in np.ravel(result))
    return result


@pytest.mark.parametrize("groups", [1, 2])
def test_folding_a_batch_norm_into_a_convolution_is_exact(groups: int) -> None:
    x, w, b = fractions(1, 4, 5, 5), fractions(6, 4 // groups, 3, 3), fractions(6)
    scale, shift, mean, var = fractions(6), fractions(6), fractions(6), squares(6)
    window = {"stride": (2, 1), "pads": (1, 0, 1, 0), "dilation": (1, 1), "groups": groups}
    before = run("batch_norm", run("conv", x, w, b, **window), scale, shift, mean, var, eps=0)
    factor = scale / d.sqrt(var)
    after = run("conv", x, w * factor[:, None, None, None], (b - mean) * factor + shift, **window)
    assert np.array_equal(before, after)


def test_a_transposed_convolution_is_the_adjoint_of_the_convolution() -> None:
    x, w, y = fractions(1, 2, 7), fractions(3, 2, 3), fractions(1, 3, 4)
    window = {"stride": (2,), "pads": (1, 1), "dilation": (1,)}
    forward = np.sum(run("conv", x, w, **window) * y)
    backward = np.sum(x * run("conv_transpose", y, w, output_padding=(0,), **window))
    assert forward == backward != 0


def test_average_pooling_is_a_convolution_with_constant_weights() -> None:
    x = fractions(1, 1, 5, 6)
    window = {"stride": (1, 2), "pads": (1, 0, 0, 1), "dilation": (1, 1)}
    weights = np.full((1, 1, 2, 2), Fraction(1, 4), dtype=object)
    pooled = run("avg_pool", x, kernel=(2, 2), count_include_pad=True, **window)
    assert np.array_equal(pooled, run("conv", x, weights, **window))


def test_a_mean_is_a_sum_divided() -> None:
    x = fractions(3, 4)
    mean = run("reduce_mean", x, axes=(1,), keepdims=False)
    assert np.array_equal(mean, run("reduce_sum", x, axes=(1,), keepdims=False) * Fraction(1, 4))
