"""The pass merge-experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from graphopt.errors import PipelineError
from graphopt.ir.graph import CannotEmit
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.passes.low_rank.activations import activations
from graphopt.passes.merge_experts.grouping import Hidden, groups_of, merged, permuted, places
from graphopt.passes.merge_experts.merging import merge, stacks_of, store
from graphopt.passes.prune_experts.loads import Load, loads
from graphopt.passes.prune_experts.mixtures import mixtures
from graphopt.passes.prune_experts.removal import NotRemovable, Places, places_of
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.journal import Journal
from graphopt.verify.compare import EPS, relative_error
from graphopt.verify.execute import CannotRun, model_runner

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context
    from graphopt.verify.approximation import Approximation

UNITS = 64.0
"""Units of rounding by which two models that compute the same may differ."""


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
        approximation = context.approximation(self)
        if self.experts is None and approximation.limit == float("inf"):
            raise PipelineError("merge-experts: an infinite budget sets no limit, so say how many stay: experts=4")
        found = mixtures(context.model.main)
        known = loads(context.model, found, approximation.feeds)
        for number, load in enumerate(known):
            if context.ledger.exhausted:
                break
            _merge(self, context, approximation, number, load)
        approximation.settle(approximation.measure(context.model) if context.approximated else approximation.spent)


@dataclass(frozen=True)
class _Plan:
    """What becomes of the experts of one mixture."""

    number: int
    names: dict[str, Array]
    """The stacks with fewer experts."""
    group: Array
    """For each expert, which of them it is."""

    def fewer(self, places_: Places, journal: Journal) -> None:
        merge(places_, self.names, self.group, journal)

    def declared(self, places_: Places, journal: Journal) -> None:
        store(places_, {n: a[self.group] for n, a in self.names.items()}, journal)


def _merge(options: MergeExperts, context: Context, approximation: Approximation, number: int, load: Load) -> None:
    """Merge experts of one mixture, as many as the budget allows."""
    model = context.model
    try:
        found = places_of(mixtures(model.main)[number])
        stacks = {n: model.main.constant(v).numpy() for n, v in stacks_of(found).items()}  # type: ignore[union-attr]
    except NotRemovable as reason:
        context.notes.append(f"{load.name} keeps all experts: {reason}")
        return
    scores = _scores(model, number, approximation)
    hidden = _hidden(context, approximation, number, found, stacks)
    best: _Plan | None = None
    for count in range(load.experts - 1, (options.experts or 1) - 1, -1):
        group = groups_of(load.tokens, scores, count)
        plan = _Plan(number, merged(stacks, hidden, group, load.tokens), np.unique(group, return_inverse=True)[1])
        try:
            trial = _trial(model, number, plan.fewer)
        except CannotEmit as reason:
            context.notes.append(f"{load.name}: a model with merged experts cannot be written: {reason}")
            break
        if not approximation.measure(trial) <= approximation.limit:
            break
        best = plan
    if best is None:
        context.notes.append(f"{load.name} keeps all {load.experts} experts")
        return
    nodes = tuple(model.main.node_name(n) for n in found.calls)
    if context.apply("experts", nodes, partial(_applied, context, approximation, best), approximate=True) is not None:
        model.refresh()
        context.notes.append(f"{load.name}: {load.experts} → {_told(best.group)}")


def _told(group: Array) -> str:
    count = int(group.max()) + 1
    several = sorted(np.flatnonzero(group == g).tolist() for g in range(count))
    return f"{count} experts, merged {', '.join(' + '.join(map(str, s)) for s in several if len(s) > 1)}"


def _scores(model: Model, number: int, approximation: Approximation) -> Array:
    scores = mixtures(model.main)[number].scores
    parts = [arrays[0].reshape(-1, arrays[0].shape[-1]) for arrays in activations(model, [scores], approximation.feeds)]
    return np.concatenate(parts).astype(np.float64)


def _hidden(
    context: Context, approximation: Approximation, number: int, found: Places, stacks: dict[str, Array]
) -> dict[str, Hidden]:
    """Where the hidden units of experts stand, if models with these in another order compute the same."""
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
        changed = _trial(context.model, number, partial(_store, other))
        if _worst(context.model, changed, approximation) <= 1.0:
            return hidden
    context.notes.append(f"{found.mixture.name}: hidden units stay in their order, where they stand is not known")
    return {}


def _store(arrays: dict[str, Array], found: Places, journal: Journal) -> None:
    store(found, arrays, journal)


def _trial(model: Model, number: int, edit: Callable[[Places, Journal], None]) -> Model:
    """A copy of the model that is edited. Raises CannotEmit."""
    copy = model.copy()
    journal = Journal(copy.main)
    edit(places_of(mixtures(copy.main)[number]), journal)
    journal.commit()
    copy.refresh()
    return copy


def _applied(context: Context, approximation: Approximation, plan: _Plan) -> tuple[int, Evidence]:
    model = context.model
    evidence = Evidence("types" if context.verify == "structure" else "none")
    if context.verify in ("match", "model"):
        declared, fewer = (_trial(model, plan.number, edit) for edit in (plan.declared, plan.fewer))
        worst = _worst(declared, fewer, approximation)
        evidence = Evidence("executed", len(approximation.feeds), worst)
        if not worst <= 1.0:
            raise Rejected(f"merged and declared experts differ by {worst:.2g} times what rounding may do", evidence)
    journal = Journal(model.main)
    try:
        plan.fewer(places_of(mixtures(model.main)[plan.number]), journal)
    except BaseException:
        journal.rollback()
        raise
    journal.commit()
    return len(plan.group), evidence


def _worst(before: Model, after: Model, approximation: Approximation) -> float:
    """The largest difference of results on the tuning data, in what rounding may do. Raises Rejected."""
    worst = 0.0
    try:
        for feed in approximation.feeds:
            for a, b in zip(model_runner(before)(feed), model_runner(after)(feed), strict=True):
                error = relative_error(a.astype(np.float64), b.astype(np.float64))
                worst = max(worst, error / (UNITS * EPS.get(a.dtype.name, EPS["float32"])))
    except CannotRun as failure:
        raise Rejected(f"it cannot be run to be compared: {failure}", Evidence("none")) from failure
    return worst


