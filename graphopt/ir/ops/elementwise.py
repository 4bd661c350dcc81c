"""Elementwise ops: one result per element of the operands, after numpy's broadcasting.

The operands of a binary op have one dtype; nothing is promoted.
"""

from __future__ import annotations

import math

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.spec import op

# ---- arithmetic --------------------------------------------------------------------------------------------


@op()
def identity(d: Domain, x: Tensor) -> Tensor:
    """x."""
    return x


@op(commutative=True)
def add(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x + y; of truth values: or."""
    return x + y


@op()
def sub(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x - y."""
    return x - y


@op(commutative=True)
def mul(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x * y; of truth values: and."""
    return x * y


@op()
def div(d: Domain, x: Tensor, y: Tensor, *, rounding: str | None = None) -> Tensor:
    """x / y, exact (integers give reals) or rounded: "trunc" towards zero, "floor" downwards."""
    match rounding:
        case None:
            return x / y
        case "trunc":
            return d.trunc_divide(x, y)
        case "floor":
            return d.floor_divide(x, y)
    raise ValueError(f"div: rounding must be None, 'trunc' or 'floor', got {rounding!r}")


@op()
def mod(d: Domain, x: Tensor, y: Tensor, *, fmod: bool = False) -> Tensor:
    """Remainder of x / y, with the sign of y (Python's %), or with the sign of x if fmod (C's fmod)."""
    return d.fmod(x, y) if fmod else d.mod(x, y)


@op()
def pow_(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x to the power y, in the dtype of x; NaN for a negative real to a fractional power."""
    return d.pow(x, y)


@op()
def neg(d: Domain, x: Tensor) -> Tensor:
    """-x."""
    return -x


@op()
def reciprocal(d: Domain, x: Tensor) -> Tensor:
    """1 / x."""
    return 1.0 / x


@op()
def abs_(d: Domain, x: Tensor) -> Tensor:
    """|x|."""
    return d.abs(x)


@op()
def sign(d: Domain, x: Tensor) -> Tensor:
    """-1, 0 or 1, as x is below, at or above zero."""
    return d.sign(x)


@op()
def floor(d: Domain, x: Tensor) -> Tensor:
    """The greatest integer not above x."""
    return d.floor(x)


@op()
def ceil(d: Domain, x: Tensor) -> Tensor:
    """The least integer not below x."""
    return d.ceil(x)


@op()
def round_(d: Domain, x: Tensor) -> Tensor:
    """The nearest integer, halves to the even one."""
    return d.round(x)


@op(commutative=True)
def maximum(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """The greater of x and y; NaN if either is NaN."""
    return d.maximum(x, y)


@op(commutative=True)
def minimum(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """The lesser of x and y; NaN if either is NaN."""
    return d.minimum(x, y)


LARGEST = float(np.finfo(np.float32).max)
"""The bound, and its negative, that ONNX's Clip has where none is given: no finite float32 is beyond it."""


@op()
def clamp(d: Domain, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """min(max(x, low), high): high wins if low > high; an absent bound does not bind."""
    above = x if low is None else d.maximum(x, low)
    return above if high is None else d.minimum(above, high)


@op()
def cast(d: Domain, x: Tensor, *, dtype: str) -> Tensor:
    """x in the dtype of numpy's name `dtype`: real to integer truncates, anything to bool is x != 0."""
    return d.cast(x, dtype)


# ---- transcendental ----------------------------------------------------------------------------------------


@op()
def exp(d: Domain, x: Tensor) -> Tensor:
    """e to the power x."""
    return d.exp(x)


@op()
def log(d: Domain, x: Tensor) -> Tensor:
    """Natural logarithm: -inf at 0, NaN below."""
    return d.log(x)


@op()
def sqrt(d: Domain, x: Tensor) -> Tensor:
    """Square root: NaN below 0."""
    return d.sqrt(x)


@op()
def rsqrt(d: Domain, x: Tensor) -> Tensor:
    """1 / sqrt(x)."""
    return 1.0 / d.sqrt(x)


@op()
def erf(d: Domain, x: Tensor) -> Tensor:
    """2 / sqrt(pi) * integral of exp(-t^2) for t from 0 to x."""
    return d.erf(x)


@op()
def sin(d: Domain, x: Tensor) -> Tensor:
    """Sine of x radians."""
    return d.sin(x)


@op()
def cos(d: Domain, x: Tensor) -> Tensor:
    """Cosine of x radians."""
    return d.cos(x)


# ---- activations -------------------------------------------------------------------------------------------


@op()
def relu(d: Domain, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return d.maximum(x, 0)


@op()
def leaky_relu(d: Domain, x: Tensor, *, slope: float = 0.01) -> Tensor:
    """x where x >= 0, else slope * x."""
    return d.where(d.greater_equal(x, 0), x, slope * x)


@op()
def prelu(d: Domain, x: Tensor, slope: Tensor) -> Tensor:
    """x where x >= 0, else slope * x; slope broadcasts against x."""
    return d.where(d.greater_equal(x, 0), x, slope * x)


@op()
def elu(d: Domain, x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """x where x > 0, else alpha * (exp(x) - 1)."""
    return d.where(d.greater(x, 0), x, alpha * d.expm1(d.minimum(x, 0)))


@op()
def sigmoid(d: Domain, x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + d.exp(-x))


@op()
def tanh(d: Domain, x: Tensor) -> Tensor:
    """(exp(x) - exp(-x)) / (exp(x) + exp(-x))."""
    return d.tanh(x)


@op()
def silu(d: Domain, x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return x * sigmoid(d, x)


@op()
def softplus(d: Domain, x: Tensor, *, beta: float = 1.0, threshold: float | None = None) -> Tensor:
    """log(1 + exp(beta * x)) / beta; x itself where beta * x > threshold, if there is a threshold."""
    z = beta * x
    # max(z, 0) + log(1 + exp(-|z|)) is the same number and does not overflow.
    smooth = (d.maximum(z, 0) + d.log1p(d.exp(-d.abs(z)))) / beta
    return smooth if threshold is None else d.where(d.greater(z, threshold), x, smooth)


@op()
def mish(d: Domain, x: Tensor) -> Tensor:
    """x * tanh(log(1 + exp(x)))."""
    return x * d.tanh(softplus(d, x))


@op()
def softsign(d: Domain, x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1.0 + d.abs(x))


@op()
def gelu(d: Domain, x: Tensor, *, approximate: str = "none") -> Tensor:
    """x/2 * (1 + erf(x / sqrt(2))); "tanh": x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3)))."""
    match approximate:
        case "none":
            return 0.5 * x * (1.0 + d.erf(x / d.sqrt(d.number(2.0))))
        case "tanh":
            return 0.5 * x * (1.0 + d.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))))
    raise ValueError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


@op()
def hard_sigmoid(d: Domain, x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """alpha * x + beta, clamped to [0, 1]."""
    return d.minimum(d.maximum(alpha * x + beta, 0.0), 1.0)


@op()
def hard_swish(d: Domain, x: Tensor) -> Tensor:
    """x * (x/6 + 1/2 clamped to [0, 1])."""
    return x * hard_sigmoid(d, x, alpha=1.0 / 6.0, beta=0.5)


# ---- comparison and logic ----------------------------------------------------------------------------------


@op(commutative=True)
def equal(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x == y, bool; NaN equals nothing."""
    return d.equal(x, y)


@op(commutative=True)
def not_equal(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x != y, bool."""
    return d.not_equal(x, y)


@op()
def less(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x < y, bool."""
    return d.less(x, y)


@op()
def less_equal(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x <= y, bool."""
    return d.less_equal(x, y)


@op()
def greater(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x > y, bool."""
    return d.greater(x, y)


@op()
def greater_equal(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x >= y, bool."""
    return d.greater_equal(x, y)


@op()
def is_nan(d: Domain, x: Tensor) -> Tensor:
    """Whether x is NaN, bool."""
    return d.is_nan(x)


@op()
def logical_not(d: Domain, x: Tensor) -> Tensor:
    """not x, of truth values."""
    return d.logical_not(x)


@op(commutative=True)
def logical_and(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x and y, of truth values."""
    return d.logical_and(x, y)


@op(commutative=True)
def logical_or(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """x or y, of truth values."""
    return d.logical_or(x, y)


@op(commutative=True)
def logical_xor(d: Domain, x: Tensor, y: Tensor) -> Tensor:
    """Either x or y but not both, of truth values."""
    return d.logical_xor(x, y)


@op()
def where(d: Domain, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where condition, else y."""
    return d.where(condition, x, y)
