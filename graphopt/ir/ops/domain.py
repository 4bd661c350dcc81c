"""Number domains: what the numbers are that the vocabulary computes with.

A meaning (see `spec.py`) computes with operators (+ - * /) and with numpy's structural functions
(`np.reshape`, `np.concatenate`, `np.sum` ...), which other array types implement through
`__array_function__`. Everything else, that is what is transcendental, ordered, or needs its own matrix
product, it asks of its domain.

`Float64` is the domain of real numbers in double precision: the oracle that rewrites are verified against. It
uses numpy alone, so it shares no kernel with the runtimes that it judges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from graphopt.ir.weights import numpy_dtype

Tensor: TypeAlias = Any
"""An array of the domain: `np.ndarray` over `Float64`. Shapes, indices and truth values may be plain numpy
anywhere."""
Unary: TypeAlias = Callable[[Tensor], Tensor]
Binary: TypeAlias = Callable[[Tensor, Tensor], Tensor]


class Domain(Protocol):
    """What a number domain provides. Functions are elementwise with numpy's broadcasting unless stated."""

    def number(self, value: float) -> Tensor:
        """The real number `value` as a 0-d tensor."""

    def full(self, shape: tuple[int, ...], value: float, dtype: str) -> Tensor:
        """A tensor of `value`s of the named dtype."""

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        """`x` in the named dtype: real to integer truncates, anything to bool is `x != 0`."""

    def is_real(self, x: Tensor) -> bool:
        """Whether `x` holds real numbers (else integers or truth values)."""

    def lowest(self, x: Tensor) -> Tensor:
        """The identity of `maximum` in the dtype of `x`: minus infinity, the least integer or False."""

    exp: Unary
    expm1: Unary
    log: Unary
    log1p: Unary
    sqrt: Unary
    erf: Unary
    sin: Unary
    cos: Unary
    tanh: Unary
    pow: Binary
    abs: Unary
    sign: Unary
    floor: Unary
    ceil: Unary
    round: Unary
    """To the nearest integer, halves to the even one."""
    floor_divide: Binary
    trunc_divide: Binary
    mod: Binary
    """The remainder with the sign of the divisor (Python's %)."""
    fmod: Binary
    """The remainder with the sign of the dividend (C's fmod)."""
    maximum: Binary
    minimum: Binary
    equal: Binary
    not_equal: Binary
    less: Binary
    less_equal: Binary
    greater: Binary
    greater_equal: Binary
    is_nan: Unary
    logical_not: Unary
    logical_and: Binary
    logical_or: Binary
    logical_xor: Binary
    matmul: Binary
    """`np.matmul`."""

    def where(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor: ...

    def reduce_max(self, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor: ...
    def reduce_min(self, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor: ...

    def arg_max(self, x: Tensor, axis: int) -> Tensor:
        """Index of the first greatest element along `axis`, int64; the axis is kept with size 1."""

    def arg_min(self, x: Tensor, axis: int) -> Tensor:
        """Index of the first least element along `axis`, int64; the axis is kept with size 1."""

    def argsort(self, x: Tensor, axis: int) -> Tensor:
        """Indices that sort `x` along `axis` in ascending order, equal elements in their order, int64."""

    def einsum(self, equation: str, *xs: Tensor) -> Tensor:
        """`np.einsum`."""

    def scatter(self, x: Tensor, index: tuple[Tensor, ...], updates: Tensor, reduction: str | None) -> Tensor:
        """A copy of `x` where element `index` (one array per leading axis, as in numpy's indexing) is
        replaced by, or combined ("add", "mul", "max", "min") one after the other with, `updates`."""


class Float64(Domain):
    """Real numbers in double precision; integers and truth values stay what they are.

    Infinities and NaN propagate as IEEE 754 says; numpy's warnings about them are the caller's to silence
    (`np.errstate(all="ignore")`).

    Args:
        round_casts: Whether a cast to a lower float dtype rounds to it. A float64 twin must not round, so
            that what differs between two programs is algebra and not rounding.
    """

    def __init__(self, *, round_casts: bool = False) -> None:
        self.round_casts = round_casts

    def number(self, value: float) -> Tensor:
        return np.asarray(value, np.float64)

    def full(self, shape: tuple[int, ...], value: float, dtype: str) -> Tensor:
        return np.full(shape, value, np.float64 if _is_real(dtype) else numpy_dtype(dtype))

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        if _is_real(dtype):
            rounded = x.astype(numpy_dtype(dtype)) if self.round_casts else x
            return rounded.astype(np.float64)
        if dtype == "bool":
            return np.not_equal(x, 0)
        if dtype.startswith(("int", "uint")) and self.is_real(x) and dtype != "uint64":
            # Through int64, because C leaves a float outside a narrower type's range undefined.
            x = np.trunc(x).astype(np.int64)
        return x.astype(numpy_dtype(dtype))

    def is_real(self, x: Tensor) -> bool:
        return bool(np.issubdtype(np.asarray(x).dtype, np.floating))

    def lowest(self, x: Tensor) -> Tensor:
        return _bounds(x)[0]

    exp: Unary = np.exp
    expm1: Unary = np.expm1
    log: Unary = np.log
    log1p: Unary = np.log1p
    sqrt: Unary = np.sqrt
    sin: Unary = np.sin
    cos: Unary = np.cos
    tanh: Unary = np.tanh
    abs: Unary = np.abs
    sign: Unary = np.sign
    floor: Unary = np.floor
    ceil: Unary = np.ceil
    round: Unary = np.rint
    is_nan: Unary = np.isnan
    logical_not: Unary = np.logical_not
    floor_divide: Binary = np.floor_divide
    mod: Binary = np.mod
    fmod: Binary = np.fmod
    maximum: Binary = np.maximum
    minimum: Binary = np.minimum
    equal: Binary = np.equal
    not_equal: Binary = np.not_equal
    less: Binary = np.less
    less_equal: Binary = np.less_equal
    greater: Binary = np.greater
    greater_equal: Binary = np.greater_equal
    logical_and: Binary = np.logical_and
    logical_or: Binary = np.logical_or
    logical_xor: Binary = np.logical_xor
    matmul: Binary = np.matmul

    def where(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return np.where(condition, x, y)

    def erf(self, x: Tensor) -> Tensor:
        return erf(x)

    def pow(self, x: Tensor, y: Tensor) -> Tensor:
        if self.is_real(x) or self.is_real(y) or not np.any(np.less(y, 0)):
            return np.power(x, y)
        # Integers to a negative power: the exact result truncated, which only -1 and 1 survive.
        inverse = np.where(np.equal(np.abs(x), 1), np.power(x, np.abs(y)), 0)
        return np.where(np.less(y, 0), inverse, np.power(x, np.abs(y))).astype(np.asarray(x).dtype)

    def trunc_divide(self, x: Tensor, y: Tensor) -> Tensor:
        if self.is_real(x):
            return np.trunc(x / y)
        quotient = np.floor_divide(x, y)
        inexact = np.not_equal(quotient * y, x)
        return quotient + (inexact & (np.less(x, 0) != np.less(y, 0))).astype(quotient.dtype)

    def reduce_max(self, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
        return np.max(x, axis=axes, keepdims=keepdims, initial=_bounds(x)[0])

    def reduce_min(self, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
        return np.min(x, axis=axes, keepdims=keepdims, initial=_bounds(x)[1])

    def arg_max(self, x: Tensor, axis: int) -> Tensor:
        return np.argmax(x, axis=axis, keepdims=True).astype(np.int64)

    def arg_min(self, x: Tensor, axis: int) -> Tensor:
        return np.argmin(x, axis=axis, keepdims=True).astype(np.int64)

    def argsort(self, x: Tensor, axis: int) -> Tensor:
        return np.argsort(x, axis=axis, kind="stable").astype(np.int64)

    def einsum(self, equation: str, *xs: Tensor) -> Tensor:
        return np.einsum(equation, *xs, optimize=True)

    def scatter(self, x: Tensor, index: tuple[Tensor, ...], updates: Tensor, reduction: str | None) -> Tensor:
        result = np.array(x)
        if reduction is None:
            result[index] = updates
        else:
            combine = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction]
            combine.at(result, index, updates)
        return result


def _is_real(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat"))


def _bounds(x: Tensor) -> tuple[Any, Any]:
    """Identities of maximum and minimum in the dtype of `x`."""
    dtype = np.asarray(x).dtype
    if dtype == np.bool_:
        return False, True
    if np.issubdtype(dtype, np.integer):
        return np.iinfo(dtype).min, np.iinfo(dtype).max
    return -math.inf, math.inf


_ERF_SMALL = (
    (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2,
     3.20937758913846947e3),
    (1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3),
)  # fmt: skip
_ERFC_LARGE = (
    (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
     2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3,
     1.23033935479799725e3),
    (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
     3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
)  # fmt: skip


def erf(x: Tensor) -> Tensor:
    """The error function in float64, absolute error below 1e-15.

    Rational approximations of W. J. Cody, "Rational Chebyshev approximations for the error function", Math.
    Comp. 23 (1969): x * R(x^2) up to 0.46875, 1 - exp(-x^2) * R(x) above; beyond 6 the result is 1 to the
    last bit.
    """
    magnitude = np.minimum(np.abs(x), 6.0)
    square = magnitude * magnitude
    small = x * _ratio(_ERF_SMALL, np.minimum(square, 0.25))
    large = np.copysign(1.0 - np.exp(-square) * _ratio(_ERFC_LARGE, magnitude), x)
    return np.where(magnitude <= 0.46875, small, large)


def _ratio(coefficients: tuple[Sequence[float], Sequence[float]], x: Tensor) -> Tensor:
    numerator, denominator = (_polynomial(c, x) for c in coefficients)
    return numerator / denominator


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """Horner's rule, highest power first."""
    result = coefficients[0] * x + coefficients[1]
    for coefficient in coefficients[2:]:
        result = result * x + coefficient
    return result
