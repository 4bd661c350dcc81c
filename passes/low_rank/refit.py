"""Factors refitted to what the layers are fed once those before them are split.

A layer behind split ones reads X' in the place of X. The best dense weight for it is M = (X'^T X')^-1 X'^T X W, the
regression of the original's output X W on X'; and the best of rank r is M Q Q^T with the first r right singular vectors
Q of X' M (reduced-rank regression; Izenman, "Reduced-rank regression for the multivariate linear model", Journal of
Multivariate Analysis 1975), since what remains of X W is orthogonal to X'. In the order of the graph each layer makes
up for some of the errors of those before it.

As far as no data says otherwise X' is X, and M is W. So the correction M - W is a ridge regression of X W - X' W on
X'. Its ridge is the one with which the correction that half of the rows give leaves least on the other half, for the
worse of the two; where none helps both, or rows are few, the factors stay what they were. X'^T X' is
shrunk as it is without a refit.

Spatial and Tucker chains have no best one in closed form; theirs is the chain that is chosen for M on X' as it was for
W on X: its last factor is the least-squares fit of X' M on what the others make of X'. It is taken where it leaves less
than the chain that it would replace.

Tables and layers whose inputs are not known stay as they were chosen; so do exact chains, which spend nothing, and
layers that no split one precedes. Biases stay.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.passes.low_rank.activations import rows_of
from graphopt.passes.low_rank.candidates import Candidate, Choices, chains, given, shaped
from graphopt.passes.low_rank.choice import Plan
from graphopt.passes.low_rank.directions import Inputs, directions, shrunk
from graphopt.passes.low_rank.kernels import product_of
from graphopt.passes.low_rank.layers import Layer
from graphopt.passes.low_rank.rules import SplitGather, SplitSpatial, SplitTucker
from graphopt.passes.low_rank.splitting import Splitter, alone, relative, squares
from graphopt.passes.low_rank.walk import Walk

KERNELS = (SplitSpatial, SplitTucker)
RIDGES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""What is tried, in units of the mean eigenvalue of X'^T X'; errors along them fall to a least one and rise again."""
FEWEST = 16
"""From fewer rows than this it cannot be told what helps."""
HELPS = 1e-3
"""A smaller ridge has to leave less by this share."""


@dataclass
class Regression:
    """What a regression of Y = X W on X' needs to know, summed up row by row; W is `weight` [in, out]."""

    weight: Array
    gram: Array = field(init=False)
    """X'^T X' [in, in]."""
    cross: Array = field(init=False)
    """X'^T Y [in, out]."""
    size: float = 0.0
    """|Y|^2."""
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

    def __add__(self, other: Regression) -> Regression:
        both = Regression(self.weight)
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        both.size, both.rows, both.fourth = self.size + other.size, self.rows + other.rows, self.fourth + other.fourth
        return both

    @property
    def known(self) -> bool:
        """Whether there is anything to fit to."""
        return bool(np.isfinite(self.fourth) and np.isfinite(self.size) and self.size > 0.0 and self.gram.any())

    @property
    def level(self) -> float:
        """The mean eigenvalue of X'^T X'."""
        return float(np.trace(self.gram)) / len(self.gram)

    def left(self, product: Array) -> float:
        """|Y - X' product|^2."""
        return max(0.0, self.size + float(np.sum(product * (self.gram @ product - 2.0 * self.cross))))

    def error(self, product: Array) -> float:
        """|Y - X' product|^2 / |Y|^2."""
        return self.left(product) / self.size

    def best(self, ridge: float) -> Array:
        """The M [in, out] with the least |Y - X' M|^2 + ridge |M - W|^2, for a ridge above 0 or independent columns."""
        raised = self.gram + ridge * np.eye(len(self.gram))
        return np.asarray(np.linalg.solve(raised, self.cross + ridge * self.weight))


def best_weight(one: Regression, other: Regression) -> Array:
    """The dense weight [in, out] for what both halves of the rows say together; W itself if that is nothing."""
    both, chosen, least = one + other, math.inf, 1.0
    missed = one.left(one.weight), other.left(other.weight)
    if both.rows < FEWEST or not all(missed):
        return both.weight
    for ridge in (r * both.level for r in RIDGES):
        left = max(one.left(other.best(ridge)) / missed[0], other.left(one.best(ridge)) / missed[1])
        if left > (1.0 - HELPS) * least:
            break
        least, chosen = left, ridge
    return both.weight if math.isinf(chosen) else both.best(chosen)


def reduced_rank(best: Array, gram: Array, rank: int) -> tuple[Array, Array]:
    """F [in, r] and S [r, out] with the least |X' best - X' F S| for `gram` = X'^T X'."""
    return directions(best, Inputs(gram, gram), whiten=True).factors(best, rank)


@dataclass(frozen=True)
class Refitted:
    """A plan after a refit."""

    plan: Plan
    measured: dict[str, float]
    """Of each layer that was refitted, |y' - y| / |y - b| of its own outputs on the tuning data, run natively: y of the
    layer in the model as it is, y' of the chain in the model that is split."""


Known = dict[Hashable, Candidate]
"""What layers became, by the chains of the layers up to them: what they are fed depends on nothing else."""


def refit(splitter: Splitter, found: Sequence[Choices], plan: Plan, known: Known | None = None) -> Refitted:
    """`plan` with factors refitted one layer after the other; those in `known`, which grows, are taken from there."""
    known = {} if known is None else known
    model, feeds, weights = splitter.context.model, splitter.approximation.feeds, splitter.approximation.weights
    choices = {c.layer.name: c for c in found}
    order = [choices[name] for name in _in_order(model, plan) if not plan[name].exact]
    while order and not _may_be(order[-1], plan):
        order.pop()
    refitted, measured = dict(plan), dict[str, float]()
    walk, before = Walk(model, [choice.layer for choice in order], feeds), list[tuple[str, Candidate]]()
    for choice in order:
        layer = choice.layer
        fed = walk.until(layer)
        before.append((layer.name, plan[layer.name]))
        if _may_be(choice, plan) and any(plain is not changed for plain, changed in fed):
            if (key := tuple(before)) not in known:
                known[key] = _refitted(layer, plan[layer.name], fed, weights)
            refitted[layer.name] = known[key]
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
    return choice.known and plan[choice.layer.name].kind is not SplitGather


def _refitted(
    layer: Layer, candidate: Candidate, fed: Sequence[tuple[Array, Array]], weights: Sequence[float]
) -> Candidate:
    """`candidate` for the inputs X and X' of each batch; as it is where these say nothing of use."""
    halves = _halves(layer, fed, weights)
    both = halves[0] + halves[1]
    if not both.known:
        return candidate
    best = best_weight(*halves)
    if best is both.weight:
        return candidate
    inputs = Inputs(both.gram, shrunk(both.gram, both.rows, both.fourth))
    factors, product = _factors(layer, candidate, best, inputs)
    error = both.error(product)
    if candidate.kind in KERNELS and not error < both.error(product_of(candidate.build())):
        return candidate
    return replace(candidate, error=error, expected=error, build=partial(given, factors), refitted=True)


def _factors(layer: Layer, candidate: Candidate, best: Array, inputs: Inputs) -> tuple[tuple[Array, ...], Array]:
    """The chain of the candidate's kind and ranks for the weight `best` [in, out] on `inputs`, and its product as such
    a matrix."""
    kind = candidate.kind
    if kind in KERNELS:
        factors = chains(kind, best.T.reshape(layer.shape), inputs, whiten=True)(candidate.ranks).factors
        return factors, product_of(factors)
    first, second = reduced_rank(best, inputs.expected, candidate.ranks[0])
    return shaped(kind, layer, first, second), first @ second


def _halves(
    layer: Layer, fed: Sequence[tuple[Array, Array]], weights: Sequence[float]
) -> tuple[Regression, Regression]:
    """The first and the second half of all rows: of other batches where there are several, for rows of one sample are
    alike."""
    weight = layer.matrix()
    halves = Regression(weight), Regression(weight)
    ahead = sum(rows_of(layer, plain)[1][0] for plain, _ in fed) // 2
    for (plain, changed), counted in zip(fed, weights, strict=True):
        for other, block in zip(rows_of(layer, changed)[0](), rows_of(layer, plain)[0](), strict=True):
            cut = max(0, min(len(block), ahead))
            halves[0].add(other[:cut], block[:cut], counted)
            halves[1].add(other[cut:], block[cut:], counted)
            ahead -= cut
    return halves
