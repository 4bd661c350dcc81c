"""Fewer experts, one mixture after the other, as far as the budget allows: what prune-experts and merge-experts share.

Each mixture is one application: the model with fewer experts must compute, up to rounding, what a model computes that
has all of them still and in which those that go have no effect of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from graphopt.errors import PipelineError
from graphopt.ir.graph import CannotEmit
from graphopt.ir.model import Model
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

Edit: TypeAlias = Callable[[Places, Journal], None]


@dataclass(frozen=True)
class Plan:
    """What becomes of the experts of one mixture."""

    fewer: Edit
    declared: Edit
    """The same with all experts in their places; what `fewer` is compared with."""
    told: str
    """What it is, for the notes."""


@dataclass(frozen=True)
class Candidates:
    """A mixture, and what plans are made with."""

    context: Context
    approximation: Approximation
    number: int
    """Which of the mixtures of the model it is."""
    load: Load
    places: Places


Plans: TypeAlias = Callable[[Candidates], Iterator[Plan]]
"""Plans for a mixture, each with fewer experts than the one before; raises NotRemovable."""


def use_fewer_experts(pass_: GraphPass, context: Context, plans: Plans, *, asked: bool, ask: str) -> None:
    """Let each mixture become the last of its `plans` that keeps the metric within the budget.

    Raises:
        PipelineError: the budget is infinite and the options do not say how far to go (`asked`); `ask` says how to.
    """
    approximation = context.approximation(pass_)
    if not asked and approximation.limit == float("inf"):
        raise PipelineError(f"{pass_.name}: an infinite budget sets no limit, so say {ask}")
    found = mixtures(context.model.main)
    if not found:
        context.notes.append("the main graph has no mixture of experts")
    known = loads(context.model, found, approximation.feeds)
    for number, load in enumerate(known):
        if context.ledger.exhausted:
            break
        try:
            places = places_of(mixtures(context.model.main)[number])
            _use_fewer(Candidates(context, approximation, number, load, places), plans)
        except NotRemovable as reason:
            context.notes.append(f"{load.name} keeps all experts: {reason}")
    approximation.settle(approximation.measure(context.model) if context.approximated else approximation.spent)


def _use_fewer(of: Candidates, plans: Plans) -> None:
    context, load, model = of.context, of.load, of.context.model
    best: Plan | None = None
    for plan in plans(of):
        try:
            measured = of.approximation.measure(trial(model, of.number, plan.fewer))
        except CannotEmit as reason:
            context.notes.append(f"{load.name}: a model with fewer experts cannot be written: {reason}")
            break
        if not measured <= of.approximation.limit:
            break
        best = plan
    if best is None:
        context.notes.append(f"{load.name} keeps all {load.experts} experts")
        return
    nodes = tuple(model.main.node_name(n) for n in of.places.calls)
    if context.apply("experts", nodes, partial(_applied, of, best), approximate=True) is not None:
        model.refresh()
        context.notes.append(f"{load.name}: {load.experts} → {best.told}")


def trial(model: Model, number: int, edit: Edit) -> Model:
    """A copy of the model, the mixture of that number edited. Raises CannotEmit."""
    copy = model.copy()
    with Journal(copy.main) as journal:
        edit(places_of(mixtures(copy.main)[number]), journal)
    copy.refresh()
    return copy


def _applied(of: Candidates, plan: Plan) -> tuple[int, Evidence]:
    context, model = of.context, of.context.model
    evidence = Evidence("types" if context.verify == "structure" else "none")
    if context.verify in ("match", "model"):
        declared, fewer = (trial(model, of.number, edit) for edit in (plan.declared, plan.fewer))
        worst = difference(declared, fewer, of.approximation)
        evidence = Evidence("executed", len(of.approximation.feeds), worst)
        if not worst <= 1.0:
            reason = "fewer experts and all of them, as declared, differ by"
            raise Rejected(f"{reason} {worst:.2g} times what rounding may do", evidence)
    with Journal(model.main) as journal:
        plan.fewer(places_of(mixtures(model.main)[of.number]), journal)
    return of.load.experts, evidence


def difference(before: Model, after: Model, approximation: Approximation) -> float:
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
