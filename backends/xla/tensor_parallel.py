"""Which weights several devices can share out: those of channels, heads and hidden units that depend on no other.

If index i of an axis is removed from all tensors that have it, nothing else changes (`graphopt.axes.free`); so devices
may have some of the indices each, from the product that makes them to the one that sums over them, whose results they
add up. For attention and feed-forward layers this is the division of Megatron-LM (Shoeybi et al. 2019, arXiv
1909.08053, section 3).

What is divided changes no result but for the order of sums: XLA exchanges what a division does not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.axes.analysis import Axes
from graphopt.axes.free import FreeAxis, Member, free_axes
from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Graph


def divided_dims(graph: Graph, parts: int) -> dict[str, int]:
    """The dimension along which each stored tensor is divided into `parts`, by its name; others stay whole.

    An axis is taken if it can be divided in every tensor that has it and none of them is divided already.
    """
    axes = Axes(graph)
    found: dict[str, int] = {}
    for axis in free_axes(axes):
        names = {member.weight for member in axis.members}
        fits = axis.exact and len(names) == len(axis.members) and not names & found.keys()
        if fits and all(_fits(axes, axis, member, parts) for member in axis.members):
            found |= {member.weight: member.dim for member in axis.members}
    return found


def _fits(axes: Axes, axis: FreeAxis, member: Member, parts: int) -> bool:
    """Whether equal parts of the dimension, one after the other, are equal parts of the axis."""
    if axis.size % parts:
        return False
    places = axes.space.places(axes.dims(member.value)[member.dim], axis.leaf)
    return np.array_equal(places * parts // axis.size, np.arange(member.size) * parts // member.size)


def division(weights: Sequence[Any], dims: Sequence[int | None], parts: int) -> str:
    """How much of the weights is divided, as a note.

    Raises:
        UnsupportedError: nothing is.
    """
    divided = [weight for weight, dim in zip(weights, dims, strict=True) if dim is not None]
    if not divided:
        raise UnsupportedError(
            f"backend 'xla': tensor={parts}, and no weight has channels, heads or hidden units of its own that can be "
            f"divided by {parts}; divide the samples alone"
        )
    share = sum(w.nbytes for w in divided) / sum(w.nbytes for w in weights)
    return f"{len(divided)} of {len(weights)} weights, {share:.0%} of the bytes, are divided over {parts} devices"
