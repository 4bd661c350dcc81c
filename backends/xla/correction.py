"""An op that is told how much of its operands is kept, and what that is said with.

An op is seen twice: as it stands in a program at the sizes that are asked for (`asked`), and in the program at the
larger sizes that inputs are padded to (`padded`). A dimension that is larger in the second is a padded one; the first
part of it, as long as in the first program, is what is kept.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Pair: TypeAlias = tuple[int, int]
"""A size, as it is asked for and padded."""


class Coupled(Exception):
    """Padding could reach what is kept. Carries the reason."""


@dataclass(frozen=True)
class Correction:
    """An op that is told how much is kept."""

    numbers: Mapping[Any, tuple[Any, Any]]
    """What it is told for the sizes that are asked for, and what it would be told for the padded ones, where nothing is
    to be corrected: by what they are of, such as an axis."""
    apply: Callable[[Sequence[Any], Sequence[Any]], Any]
    """Its results, of the operands and values of `numbers`, in their order."""


def shape_of(variable: Any) -> tuple[int, ...]:
    return tuple(getattr(variable.aval, "shape", ()))


def padded_dims(asked: Any, padded: Any) -> set[int]:
    """The dimensions in which the variable `padded` is larger.

    Raises:
        Coupled: another rank, or a smaller one.
    """
    own, other = shape_of(asked), shape_of(padded)
    if len(own) != len(other) or any(m > n for m, n in zip(own, other, strict=True)):
        raise Coupled("is smaller or of another rank at a larger size")
    return {i for i, (m, n) in enumerate(zip(own, other, strict=True)) if m != n}


def told(pair: Pair) -> tuple[Any, Any]:
    """A size as numbers of the program."""
    return np.int32(pair[0]), np.int32(pair[1])


def pairs_of(asked: Any, padded: Any) -> list[Pair]:
    """The sizes of a variable."""
    return list(zip(shape_of(asked), shape_of(padded), strict=True))


def bound(equation: Any, operands: Sequence[Any]) -> Any:
    """The results of the op itself."""
    return equation.primitive.bind(*operands, **equation.primitive.get_bind_params(equation.params))


def hidden(x: Any, ends: Mapping[int, Any], fill: Any) -> Any:
    """`x` with `fill` from `ends` on along these dimensions."""
    if not ends:
        return x
    inside = [jax.lax.broadcasted_iota(np.int32, x.shape, d) < end for d, end in ends.items()]
    return jax.lax.select(functools.reduce(jnp.logical_and, inside), x, jnp.full_like(x, fill))
