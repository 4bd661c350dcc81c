"""Reshapes of which an inner dimension is padded: what is kept is moved to the front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from graphopt.backends.xla.correction import Correction, Coupled, Pair, pairs_of, shape_of, told


def regrouping(asked: Any, padded: Any) -> Correction | None:
    """The dimensions fall into groups of as many elements in the operand as in the result. What is kept is the first
    part of each group, in the same order, if no dimension but its outermost is padded; else elements are moved there:
    the 2 by 3 that are kept of 2 by 4 become the first 6 of 8."""
    groups = _groups(pairs_of(asked.invars[0], padded.invars[0]), pairs_of(asked.outvars[0], padded.outvars[0]))
    moved = [i for i, (x, y) in enumerate(groups) if any(a != b for a, b in (*x[1:], *y[1:]))]
    if not moved:
        return None
    form = tuple((len(x), len(y)) for x, y in groups)
    numbers = {
        (form, i, side, d): told(pair) for i in moved for side in (0, 1) for d, pair in enumerate(groups[i][side])
    }
    sizes, shape = [_count(x)[1] for x, _ in groups], shape_of(padded.outvars[0])

    def apply(operands: Sequence[Any], kept: Sequence[Any]) -> Any:
        y, remaining = jnp.reshape(operands[0], sizes), iter(kept)
        for i in moved:
            own, other = ([next(remaining) for _ in side] for side in groups[i])
            y = jnp.take(y, _places(*groups[i], own, other), axis=i, mode="clip")
        return jnp.reshape(y, shape)

    return Correction(numbers, apply)


def _groups(operand: Sequence[Pair], result: Sequence[Pair]) -> list[tuple[list[Pair], list[Pair]]]:
    """The finest there are, of (operand, result); dimensions of size 1 are left out."""
    sides = [[pair for pair in pairs if pair != (1, 1)] for pairs in (operand, result)]
    found = []
    while any(sides):
        group: tuple[list[Pair], list[Pair]] = ([], [])
        while not all(group) or _count(group[0]) != _count(group[1]):
            behind = int(not sides[0] or (bool(sides[1]) and _count(group[0])[1] > _count(group[1])[1]))
            if not sides[behind]:
                raise Coupled("couples its indices")
            group[behind].append(sides[behind].pop(0))
        found.append(group)
    return found


def _count(pairs: Sequence[Pair]) -> Pair:
    return math.prod(a for a, _ in pairs), math.prod(b for _, b in pairs)


def _places(operand: Sequence[Pair], result: Sequence[Pair], own: Sequence[Any], other: Sequence[Any]) -> Any:
    """The place in the padded operand of each element of the padded result; `own` and `other` are what is kept of their
    dimensions, in which an element that is kept has the same number."""
    place = np.arange(_count(result)[1], dtype=np.int32)
    number: Any = 0
    for index, kept in zip(np.unravel_index(place, [b for _, b in result]), other, strict=True):
        number = number * kept + index.astype(np.int32)
    found: Any = 0
    stride = 1
    for kept, (_, size) in list(zip(own, operand, strict=True))[:0:-1]:
        found, number, stride = found + number % kept * stride, number // kept, stride * size
    return jnp.asarray(found + number * stride, np.int32)
