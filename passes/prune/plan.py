"""Which indices stay: from scores, an amount and what the hardware likes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.axes.free import FreeAxis
from graphopt.axes.terms import Mask
from graphopt.passes.prune.importance import Scores
from graphopt.passes.prune.size import Keep

STEPS = 24
"""Halvings in the search for the amount that meets a count."""
MOST = 0.98
"""The largest share of an axis that may go."""


@dataclass(frozen=True)
class Planner:
    """Turns an amount from 0 to 1 into what stays of each axis."""

    axes: Sequence[FreeAxis]
    scores: Mapping[str, Scores]
    """By the name of the axis; mean 1."""
    multiple: int
    """What stays of an axis that is longer is a multiple of this."""
    together: bool
    """Whether the least important indices of all axes go, or the same share of each axis."""

    def keep(self, amount: float) -> Keep:
        """What stays if the share `amount` of all indices goes; axes that lose nothing are left out."""
        counts = self._counts_of_all(amount) if self.together else self._counts_of_each(amount)
        found = {
            a.name: strongest(self.scores[a.name], self._rounded(n, a.size))
            for a, n in zip(self.axes, counts, strict=True)
        }
        return {name: mask for name, mask in found.items() if not mask.all()}

    def _counts_of_each(self, amount: float) -> list[int]:
        return [round(a.size * (1 - amount)) for a in self.axes]

    def _counts_of_all(self, amount: float) -> list[int]:
        everything = np.sort(np.concatenate([self.scores[a.name] for a in self.axes]))
        threshold = everything[min(int(amount * everything.size), everything.size - 1)]
        return [int((self.scores[a.name] >= threshold).sum()) for a in self.axes]

    def _rounded(self, count: int, size: int) -> int:
        """Up to a multiple, within what there is and what may go at most."""
        count = max(count, 1, int(np.ceil(size * (1 - MOST))))
        if self.multiple > 1 and size > self.multiple:
            count = -(-count // self.multiple) * self.multiple
        return min(count, size)


def strongest(scores: Scores, count: int) -> Mask:
    """The `count` indices with the greatest scores; of equal ones the first."""
    order = np.argsort(-scores, kind="stable")
    mask = np.zeros(scores.size, bool)
    mask[order[:count]] = True
    return mask


def least_amount(enough: Callable[[float], bool], most: float = 1.0, steps: int = STEPS) -> float | None:
    """The least amount that is enough, to within most / 2^steps; None if even `most` is not."""
    if not enough(most):
        return None
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def greatest_amount(allowed: Callable[[float], bool], most: float = 1.0, steps: int = STEPS) -> float:
    """The greatest amount found that is allowed, to within most / 2^steps; 0 if none is."""
    if allowed(most):
        return most
    low, high = 0.0, most
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low
