"""numpy's functions on tensors of a finite field: what the meanings of the vocabulary use of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from graphopt.ir.weights import Array
from graphopt.verify.algebra.tensor import (
    CONSTANT,
    FieldTensor,
    Point,
    Undecided,
    bilinear,
    joint,
    lift,
    product_of,
    repeated_sum,
)

_MOVING: frozenset[Any] = frozenset(
    {
        np.reshape, np.ravel, np.transpose, np.swapaxes, np.moveaxis, np.expand_dims, np.squeeze, np.broadcast_to,
        np.take, np.take_along_axis, np.flip, np.roll, np.tile, np.repeat, np.triu, np.tril,
        np.lib.stride_tricks.sliding_window_view,
    }
)  # fmt: skip
"""Functions of one tensor that only move its elements, or put zeros among them."""


def apply(point: Point, function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """`function(*args, **kwargs)` over the field. Raises Undecided for one that has no meaning there."""
    if function in _MOVING:
        return _move(function, args, kwargs)
    own = _FUNCTIONS.get(function)
    if own is None:
        raise Undecided(f"numpy's {function.__name__} has no meaning over a finite field")
    return own(point, *args, **kwargs)


def _move(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> FieldTensor:
    x, *rest = args
    if not isinstance(x, FieldTensor) or any(isinstance(r, FieldTensor) for r in (*rest, *kwargs.values())):
        raise Undecided("an index depends on data")
    facts = joint(x.facts, CONSTANT) if function in (np.triu, np.tril) else x.facts
    return x.each(lambda c: function(c, *rest, **kwargs), facts)


def _together(function: Any) -> Callable[..., FieldTensor]:
    """Of a function that puts several tensors into one."""

    def run(point: Point, xs: Iterable[Any], axis: int = 0) -> FieldTensor:
        tensors = [x if isinstance(x, FieldTensor) else lift(point, np.asarray(x)) for x in xs]
        facts = tensors[0].facts
        for tensor in tensors[1:]:
            facts = joint(facts, tensor.facts)
        channels: list[Array | None] = []
        for parts in zip(*(t.channels for t in tensors), strict=True):
            channels.append(None if any(p is None for p in parts) else function(parts, axis=axis))
        return FieldTensor(point, channels, facts)

    return run


def _split(point: Point, x: FieldTensor, sections: Any, axis: int = 0) -> list[FieldTensor]:
    size = x.shape[axis]
    ends = [*(int(s) for s in sections), size] if np.ndim(sections) else _even(size, int(sections))
    front = (slice(None),) * (axis % x.ndim)
    return [x[(*front, slice(a, b))] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _even(size: int, parts: int) -> list[int]:
    return [size // parts * (i + 1) for i in range(parts)]


def _pad(point: Point, x: FieldTensor, widths: Any, mode: str = "constant", constant_values: Any = 0) -> FieldTensor:
    if mode != "constant":
        return x.each(lambda c: np.pad(c, widths, mode=mode))  # type: ignore[call-overload]
    value = x.lifted(constant_values)
    channels: list[Array | None] = []
    for mine, fill in zip(x.channels, value.channels, strict=True):
        filled = None if mine is None or fill is None else np.pad(mine, widths, constant_values=int(fill))
        channels.append(filled)
    return FieldTensor(point, channels, joint(x.facts, value.facts))


def _sum(point: Point, x: FieldTensor, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> FieldTensor:
    count = _count(x.shape, axis)
    channels = [
        None if c is None else np.sum(c, axis=axis, keepdims=keepdims) % p
        for c, p in zip(x.channels, point.moduli, strict=True)
    ]
    return FieldTensor(point, channels, repeated_sum(x.facts, count))


def _prod(point: Point, x: FieldTensor, axis: Any = None, keepdims: bool = False, dtype: Any = None) -> FieldTensor:
    axes = sorted(a % x.ndim for a in (range(x.ndim) if axis is None else np.ravel(axis)))
    count, facts = _count(x.shape, tuple(axes)), x.facts
    result = x
    for a in axes:
        front = (slice(None),) * a
        parts = [result[(*front, slice(i, i + 1))] for i in range(result.shape[a])]
        result = _like(1)(point, result, shape=(*result.shape[:a], 1, *result.shape[a + 1 :]))
        for part in parts:
            result = result * part
    facts = replace(facts, above=facts.above * count, below=facts.below * count, fits=facts.dtype)
    return result.each(lambda c: c if keepdims else np.squeeze(c, tuple(axes)), facts)


def _cumsum(point: Point, x: FieldTensor, axis: int, dtype: Any = None) -> FieldTensor:
    channels = [
        None if c is None else np.cumsum(c, axis=axis) % p for c, p in zip(x.channels, point.moduli, strict=True)
    ]
    return FieldTensor(point, channels, repeated_sum(x.facts, x.shape[axis]))


def _count(shape: tuple[int, ...], axis: Any) -> int:
    return math.prod(shape) if axis is None else math.prod(shape[a] for a in np.ravel(axis))


def _like(number: int) -> Callable[..., FieldTensor]:
    def run(point: Point, x: FieldTensor, dtype: Any = None, shape: Any = None) -> FieldTensor:
        made = lift(point, np.full(x.shape if shape is None else shape, float(number)))
        facts = replace(CONSTANT, kind=x.facts.kind, dtype=x.facts.dtype, fits=made.facts.fits)
        return FieldTensor(point, made.channels, facts)

    return run


def _asked(what: Callable[[FieldTensor], Any]) -> Callable[..., Any]:
    return lambda point, x: what(x)


def einsum(equation: str, *xs: FieldTensor) -> FieldTensor:
    """`np.einsum`, two operands at a time. Raises Undecided where an operand repeats a letter."""
    parts, _, result = equation.replace(" ", "").partition("->")
    letters = parts.split(",")
    if "..." in equation or "->" not in equation or any(len(set(t)) != len(t) for t in letters):
        raise Undecided(f"the equation {equation} is not taken apart")
    names, x = letters[0], xs[0]
    for i, (other, y) in enumerate(zip(letters[1:], xs[1:], strict=True), 1):
        later = set(result).union(*letters[i + 1 :])
        kept = "".join(c for c in dict.fromkeys(names + other) if c in later)
        x = _pairwise(names, x, other, y, kept)
        names = kept
    gone = tuple(i for i, c in enumerate(names) if c not in result)
    x = np.sum(x, axis=gone) if gone else x
    names = "".join(c for c in names if c in result)
    return x.each(lambda c: np.einsum(f"{names}->{result}", c))


def _pairwise(a: str, x: FieldTensor, b: str, y: FieldTensor, kept: str) -> FieldTensor:
    sizes = dict(zip(a, x.shape, strict=True)) | {c: n for c, n in zip(b, y.shape, strict=True) if n != 1}
    depth = math.prod(n for c, n in sizes.items() if c not in kept)
    facts = repeated_sum(product_of(x.facts, y.facts), depth)
    return bilinear(lambda u, v: np.einsum(f"{a},{b}->{kept}", u, v, optimize=True), x, y, depth, facts)


def scattered(x: FieldTensor, index: tuple[Any, ...], updates: FieldTensor, *, add: bool) -> FieldTensor:
    """A copy of `x` whose elements at `index` are `updates`, or have them added one after the other."""
    channels: list[Array | None] = []
    for mine, other, p in zip(x.channels, updates.channels, x.point.moduli, strict=True):
        if mine is None or other is None:
            channels.append(None)
            continue
        result = np.array(mine)
        if add:
            np.add.at(result, index, other)
        else:
            result[index] = other
        channels.append(result % p)
    facts = joint(x.facts, updates.facts)
    return FieldTensor(x.point, channels, repeated_sum(facts, updates.size + 1) if add else facts)


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.concatenate: _together(np.concatenate),
    np.stack: _together(np.stack),
    np.split: _split,
    np.pad: _pad,
    np.sum: _sum,
    np.prod: _prod,
    np.cumsum: _cumsum,
    np.zeros_like: _like(0),
    np.ones_like: _like(1),
    np.shape: _asked(lambda x: x.shape),
    np.ndim: _asked(lambda x: x.ndim),
    np.size: _asked(lambda x: x.size),
}
