"""Picking by numbers that are known: a stretch, every third, in another order, again.

Where the numbers count in digits, as those of a slice, a transposition and a repetition do, what is picked has the axes
of what it is picked from.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from graphopt.axes.terms import Space, Term

PICKED = "elements of it are picked by number"
Numbers = npt.NDArray[np.int64]


class Digit(NamedTuple):
    """A factor of how numbers count, `length` steps of `stride`; one of stride 0 repeats."""

    length: int
    stride: int


class Place(NamedTuple):
    """Where a digit moves: of `size` steps it takes `length` from `start` on."""

    size: int
    start: int
    length: int


def pick(space: Space, term: Term, numbers: Numbers) -> Term | None:
    """What the elements of `term` with these numbers are made of, in their order; None, and nothing has changed, if
    nothing can be said of them.

    Args:
        space: that of `term`.
        term: of a size that is known.
        numbers: [n], each from 0 to the size.
    """
    size = space.size(term)
    found = digits(numbers)
    places = _places(found, int(numbers[0]), size) if found and isinstance(size, int) else None
    if found is None or places is None:
        return None
    whole = {stride: space.term(place.size) for stride, place in places.items()}
    outer = tuple(axis for stride in sorted(whole, reverse=True) for axis in whole[stride])
    space.unify(term, (*outer, *space.term(min(whole), PICKED)))
    taken = {stride: _stretch(space, whole[stride], place) for stride, place in places.items()}
    return tuple(axis for d in found for axis in (taken[d.stride] if d.stride else space.term(d.length)))


def _stretch(space: Space, term: Term, place: Place) -> Term:
    """The steps of a place that are taken."""
    rest = place.size - place.start - place.length
    return space.cut(term, (place.start, place.length, rest))[1] if place.length < place.size else term


def digits(numbers: Numbers) -> list[Digit] | None:
    """How `numbers` count from the first one on, the slowest digit first; None if they do not.

    0 1 2 3 4 5 is one digit of length 6; 0 3 1 4 2 5 is one of length 3 and stride 1, then one of 2 and 3.
    """
    found: list[Digit] = []
    while len(numbers) > 1:
        stride = int(numbers[1] - numbers[0])
        breaks = np.flatnonzero(np.diff(numbers) != stride)
        length = int(breaks[0]) + 1 if len(breaks) else len(numbers)
        if stride < 0 or len(numbers) % length:
            return None
        rows = numbers.reshape(-1, length)
        if not np.array_equal(rows, rows[:, :1] + stride * np.arange(length)):
            return None
        found.insert(0, Digit(length, stride))
        numbers = rows[:, 0]
    return found


def _places(found: list[Digit], first: int, size: int) -> dict[int, Place] | None:
    """The place of each digit that moves, by its stride, in the numbers from 0 to `size`; None if they overlap."""
    moving = sorted((d for d in found if d.stride), key=lambda d: d.stride)
    places = {}
    for digit, (stride, following) in zip(moving, pairwise([*(d.stride for d in moving), size]), strict=True):
        steps = following // stride
        start = first // stride % steps if steps else 0
        if following % stride or start + digit.length > steps:
            return None
        places[stride] = Place(steps, start, digit.length)
    return places or None
