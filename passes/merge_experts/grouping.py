"""Which experts become one, and what its weights are.

    Again and again the two that are scored the most alike become one; that with more tokens stays.
    W = sum over members e of n[e] P[e] W[e] / sum of n[e], with n[e] tokens; P[e] orders hidden units as those of the
    expert that stays
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphopt.errors import MissingExtraError
from graphopt.ir.weights import Array

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hidden:
    """Where the hidden units of experts stand in a stack: axis `axis`, `halves` of them one after the other or, with
    `turns`, in turn."""

    axis: int
    halves: int = 1
    turns: bool = False

    def order(self, units: Numbers) -> Numbers:
        """The places along the axis of hidden units in the order `units`."""
        count, parts = len(units), np.arange(self.halves)
        if self.turns:
            return np.ravel(units[:, None] * self.halves + parts)
        return np.ravel(units[None, :] + count * parts[:, None])

    def by_unit(self, weights: Array) -> Array:
        """weights[...] of one expert as [units, what each of them has]."""
        moved = np.moveaxis(weights, self.axis - 1, 0).astype(np.float64)
        units = len(moved) // self.halves
        if not self.turns:
            moved = moved.reshape(self.halves, units, -1).swapaxes(0, 1)
        return moved.reshape(units, -1)


def groups_of(tokens: Numbers, scores: Array, count: int) -> Numbers:
    """[E], for each expert the one that it becomes, of `count` that stay.

    Args:
        tokens: [E], how many are routed to each expert.
        scores: [T, E], what the router gave; alike are those whose columns, centred, have a small angle. Of two that
            are the most alike the one with more tokens stays, of equals the first.
        count: how many stay.
    """
    columns = scores.astype(np.float64) - scores.mean(axis=0)
    columns /= np.maximum(np.linalg.norm(columns, axis=0), 1e-30)
    likeness = columns.T @ columns
    np.fill_diagonal(likeness, -np.inf)
    group = np.arange(len(tokens))
    for _ in range(len(tokens) - count):
        pair = np.unravel_index(np.argmax(likeness), likeness.shape)
        stays, goes = sorted(pair, key=lambda expert: (-tokens[expert], expert))
        group[group == goes] = stays
        likeness[goes], likeness[:, goes] = -np.inf, -np.inf
    return group


def aligned(stacks: Mapping[str, Array], hidden: Mapping[str, Hidden], expert: int, like: int) -> Numbers:
    """The order of the hidden units of `expert` in which they are the most like those of `like`: the permutation with
    the greatest sum of inner products of all weights of a unit (Ainsworth et al. 2022, arXiv 2209.04836, section 3.2).

    Raises:
        MissingExtraError: scipy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtraError("merging experts needs scipy: pip install graphopt[diffusers]") from error
    known = [(hidden[name], array) for name, array in stacks.items() if name in hidden]
    likeness = sum(place.by_unit(array[like]) @ place.by_unit(array[expert]).T for place, array in known)
    return np.asarray(linear_sum_assignment(likeness, maximize=True)[1], np.int64)


def permuted(weights: Array, place: Hidden | None, units: Numbers | None) -> Array:
    """The weights of one expert with its hidden units in another order."""
    if place is None or units is None:
        return weights
    found: Array = np.take(weights, place.order(units), axis=place.axis - 1)
    return found


def merged(
    stacks: Mapping[str, Array], hidden: Mapping[str, Hidden], group: Numbers, tokens: Numbers
) -> dict[str, Array]:
    """The stacks of those that stay, in order; `group` as `groups_of` gives it."""
    stay = np.unique(group)
    means: dict[str, list[Array]] = {name: [] for name in stacks}
    for kept in stay.tolist():
        members = np.flatnonzero(group == kept)
        count = tokens[members] if tokens[members].any() else np.ones(len(members))
        share = count / count.sum()
        orders = [aligned(stacks, hidden, e, kept) if hidden and e != kept else None for e in members.tolist()]
        for name, array in stacks.items():
            parts = [permuted(array[e], hidden.get(name), o) for e, o in zip(members, orders, strict=True)]
            means[name].append(_mean(parts, share))
    return {name: np.stack(parts).astype(stacks[name].dtype) for name, parts in means.items()}


def _mean(parts: Sequence[Array], share: npt.NDArray[np.float64]) -> Array:
    found: Array = np.sum([s * p.astype(np.float64) for s, p in zip(share, parts, strict=True)], axis=0)
    return found


def places(stacks: Mapping[str, Array], width: int, *, turns: bool = False) -> dict[str, Hidden]:
    """Where hidden units may stand, told by sizes: of a matrix [E, a, b] along the axis that is not the model's
    `width`, in as many parts as the least of these sizes goes into; of a vector where its size is one of those. Empty
    if that is not told by sizes."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, array in stacks.items():
        axes = [a for a in range(1, array.ndim) if array.shape[a] != width]
        if array.ndim == 3 and len(axes) != 1:
            return {}
        if axes:
            sizes[name] = axes[0], array.shape[axes[0]]
    least = min((size for _, size in sizes.values()), default=0)
    if not least or any(size % least for _, size in sizes.values()):
        return {}
    return {name: Hidden(axis, size // least, turns) for name, (axis, size) in sizes.items()}
