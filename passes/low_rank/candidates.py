"""What a layer could become: chains that cost less than it does, each with its predicted error."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.weights import Array, ArrayRef, numpy_dtype
from graphopt.passes.low_rank.activations import Statistics
from graphopt.passes.low_rank.directions import Directions, Inputs, directions
from graphopt.passes.low_rank.kernels import Chain, columns_and_rows, separated, tucker, unfolded
from graphopt.passes.low_rank.layers import Layer
from graphopt.passes.low_rank.ranks import Paying, levels_of, own_ranks, ranks_up_to, wanted
from graphopt.passes.low_rank.rules import Split, SplitChannels, SplitSpatial, SplitTucker

if TYPE_CHECKING:
    from graphopt.passes.low_rank.pass_ import LowRank


@dataclass(frozen=True)
class Candidate:
    """A layer as a chain."""

    kind: type[Split]
    ranks: tuple[int, ...]
    cost: float
    parameters: int
    error: float
    """Predicted |X (W - product)|^2 / |X W|^2 on the tuning data."""
    expected: float
    """The same for inputs as they are to be expected from that much data: what choices are made by."""
    build: Callable[[], tuple[Array, ...]]
    """The factors in float64, in the shapes that the split takes."""
    exact: bool = False
    """Whether the product is the weight up to its rounding."""
    refitted: bool = False
    """Whether factors and errors are for X' in the place of X: |X W - X' product|^2 / |X W|^2."""

    def split(self, layer: Layer) -> Split:
        """The factors in the dtype of the layer's weight."""
        dtype = numpy_dtype(layer.weight.dtype)
        return self.kind([ArrayRef(np.ascontiguousarray(f).astype(dtype)) for f in self.build()])

    def __str__(self) -> str:
        return f"{self.kind.name} of rank {' and '.join(map(str, self.ranks))}"


@dataclass(frozen=True)
class Choices:
    """A layer, its cost, and the chains that would cost at most 1 - min_gain of it; `reason` why there is none."""

    layer: Layer
    cost: float
    candidates: tuple[Candidate, ...]
    reason: str = ""
    known: bool = True
    """Whether what it is fed is known; else errors are those of the weight alone."""


def choices(layer: Layer, known: Statistics, options: LowRank) -> Choices:
    """Every chain that `options` allow for `layer`, whose inputs are `known`."""
    by_parameters = options.cost == "parameters" or (layer.op == "gather" and options.selects)
    rows = (1.0, 1.0, 1.0) if by_parameters else (float(known.rows[0]), float(known.rows[1]), float(known.rows[2]))
    size = math.prod(layer.shape)
    dense = float(size) if by_parameters else 2.0 * rows[0] * size
    if layer.op == "gather" and not by_parameters:
        return Choices(layer, 0.0, (), "reading a table costs no FLOPs; cost=parameters counts its size")
    if not known.total:
        return Choices(layer, dense, (), "it reads nothing on the tuning data")
    if not known.finite:
        return Choices(layer, dense, (), "what it reads on the tuning data is not finite")
    if not np.all(np.isfinite(layer.weight.numpy())):
        return Choices(layer, dense, (), "its weight is not finite")

    def cost(kind: type[Split], ranks: tuple[int, ...]) -> float:
        parameters = kind.parameters(layer.shape, ranks)
        return float(parameters) if by_parameters else 2.0 * kind.cost(layer.shape, ranks, rows)

    most = (1.0 - options.min_gain) * dense
    found: list[Candidate] = []
    inputs = known.inputs()
    for kind in layer.kinds:
        paying = partial(_paying, kind, layer, cost, most)
        found += _of_kind(kind, layer, inputs, options, paying)
    whitened = inputs is not None
    if not found:
        return Choices(layer, dense, (), _too_costly(layer, options, partial(cost, layer.kinds[0]), dense), whitened)
    chosen = _selected(_one_exact(found), size, options)
    reason = "" if chosen else f"no chain that costs less has {options.selection}"
    return Choices(layer, dense, tuple(chosen), reason, whitened)


def _paying(
    kind: type[Split],
    layer: Layer,
    cost: Callable[[type[Split], tuple[int, ...]], float],
    most: float,
    ranks: tuple[int, ...],
) -> float | None:
    """The cost of these ranks, None if it is more than `most`."""
    due = cost(kind, ranks)
    return due if due <= most or math.isclose(due, most) else None


def _of_kind(
    kind: type[Split], layer: Layer, inputs: Inputs | None, options: LowRank, paying: Paying
) -> Iterator[Candidate]:
    if kind not in (SplitSpatial, SplitTucker):
        yield from _of_matrix(kind, layer, inputs, options, paying)
        return
    weight = layer.matrix().T.reshape(layer.shape)
    levels = [ranks for ranks in levels_of(kind, layer.shape, options) if paying(ranks) is not None]
    own = own_ranks(_unfoldings(kind, weight), layer.weight.dtype, options.multiple, paying)
    if own is not None:
        exact = _chain(kind, layer, own, chains(kind, weight, None, whiten=False)(own), paying, exact=True)
        yield exact
        levels = [ranks for ranks in levels if (paying(ranks) or 0.0) < exact.cost]
    parameters = partial(kind.parameters, layer.shape)
    of_ranks = cache(chains(kind, weight, inputs, whiten=options.whiten))
    for ranks in wanted(levels, lambda r: of_ranks(r).error, parameters, weight.size, options):
        yield _chain(kind, layer, ranks, of_ranks(ranks), paying)


def _unfoldings(kind: type[Split], weight: Array) -> tuple[Array, ...]:
    """The matrices of a kernel whose ranks are those of the chain."""
    if kind is SplitSpatial:
        return (columns_and_rows(weight),)
    return unfolded(weight, 1), unfolded(weight, 0)


def chains(
    kind: type[Split], weight: Array, inputs: Inputs | None, *, whiten: bool
) -> Callable[[tuple[int, ...]], Chain]:
    """The chain of a kernel for given ranks."""
    if kind is SplitTucker:
        return lambda ranks: tucker(weight, (ranks[0], ranks[1]), inputs, whiten=whiten)
    of_rank = separated(weight, inputs, whiten=whiten)
    return lambda ranks: of_rank(ranks[0])


def _chain(
    kind: type[Split], layer: Layer, ranks: tuple[int, ...], chain: Chain, paying: Paying, *, exact: bool = False
) -> Candidate:
    parameters = kind.parameters(layer.shape, ranks)
    due = paying(ranks)
    assert due is not None
    error, expected = (0.0, 0.0) if exact else (chain.error, chain.expected)
    return Candidate(kind, ranks, due, parameters, error, expected, partial(given, chain.factors), exact)


def given(factors: tuple[Array, ...]) -> tuple[Array, ...]:
    return factors


def _of_matrix(
    kind: type[Split], layer: Layer, inputs: Inputs | None, options: LowRank, paying: Paying
) -> Iterator[Candidate]:
    """Two factors of a matrix: every rank at once, and the rank that the weight has anyway."""
    weight = layer.matrix()
    ranks = [r for r in ranks_up_to(min(weight.shape), options) if paying((r,)) is not None]
    own = own_ranks((weight,), layer.weight.dtype, options.multiple, paying)
    if own is not None:
        yield _split(kind, layer, directions(weight, None, whiten=False), own[0], paying, exact=True)
        ranks = [r for r in ranks if r < own[0]]
    if not ranks:
        return
    chosen = directions(weight, inputs, whiten=options.whiten)
    chosen = replace(chosen, basis=chosen.basis[:, : max(ranks)].copy())
    for rank in ranks:
        yield _split(kind, layer, chosen, rank, paying)


def _split(
    kind: type[Split],
    layer: Layer,
    chosen: Directions,
    rank: int,
    paying: Paying,
    *,
    exact: bool = False,
) -> Candidate:
    def build() -> tuple[Array, ...]:
        return shaped(kind, layer, *chosen.factors(layer.matrix(), rank))

    due = paying((rank,))
    assert due is not None
    parameters = kind.parameters(layer.shape, (rank,))
    error, expected = (0.0, 0.0) if exact else (float(chosen.dropped[rank]), float(chosen.expected[rank]))
    return Candidate(kind, (rank,), due, parameters, error, expected, build, exact)


def shaped(kind: type[Split], layer: Layer, first: Array, second: Array) -> tuple[Array, ...]:
    """Factors [in, r] and [r, out] of the layer's matrix in the shapes that `kind` takes."""
    if kind is not SplitChannels:
        return first, second
    rank, kernel = len(second), layer.shape[2:]
    return first.T.reshape(rank, layer.shape[1], *kernel), second.T.reshape(-1, rank, *[1] * len(kernel))


def _one_exact(found: list[Candidate]) -> list[Candidate]:
    """All but the exact ones that cost more than another."""
    best = min((c for c in found if c.exact), key=lambda c: c.cost, default=None)
    return [c for c in found if not c.exact or c is best]


def _selected(found: list[Candidate], size: int, options: LowRank) -> list[Candidate]:
    """By rank, energy or ratio at most one of them, and the exact one; without these, all."""
    exact = [c for c in found if c.exact]
    if options.rank is not None:
        of_rank = [c for c in found if set(c.ranks) == {options.rank}]
        best = min(of_rank, key=lambda c: (c.expected, c.cost), default=None)
    elif options.energy is not None:
        enough = [c for c in found if c.error <= 1.0 - options.energy]
        best = min(enough, key=lambda c: (c.cost, c.error), default=None)
    elif options.ratio is not None:
        small = [c for c in found if c.parameters <= options.ratio * size]
        best = min(small, key=lambda c: (c.expected, c.cost), default=None)
    else:
        return found
    return exact if best is None or best.exact else [*exact, best]


def _too_costly(layer: Layer, options: LowRank, cost: Callable[[tuple[int, ...]], float], dense: float) -> str:
    share = 1.0 - options.min_gain
    if layer.kinds[0] is SplitTucker:
        return f"no Tucker ranks cost at most {share:g} of it"
    even = dense / max(cost((1,)), 1e-300)
    wanted = f"rank {options.rank}" if options.rank is not None else f"a multiple of {options.multiple}"
    return f"{wanted} is not up to {share:g} r* = {share * even:.1f} (r* = {even:.1f} is the break-even)"
