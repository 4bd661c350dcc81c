"""Which ranks are tried: multiples that pay, the rank that a weight has anyway, and for kernels no more than needed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from graphopt.ir.weights import Array
from graphopt.passes.low_rank.directions import Noise
from graphopt.passes.low_rank.rules import Split, SplitSpatial

if TYPE_CHECKING:
    from graphopt.passes.low_rank.pass_ import LowRank

Ranks = tuple[int, ...]
Paying = Callable[[Ranks], float | None]
"""The cost of a chain of these ranks, None if it is too much."""

LEVELS = 8
"""How many ranks are tried of kernels, whose factors are computed for each rank anew, where all could be wanted."""


def ranks_up_to(full: int, options: LowRank) -> list[int]:
    """The one that is asked for, or all multiples."""
    if options.rank is not None:
        return [options.rank] if options.rank <= full else []
    return list(range(options.multiple, full + 1, options.multiple))


def levels_of(kind: type[Split], shape: Sequence[int], options: LowRank) -> list[Ranks]:
    """Ranks of kernels [out, in, *kernel], the lowest first. Those of a Tucker decomposition are equal shares of both
    numbers of channels."""
    out, into, *kernel = shape
    if kind is SplitSpatial:
        return [(r,) for r in ranks_up_to(min(into * kernel[0], out * kernel[1]), options)]
    if options.rank is not None:
        return [(options.rank, options.rank)] if options.rank <= min(out, into) else []
    step, larger = options.multiple, max(out, into)
    shares = [(r / larger * into, r / larger * out) for r in range(step, larger + 1, step)]
    levels = [tuple(max(step, round(s / step) * step) for s in share) for share in shares]
    return [(q, p) for q, p in dict.fromkeys(levels) if q <= into and p <= out]


def wanted(
    levels: list[Ranks],
    error: Callable[[Ranks], float],
    parameters: Callable[[Ranks], int],
    size: int,
    options: LowRank,
) -> list[Ranks]:
    """Those of `levels` that energy or ratio ask for; without these `LEVELS` of them, evenly spaced, both ends
    included.

    Args:
        error: predicted |X (W - product)|^2 / |X W|^2, which falls as ranks grow.
        parameters: elements of the factors.
        size: elements of the weight.
    """
    if options.energy is not None:
        lost = 1.0 - options.energy
        lowest = bisect_left(levels, True, key=lambda ranks: error(ranks) <= lost)
        return levels[lowest : lowest + 1]
    if options.ratio is not None:
        return [ranks for ranks in levels if parameters(ranks) <= options.ratio * size][-1:]
    if len(levels) <= LEVELS:
        return levels
    return [levels[round(i * (len(levels) - 1) / (LEVELS - 1))] for i in range(LEVELS)]


def own_ranks(unfoldings: Sequence[Array], dtype: str, multiple: int, paying: Paying) -> Ranks | None:
    """The ranks that a weight has anyway, rounded up to multiples if that pays; None if it does not pay either.

    Args:
        unfoldings: the weight as the matrices whose ranks these are.
    """
    least = tuple(max(1, Noise(matrix, dtype).rank) for matrix in unfoldings)
    padded = tuple(min(-(-r // multiple) * multiple, *m.shape) for r, m in zip(least, unfoldings, strict=True))
    return next((ranks for ranks in (padded, least) if paying(ranks) is not None), None)
