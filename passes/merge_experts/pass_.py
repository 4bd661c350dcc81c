"""The pass merge-experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.ir.weights import Array
from graphopt.passes.low_rank.activations import activations
from graphopt.passes.merge_experts.grouping import Hidden, groups_of, merged, permuted, places
from graphopt.passes.merge_experts.merging import merge, stacks_of, store
from graphopt.passes.prune_experts.fewer import Candidates, Plan, difference, trial, use_fewer_experts
from graphopt.pipeline.pass_ import GraphPass

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context


@dataclass(frozen=True)
class MergeExperts(GraphPass):
    """Merges experts that a router scores alike; the router stays what it is.

    Mathematics: again and again the two experts whose scores on the tuning data are the most alike (cosine of the
    centred columns) become one, that with more tokens. The weights of a group become the mean by numbers of tokens,
    the hidden units of each brought into the order of the one that stays first. A table maps the router's numbers to
    those of merged experts, so that a token may have the same one twice, with both gates. How many experts stay is what
    the budget allows, one mixture after the other in the order of the graph.

    Where hidden units stand is told by sizes and tried: a model with all units in another order must compute the same,
    or units are left in their order, which is noted.

    Refused, with the reason: as by prune-experts; and experts that are not stacked in one tensor.

    Contract: approximate. Each mixture is one application: the model with fewer experts must compute what the model
    computes in which every expert has the weights of its group, up to rounding. Whether that is good enough the budget
    says, on held-out data. Source: Li et al., "Merge, then compress: demystify efficient SMoE with hints from its
    routing policy", 2023 (arXiv 2310.01334).
    """

    name: ClassVar[str] = "merge-experts"
    contract: ClassVar[str] = "Approximate: the user's metric stays within the user's budget, on held-out data"

    experts: int | None = None
    "How many experts stay at the least; by default 1. With an infinite budget, how many stay."

    def __post_init__(self) -> None:
        if self.experts is not None and self.experts < 1:
            raise ValueError(f"experts={self.experts}: expected 1 or more")

    def run(self, context: Context) -> None:
        ask = "how many stay: experts=4"
        use_fewer_experts(self, context, partial(_plans, self), asked=self.experts is not None, ask=ask)


def _plans(options: MergeExperts, of: Candidates) -> Iterator[Plan]:
    """One expert less after the other."""
    graph = of.places.graph
    stacks = {n: graph.constant(v).numpy() for n, v in stacks_of(of.places).items()}  # type: ignore[union-attr]
    scores, hidden = _scores(of), _hidden(of, stacks)
    for count in range(of.load.experts - 1, (options.experts or 1) - 1, -1):
        group = groups_of(of.load.tokens, scores, count)
        arrays = merged(stacks, hidden, group, of.load.tokens)
        group = np.unique(group, return_inverse=True)[1]
        declared = {name: array[group] for name, array in arrays.items()}
        fewer = partial(merge, arrays=arrays, group=group)
        yield Plan(fewer, partial(store, arrays=declared), _told(group))


def _told(group: Array) -> str:
    count = int(group.max()) + 1
    several = sorted(np.flatnonzero(group == g).tolist() for g in range(count))
    return f"{count} experts, merged {', '.join(' + '.join(map(str, s)) for s in several if len(s) > 1)}"


def _scores(of: Candidates) -> Array:
    model = of.context.model
    found = activations(model, [of.places.mixture.scores], of.approximation.feeds)
    return np.concatenate([a.reshape(-1, a.shape[-1]) for (a,) in found]).astype(np.float64)


def _hidden(of: Candidates, stacks: dict[str, Array]) -> dict[str, Hidden]:
    """Where the hidden units of experts stand, if models with these in another order compute the same."""
    context, found = of.context, of.places
    (product, *_) = found.products
    shape = found.graph.constant(product.operands[1]).shape  # type: ignore[union-attr]
    width = next((s for s in shape if s != found.mixture.experts), shape[0])
    for turns in (False, True):
        hidden = places(stacks, width, turns=turns)
        if not hidden:
            break
        units = next(len(h.by_unit(stacks[n][0])) for n, h in hidden.items())
        backwards = np.arange(units - 1, -1, -1)
        other = {n: np.stack([permuted(e, hidden.get(n), backwards) for e in a]) for n, a in stacks.items()}
        changed = trial(context.model, of.number, partial(store, arrays=other))
        if difference(context.model, changed, of.approximation) <= 1.0:
            return hidden
    context.notes.append(f"{found.mixture.name}: hidden units stay in their order, where they stand is not known")
    return {}
