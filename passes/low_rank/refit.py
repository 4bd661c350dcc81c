"""Factors refitted to what the layers are fed once those before them are split.

A layer behind split ones reads X' in the place of X. The best dense weight for it is M = (X'^T X')^-1 X'^T X W, the
regression of the original's output X W on X'; and the best of rank r is M Q Q^T with the first r right singular vectors
Q of X' M (reduced-rank regression; Izenman, "Reduced-rank regression for the multivariate linear model", Journal of
Multivariate Analysis 1975), since what remains of X W is orthogonal to X'. In the order of the graph each layer makes
up for some of the errors of those before it.

X'^T X' is shrunk towards a multiple of the identity as it is without a refit, and X'^T X by the same share to the same
multiple, for X' is X as far as no data says otherwise: with little data M is near W, and where X' is X it is W.

Linear layers, products and convolutions split by channels are refitted. Spatial and Tucker chains, tables, and layers
whose inputs are not known stay as they were chosen; so do exact chains, which spend nothing, and layers that no split
one precedes. Biases stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.passes.low_rank.activations import rows_of
from graphopt.passes.low_rank.candidates import Candidate, Choices, given, shaped
from graphopt.passes.low_rank.choice import Plan
from graphopt.passes.low_rank.directions import Inputs, directions, shrinkage
from graphopt.passes.low_rank.layers import Layer
from graphopt.passes.low_rank.rules import SplitChannels, SplitLinear, SplitMatmul
from graphopt.passes.low_rank.splitting import Splitter, alone, relative, squares
from graphopt.passes.low_rank.walk import Walk

REFITTED = (SplitLinear, SplitMatmul, SplitChannels)


@dataclass(frozen=True)
class Moments:
    """What a regression needs to know of X' [rows, in], Y = X W [rows, out] and a number of rows."""

    gram: Array
    """X'^T X' [in, in]."""
    cross: Array
    """X'^T Y [in, out]."""
    size: float
    """|Y|^2."""

    def error(self, product: Array) -> float:
        """|Y - X' product|^2 / |Y|^2."""
        apart = self.size + float(np.sum(product * (self.gram @ product - 2.0 * self.cross)))
        return max(0.0, apart) / self.size if self.size > 0.0 else 0.0


@dataclass
class Regression:
    """The sums that grow batch by batch, for X' and for Y = X `weight`."""

    weight: Array
    gram: Array = field(init=False)
    cross: Array = field(init=False)
    size: float = 0.0
    rows: float = 0.0
    fourth: float = 0.0
    """Sum of |x'|^4 over the rows x' of X'."""

    def __post_init__(self) -> None:
        self.gram, self.cross = np.zeros((len(self.weight),) * 2), np.zeros_like(self.weight)

    def add(self, changed: Array, plain: Array, weight: float) -> None:
        """Count some rows of X' and X in."""
        out = plain @ self.weight
        self.gram += weight * (changed.T @ changed)
        self.cross += weight * (changed.T @ out)
        self.size += weight * float(np.sum(np.square(out)))
        self.rows += weight * len(changed)
        self.fourth += weight * float(np.sum(np.square(np.sum(np.square(changed), axis=1))))

    @property
    def measured(self) -> Moments:
        return Moments(self.gram, self.cross, self.size)

    def expected(self) -> Moments:
        """Shrunk, as is to be expected from that much data."""
        share, level = shrinkage(self.gram, self.rows, self.fourth)
        kept, added = 1.0 - share, share * level
        return Moments(
            kept * self.gram + added * np.eye(len(self.gram)),
            kept * self.cross + added * self.weight,
            kept * self.size + added * float(np.sum(np.square(self.weight))),
        )

    @property
    def known(self) -> bool:
        """Whether there is anything to fit to."""
        return bool(np.isfinite(self.fourth) and np.isfinite(self.size) and self.size > 0.0 and self.gram.any())


def reduced_rank(moments: Moments, rank: int) -> tuple[Array, Array]:
    """F [in, r] and S [r, out] with the least |Y - X' F S|; X'^T X' has an inverse."""
    best = np.linalg.solve(moments.gram, moments.cross)
    return directions(best, Inputs(moments.gram, moments.gram), whiten=True).factors(best, rank)


@dataclass(frozen=True)
class Refitted:
    """A plan after a refit."""

    plan: Plan
    measured: dict[str, float]
    """Of each layer that was refitted, |y' - y| / |y - b| of its own outputs on the tuning data, run natively: y of the
    layer in the model as it is, y' of the chain in the model that is split."""


def refit(splitter: Splitter, found: Sequence[Choices], plan: Plan) -> Refitted:
    """`plan` with factors refitted one layer after the other."""
    model, feeds, weights = splitter.context.model, splitter.approximation.feeds, splitter.approximation.weights
    choices = {c.layer.name: c for c in found}
    order = [choices[name] for name in _in_order(model, plan) if not plan[name].exact]
    while order and not _may_be(order[-1], plan):
        order.pop()
    refitted, measured = dict(plan), dict[str, float]()
    walk = Walk(model, [choice.layer for choice in order], feeds)
    for choice in order:
        layer = choice.layer
        fed = walk.until(layer)
        if _may_be(choice, plan) and any(plain is not changed for plain, changed in fed):
            refitted[layer.name] = _refitted(layer, plan[layer.name], fed, weights)
        candidate, sums = refitted[layer.name], np.zeros(2)
        outputs = walk.through(layer, alone(model, layer), alone(model, layer, candidate))
        for (plain, changed), weight in zip(outputs, weights, strict=True):
            sums += weight * squares(layer, plain, changed)
        if candidate.refitted:
            measured[layer.name] = relative(sums)
    return Refitted(refitted, measured)


def _in_order(model: Model, plan: Plan) -> list[str]:
    """The layers of `plan` in the order of the graph."""
    names = (model.main.node_name(node) for node in model.main.nodes())
    return [name for name in names if name in plan]


def _may_be(choice: Choices, plan: Mapping[str, Candidate]) -> bool:
    return choice.known and plan[choice.layer.name].kind in REFITTED


def _refitted(
    layer: Layer, candidate: Candidate, fed: Sequence[tuple[Array, Array]], weights: Sequence[float]
) -> Candidate:
    """`candidate` for the inputs X and X' of each batch; as it is where these say nothing."""
    regression = Regression(layer.matrix())
    for (plain, changed), weight in zip(fed, weights, strict=True):
        blocks = zip(rows_of(layer, changed)[0](), rows_of(layer, plain)[0](), strict=True)
        for other, block in blocks:
            regression.add(other, block, weight)
    if not regression.known:
        return candidate
    expected = regression.expected()
    first, second = reduced_rank(expected, candidate.ranks[0])
    product = first @ second
    return replace(
        candidate,
        error=regression.measured.error(product),
        expected=expected.error(product),
        build=partial(given, shaped(candidate.kind, layer, first, second)),
        refitted=True,
    )
