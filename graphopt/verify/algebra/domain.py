"""The vocabulary over finite fields: the same meanings that the float64 oracle runs, as identities of real numbers.

Sums, products and quotients are exact. `exp` is an unknown function at first; under its law it is w to the power of x,
where w has the order q in the field of p = 2q + 1 elements and x is known modulo q, so that exp(a + b) = exp(a) exp(b)
(Mirage, Wu et al. 2024, arXiv 2405.05751). Maxima are unknown functions of sets, all else is an unknown function of its
operands: what agrees for an unknown function agrees for every one. Integers and truth values that do not depend on
real numbers are plain numpy arrays, and computed with as in `Float64`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.ir.ops.domain import Float64, Tensor
from graphopt.ir.weights import FLOATS, Array, numpy_dtype
from graphopt.verify.algebra import field as modular
from graphopt.verify.algebra.numbers import constant_of, is_infinite, is_number, is_zero
from graphopt.verify.algebra.numpy_functions import einsum, scattered
from graphopt.verify.algebra.roots import positive_roots
from graphopt.verify.algebra.tensor import (
    FieldTensor,
    Point,
    Undecided,
    joint,
    lift,
    matmul,
    minus_infinity,
    open_facts,
    wider,
)
from graphopt.verify.algebra.unknown import contains, keys, same, united, unknown, unknown_of_set

_LARGEST_POWER = 64


class Field(Float64):
    """The number domain of one random point. Every other operand of a method may be a plain array."""

    def __init__(self, point: Point, *, exp_law: bool = False) -> None:
        super().__init__()
        self.point = point
        self.exp_law = exp_law
        self.laws: set[str] = set()
        """Laws that results depend on."""

    # ---- constants and dtypes ---------------------------------------------------------------------------------

    def number(self, value: float) -> Tensor:
        return lift(self.point, float(value))

    def full(self, shape: tuple[int, ...], value: float, dtype: str) -> Tensor:
        if dtype in FLOATS:
            return lift(self.point, np.full(shape, value, np.float64), dtype)
        return super().full(shape, value, dtype)

    def is_real(self, x: Tensor) -> bool:
        return x.facts.kind == "float" if isinstance(x, FieldTensor) else super().is_real(x)

    def lowest(self, x: Tensor) -> Tensor:
        if not isinstance(x, FieldTensor):
            return super().lowest(x)
        return minus_infinity(self.point)

    def cast(self, x: Tensor, dtype: str) -> Tensor:
        if not isinstance(x, FieldTensor):
            return lift(self.point, x.astype(numpy_dtype(dtype)), dtype) if dtype in FLOATS else super().cast(x, dtype)
        if dtype == "bool":
            return x if x.facts.kind == "bool" else self.not_equal(x, 0)
        if dtype not in FLOATS:
            return x.as_kind("int") if x.facts.kind != "float" else unknown(f"cast to {dtype}", x, kind="int")
        if x.facts.fits is not None and wider(x.facts.fits, dtype) == dtype:
            return FieldTensor(self.point, x.channels, replace(x.facts, kind="float", dtype=dtype))
        rounded = unknown(f"cast to {dtype}", x)
        return FieldTensor(self.point, rounded.channels, open_facts(dtype))

    # ---- functions --------------------------------------------------------------------------------------------

    def exp(self, x: Tensor) -> Tensor:
        x = self._lift(x)
        if is_zero(x):
            return lift(self.point, np.ones(x.shape))
        found = self._exponential(x) if self.exp_law else unknown("exp", x)
        gone = same(keys(x), keys(minus_infinity(self.point)))
        return self._select(gone, 0.0, found) if np.any(gone) else found

    def _exponential(self, x: FieldTensor) -> FieldTensor:
        """exp by its law, in the channels whose exponents are known."""
        channels: list[Array | None] = []
        for i, p in enumerate(self.point.moduli):
            exponent = x.channels[i + 1] if i % 2 == 0 else None
            channels.append(None if exponent is None else modular.power_of(self._base(p), exponent, p))
        if all(c is None for c in channels):
            return unknown("exp", x)
        self.laws.add("exp(a + b) = exp(a) exp(b)")
        return FieldTensor(self.point, channels, unknown("exp", x).facts)

    def _base(self, p: int) -> int:
        """A number of order (p - 1) / 2: the square of one that is neither 0, 1 nor -1."""
        return pow(2 + self.point.key % (p - 3), 2, p)

    def expm1(self, x: Tensor) -> Tensor:
        return self.exp(x) - 1.0

    def log1p(self, x: Tensor) -> Tensor:
        return self.log(1.0 + self._lift(x))

    def tanh(self, x: Tensor) -> Tensor:
        if not self.exp_law:
            return unknown("tanh", self._lift(x))
        square = self.exp(2.0 * self._lift(x))
        return (square - 1.0) / (square + 1.0)

    def sqrt(self, x: Tensor) -> Tensor:
        """The positive root of a rational constant, where that can be told; of all else it is an unknown function,
        since which of two roots is the positive one a field cannot tell."""
        x = self._lift(x)
        roots = positive_roots(x) if x.facts.rational else None
        if roots is None:
            return unknown("sqrt", x)
        return FieldTensor(self.point, roots, replace(x.facts, rational=False, kind="float", fits=x.facts.dtype))

    def pow(self, x: Tensor, y: Tensor) -> Tensor:
        if not isinstance(x, FieldTensor) and not isinstance(y, FieldTensor) and not self.is_real(x):
            return super().pow(x, y)
        x, y = self._broadcast(x, y)
        exponent = self._small_exponent(y)
        if exponent is None or (x.facts.kind != "float" and (exponent < 0 or exponent % 1)):
            return unknown("pow", x, y)
        if exponent % 1:
            root = self.sqrt(x)
            return self.pow(root, np.asarray(2.0 * exponent))
        if exponent < 0:
            return 1.0 / self.pow(x, np.asarray(-exponent))
        result = lift(self.point, np.ones(x.shape, np.float64 if x.facts.kind == "float" else np.int64))
        for _ in range(int(exponent)):
            result = result * x
        return result

    def _small_exponent(self, y: FieldTensor) -> float | None:
        """The exponent, if it is one small whole or half number."""
        found = constant_of(y)
        if found is None or found.denominator > 2 or abs(found) > _LARGEST_POWER:
            return None
        return float(found)

    def abs(self, x: Tensor) -> Tensor:
        if not isinstance(x, FieldTensor):
            return super().abs(x)
        if "abs" in x.fixed:
            return x
        result = unknown_of_set("abs", united(keys(x), keys(-x)), x, x)
        result.fixed = frozenset({"abs"})
        return result

    # ---- order ------------------------------------------------------------------------------------------------

    def maximum(self, x: Tensor, y: Tensor) -> Tensor:
        if not _any(x, y):
            return super().maximum(x, y)
        for bounded, low in ((x, y), (y, x)):
            if (clamped := self._clamped(bounded, low)) is not None:
                return clamped
        x, y = self._broadcast(x, y)
        of_x, of_y, lowest = keys(x), keys(y), keys(minus_infinity(self.point))
        kind = "float" if "float" in (x.facts.kind, y.facts.kind) else x.facts.kind
        found = unknown_of_set("max", united(of_x, of_y), x, y, kind=kind)
        x_wins = same(of_x, of_y) | same(of_y, lowest) | contains(x.least, of_y)
        y_wins = same(of_x, lowest) | contains(y.least, of_x)
        result = self._select(x_wins, x, self._select(y_wins, y, found))
        result.least = (of_x, of_y, *x.least, *y.least)
        return result

    def minimum(self, x: Tensor, y: Tensor) -> Tensor:
        if not _any(x, y):
            return super().minimum(x, y)
        result = -self.maximum(-self._lift(x), -self._lift(y))
        for other, cap in ((x, y), (y, x)):
            if constant_of(self._lift(cap)) is not None:
                result.capped = self._lift(other), self._lift(cap)
        return result

    def _clamped(self, x: Tensor, low: Tensor) -> FieldTensor | None:
        """max(min(z, high), low) as min(max(z, low), high), which it is for constants low <= high."""
        given = x.capped if isinstance(x, FieldTensor) else None
        if given is None:
            return None
        least, most = constant_of(self._lift(low)), constant_of(given[1])
        if least is None or most is None or least > most:
            return None
        result: FieldTensor = self.minimum(self.maximum(given[0], low), given[1])
        return result

    def reduce_max(self, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
        if not isinstance(x, FieldTensor):
            return super().reduce_max(x, axes, keepdims)
        if not x.size:
            raise Undecided("the maximum of nothing")
        kept = [a for a in range(x.ndim) if a not in {b % x.ndim for b in axes}]
        gone = [a for a in range(x.ndim) if a not in kept]
        rows = x.each(lambda c: np.transpose(c, (*kept, *gone)).reshape(*(c.shape[a] for a in kept), -1))
        result = self._greatest(rows)
        shape = tuple(1 if a in gone else n for a, n in enumerate(x.shape) if keepdims or a not in gone)
        return np.reshape(result, shape)

    def _greatest(self, rows: FieldTensor) -> FieldTensor:
        """The maximum along the last axis: an unknown function of the set of distinct elements; the element itself if
        all are equal."""
        lanes = keys(rows)
        order = np.argsort(lanes[0], axis=-1, kind="stable")
        first, second = (np.take_along_axis(k, order, axis=-1) for k in lanes)
        fresh = ~same((first, second), keys(minus_infinity(self.point)))
        fresh[..., 1:] &= ~same((first[..., 1:], second[..., 1:]), (first[..., :-1], second[..., :-1]))
        members = [np.sum(np.where(fresh, modular.mixed(k), np.uint64(0)), axis=-1) for k in (first, second)]
        found = unknown_of_set("max", members, rows, kind=rows.facts.kind)
        place = np.take_along_axis(order, np.argmax(fresh, axis=-1)[..., None], axis=-1)
        single = rows.each(lambda c: np.squeeze(np.take_along_axis(c, place, axis=-1), axis=-1))
        return self._select(np.sum(fresh, axis=-1) <= 1, single, found)

    def reduce_min(self, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
        if not isinstance(x, FieldTensor):
            return super().reduce_min(x, axes, keepdims)
        return -self.reduce_max(-x, axes, keepdims)

    def argsort(self, x: Tensor, axis: int) -> Tensor:
        """Some order of the elements, the same whenever they are compared: the real one is not known."""
        if not isinstance(x, FieldTensor):
            return super().argsort(x, axis)
        return np.argsort(self._order(x, axis), axis=axis, kind="stable").astype(np.int64)

    def _order(self, x: FieldTensor, axis: int) -> Array:
        """Numbers in the order that the elements are to have at this point. Which rows were compared is kept."""
        order, second = keys(x)
        along = np.arange(x.shape[axis], dtype=np.uint64).reshape(-1, *[1] * (x.ndim - 1 - axis % x.ndim))
        rows = np.sum(modular.keyed([order, second, along], self.point.key), axis=axis, dtype=np.uint64)
        self.point.sort({int(row) for row in np.ravel(rows)})
        match self.point.order:
            case "opposite":
                return ~order
            case "halves":
                return order >> np.uint64(63)
            case "equal":
                return np.zeros_like(order)
        return order

    def arg_max(self, x: Tensor, axis: int) -> Tensor:
        if not isinstance(x, FieldTensor):
            return super().arg_max(x, axis)
        return np.argmax(self._order(x, axis), axis=axis, keepdims=True).astype(np.int64)

    def arg_min(self, x: Tensor, axis: int) -> Tensor:
        if not isinstance(x, FieldTensor):
            return super().arg_min(x, axis)
        return np.argmin(self._order(x, axis), axis=axis, keepdims=True).astype(np.int64)

    # ---- comparison and logic ---------------------------------------------------------------------------------

    def less(self, x: Tensor, y: Tensor) -> Tensor:
        if not _any(x, y):
            return super().less(x, y)
        x, y = self._lift(x), self._lift(y)
        return unknown("is negative", x - y, kind="bool")

    def greater(self, x: Tensor, y: Tensor) -> Tensor:
        return self.less(y, x)

    def less_equal(self, x: Tensor, y: Tensor) -> Tensor:
        return self.logical_not(self.less(y, x))

    def greater_equal(self, x: Tensor, y: Tensor) -> Tensor:
        return self.logical_not(self.less(x, y))

    def equal(self, x: Tensor, y: Tensor) -> Tensor:
        if not _any(x, y):
            return super().equal(x, y)
        x, y = self._broadcast(x, y)
        of_x, of_y = keys(x), keys(y)
        if is_number(x) and is_number(y):
            return same(of_x, of_y)
        if any(a.facts.finite and is_infinite(b) for a, b in ((x, y), (y, x))):
            return np.zeros(x.shape, bool)
        found = unknown_of_set("equal", united(of_x, of_y), x, y, kind="bool")
        return self._select(same(of_x, of_y), True, found)

    def not_equal(self, x: Tensor, y: Tensor) -> Tensor:
        return self.logical_not(self.equal(x, y))

    def is_nan(self, x: Tensor) -> Tensor:
        if not isinstance(x, FieldTensor):
            return super().is_nan(x)
        return np.zeros(x.shape, bool) if x.facts.finite else unknown("is NaN", x, kind="bool")

    def _truth(self, x: Tensor) -> Tensor:
        return self.cast(self._lift(x), "bool")

    def logical_not(self, x: Tensor) -> Tensor:
        return (1 - self._truth(x)).as_kind("bool") if isinstance(x, FieldTensor) else super().logical_not(x)

    def logical_and(self, x: Tensor, y: Tensor) -> Tensor:
        if not _any(x, y):
            return super().logical_and(x, y)
        return (self._truth(x) * self._truth(y)).as_kind("bool")

    def logical_or(self, x: Tensor, y: Tensor) -> Tensor:
        if not _any(x, y):
            return super().logical_or(x, y)
        return self.logical_not(self.logical_and(self.logical_not(self._lift(x)), self.logical_not(self._lift(y))))

    def logical_xor(self, x: Tensor, y: Tensor) -> Tensor:
        if not _any(x, y):
            return super().logical_xor(x, y)
        x, y = (self._truth(t).as_kind("int") for t in (x, y))
        return (x + y - 2 * x * y).as_kind("bool")

    def where(self, condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if not _any(condition, x, y):
            return super().where(condition, x, y)
        if not isinstance(condition, FieldTensor):
            return self._select(np.asarray(condition, bool), x, y)
        condition = self._truth(condition)
        shape = np.broadcast_shapes(condition.shape, np.shape(x), np.shape(y))
        x, y = self._expanded(self._lift(x), shape), self._expanded(self._lift(y), shape)
        chosen = condition * x + (1 - condition) * y
        kind = "bool" if x.facts.kind == y.facts.kind == "bool" else chosen.facts.kind
        return self._select(same(keys(x), keys(y)), x, chosen).as_kind(kind)

    # ---- products and the like ----------------------------------------------------------------------------------

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        return matmul(self._lift(x), self._lift(y)) if _any(x, y) else super().matmul(x, y)

    def einsum(self, equation: str, *xs: Tensor) -> Tensor:
        return einsum(equation, *(self._lift(x) for x in xs)) if _any(*xs) else super().einsum(equation, *xs)

    def scatter(self, x: Tensor, index: tuple[Tensor, ...], updates: Tensor, reduction: str | None) -> Tensor:
        if not _any(x, updates, *index):
            return super().scatter(x, index, updates, reduction)
        if any(isinstance(i, FieldTensor) for i in index):
            raise Undecided("an index depends on data")
        if reduction not in (None, "add"):
            raise Undecided(f"a scatter that combines by {reduction}")
        return scattered(self._lift(x), index, self._lift(updates), add=reduction == "add")

    # ---- helpers ----------------------------------------------------------------------------------------------

    def _lift(self, x: Any) -> FieldTensor:
        return x if isinstance(x, FieldTensor) else lift(self.point, x)

    def _broadcast(self, x: Any, y: Any) -> tuple[FieldTensor, FieldTensor]:
        a, b = self._lift(x), self._lift(y)
        shape = np.broadcast_shapes(a.shape, b.shape)
        return self._expanded(a, shape), self._expanded(b, shape)

    @staticmethod
    def _expanded(x: FieldTensor, shape: tuple[int, ...]) -> FieldTensor:
        if x.shape == shape:
            return x
        result = x.each(lambda c: np.broadcast_to(c, shape))
        result.least = tuple((np.broadcast_to(a, shape), np.broadcast_to(b, shape)) for a, b in x.least)
        return result

    def _select(self, condition: Array, x: Any, y: Any) -> FieldTensor:
        """x where a known condition holds, else y."""
        x, y = self._lift(x), self._lift(y)
        channels = [
            None if a is None or b is None else np.where(condition, a, b)
            for a, b in zip(x.channels, y.channels, strict=True)
        ]
        return FieldTensor(self.point, channels, joint(x.facts, y.facts))


def _opaque(name: str) -> Callable[..., Tensor]:
    """A method that is an unknown function of real numbers, and what `Float64` does with others."""
    plain = getattr(Float64, name)
    spoken = name.replace("_", " ")

    def method(self: Field, *xs: Tensor) -> Tensor:
        if not _any(*xs):
            return plain(self, *xs) if name in ("erf", "trunc_divide") else plain(*xs)
        given = [self._lift(x) for x in xs]
        if name in given[0].fixed:
            return given[0]
        result = unknown(spoken, *given)
        result.fixed = _WHOLE if name in _WHOLE else frozenset()
        return result

    return method


_WHOLE = frozenset({"floor", "ceil", "round"})
"""Functions that leave whole numbers as they are, and give such."""


for _names in ("log erf sin cos sign", "floor ceil round", "floor_divide trunc_divide mod fmod"):
    for _name in _names.split():
        setattr(Field, _name, _opaque(_name))


def _any(*xs: Any) -> bool:
    return any(isinstance(x, FieldTensor) for x in xs)
