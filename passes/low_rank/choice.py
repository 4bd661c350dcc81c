"""Which chain each layer becomes: most savings for the error, as far as the budget allows.

Cost and predicted error of a layer's chains are points of the plane; those that a price of error can choose are on
their lower convex hull, from the dense layer (or the exact chain) on. Going along all hulls at once, the cheapest step
first, is the optimum of the sum for every price (Lagrange; Shoham and Gersho, "Efficient bit allocation for an
arbitrary set of quantizers", IEEE TASSP 1988). Sums of errors are not the metric: how far to go is decided by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graphopt.passes.low_rank.candidates import Candidate, Choices

CLOSE = 0.005
"""The search ends when what is open is less than this share of the cost of all layers."""

Plan = Mapping[str, Candidate]
"""The chain of each layer that becomes one, by the layer's name."""


@dataclass(frozen=True)
class Step:
    """From one vertex of a layer's hull to the next."""

    price: float
    """Error for a unit of cost."""
    layer: int
    saved: float
    candidate: Candidate


def exact_plan(choices: Sequence[Choices]) -> dict[str, Candidate]:
    """The chains that change nothing but rounding."""
    return {c.layer.name: candidate for c in choices for candidate in c.candidates if candidate.exact}


def steps(choices: Sequence[Choices]) -> list[Step]:
    """The steps of all hulls, the cheapest error first; steps of one layer are in order."""
    found = [step for position, c in enumerate(choices) for step in _hull(position, c)]
    return sorted(found, key=lambda s: (s.price, s.layer, -s.candidate.cost))


def _hull(position: int, choices: Choices) -> list[Step]:
    cost, error = choices.cost, 0.0
    for candidate in choices.candidates:
        if candidate.exact:
            cost = candidate.cost
    rest = [c for c in choices.candidates if not c.exact and c.cost < cost]
    found: list[Step] = []
    while rest:
        # The least price; of equal ones the farthest step.
        best = min(rest, key=lambda c: ((c.expected - error) / (cost - c.cost), c.cost))
        found.append(Step((best.expected - error) / (cost - best.cost), position, cost - best.cost, best))
        cost, error = best.cost, best.expected
        rest = [c for c in rest if c.cost < cost]
    return found


def plan_of(base: Plan, path: Sequence[Step], choices: Sequence[Choices]) -> dict[str, Candidate]:
    """What the layers are after these steps."""
    plan = dict(base)
    for step in path:
        plan[choices[step.layer].layer.name] = step.candidate
    return plan


def search(path: Sequence[Step], total: float, fits: Callable[[int], bool], *, near: bool = False) -> int:
    """How many steps of `path` fit the budget: bisection, since the metric grows along it but for noise.

    Args:
        total: cost of all layers.
        fits: measures the first k steps. None are known to fit; that is not asked.
        near: look first at as few steps as save what the search cares for, then at twice as many, and so on, in place
            of all: for when few are to be expected, and more take longer to measure.
    """
    saved = [0.0]
    for step in path:
        saved.append(saved[-1] + step.saved)
    worth = CLOSE * total
    least = next((count for count, s in enumerate(saved) if count and s > worth), len(path))
    low, high = 0, least if near else len(path)
    while low < len(path) and fits(high := min(high, len(path))):
        low, high = high, 2 * high
    while low < len(path) and high - low > 1 and ((low == 0 and not near) or saved[high] - saved[low] > worth):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
