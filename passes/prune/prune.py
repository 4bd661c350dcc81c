"""The pass `prune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import ClassVar, Literal

import numpy as np

from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import FreeAxis, free_axes
from graphopt.axes.terms import Mask
from graphopt.errors import PipelineError, did_you_mean
from graphopt.ir.graph import CannotEmit
from graphopt.ir.model import Model
from graphopt.passes.prune.gradients import gradients
from graphopt.passes.prune.importance import Scores, activation, magnitude, mean_squares, random, taylor
from graphopt.passes.prune.plan import Planner, greatest_amount, least_amount
from graphopt.passes.prune.size import Keep, Sizes, time_ratio
from graphopt.pipeline.context import Context
from graphopt.pipeline.pass_ import GraphPass
from graphopt.pipeline.report_table import scaled
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.journal import Journal
from graphopt.verify.approximation import Approximation

TRIALS = 7
"""Halvings in a search that runs a model each time."""


@dataclass(frozen=True)
class Prune(GraphPass):
    """Makes a model narrower: removes channels, heads, KV groups, the width of heads and hidden units for good.

    What can go is found in the graph alone. Every dimension of every tensor is a product of axes (a reshape joins
    them, as tokens join heads with their width) or a sum of them (a concatenation); ops say which are the same, and
    what nothing fixes is free. The least important indices of free axes are removed: stored tensors are sliced, sizes
    that nodes name are counted anew.

    An axis is *exact* if removing an index is the same as setting its slices of all stored tensors to zero, and
    *coupled* where indices depend on each other beyond that (statistics of a norm, a softmax). Preconditions: sizes
    known when the graph is compiled; an op that the vocabulary cannot say keeps every axis that it touches as it is.

    Each axis is one application, verified and undone alone: in float64, the part of the graph that it touches with
    zeros in what goes must equal the part afterwards, a wrong choice of slices must be seen, and the result must run.
    Whether the model is still good enough is for the budget to say: without a target as much is removed as the budget
    allows, with one no more than reaching it takes.

    Source: dependency groups, Fang et al. 2023 (DepGraph, arXiv 2301.12900); axes as terms that are unified, after
    Milner 1978 (A theory of type polymorphism in programming).
    """

    name: ClassVar[str] = "prune"
    contract: ClassVar[str] = "Approximate: the user's metric stays within the user's budget; masked equals sliced"

    ratio: float | None = None
    "Share of the indices of every axis that goes, above 0 and below 1."
    flops: float | None = None
    "Share of the model's floating-point operations that goes."
    params: float | None = None
    "Share of the model's parameters that goes."
    latency: float | None = None
    "Share of the model's measured time that goes, with the runtime's own optimisations on this machine."
    importance: Literal["magnitude", "activation", "taylor", "random"] = "magnitude"
    "What makes an index important: its slices' norm; that times the activations'; a loss's gradient; nothing."
    loss: str = "square"
    "For taylor: square, self-cross-entropy, or package.module:function of the list of outputs (torch models)."
    together: bool = False
    "Whether the least important indices of all axes go, instead of the same share of each."
    coupled: bool = True
    "Whether coupled axes are pruned too."
    multiple: int = 8
    "What stays of an axis that is longer than this is a multiple of it."
    protect: tuple[str, ...] = ()
    "Names of axes or stored tensors, or patterns of them (`head.*`): axes that they have stay."
    axis: str | None = None
    "The one axis to prune, by its name in the list of `graphopt.passes.prune.axes`; with `keep`."
    keep: tuple[int, ...] = ()
    "The indices of `axis` that stay."
    seed: int = 0
    "For random."

    def __post_init__(self) -> None:
        targets = [t for t in (self.ratio, self.flops, self.params, self.latency) if t is not None]
        if len(targets) + (self.axis is not None) > 1:
            raise ValueError("give one of ratio, flops, params, latency and axis, or none of them")
        if any(not 0 < t < 1 for t in targets):
            raise ValueError("a share to remove is above 0 and below 1")
        if bool(self.keep) != (self.axis is not None):
            raise ValueError("axis and keep belong together: which axis, and which of its indices stay")
        if self.multiple < 1:
            raise ValueError(f"multiple is {self.multiple}: expected 1 or more")

    def run(self, context: Context) -> None:
        approximation = context.approximation(self)
        work = _Work(self, context, approximation)
        work.note_unknown_protection()
        if not work.found and self.axis is None:
            context.notes.append("nothing to prune: every axis is fixed")
            return
        keep = work.explicit() if self.axis is not None else work.chosen()
        work.apply(keep if work.is_within_as_applied(keep) else {})


class _Work:
    """One run on one model."""

    def __init__(self, options: Prune, context: Context, approximation: Approximation) -> None:
        self._options = options
        self._context = context
        self._approximation = approximation
        self._axes = Axes(context.model.main)
        self._all = free_axes(self._axes)
        self.found = [a for a in self._all if (options.coupled or a.exact) and not _is_protected(a, options.protect)]
        self._sizes = self._measured_sizes()

    def _measured_sizes(self) -> Sizes:
        return Sizes(self._context.model, self._axes, self.found, self._approximation.feeds[0])

    def note_unknown_protection(self) -> None:
        """Say which patterns protect nothing: a slip of the pen would cost what was to stay."""
        known = [name for name, _, _ in self._context.model.weights()]
        known += [name for axis in self._all for name in (axis.name, *(m.weight for m in axis.members))]
        for pattern in self._options.protect:
            if not any(fnmatchcase(name, pattern) for name in known):
                self._note(f"protect: no tensor or axis is named {pattern!r}{did_you_mean(pattern, known)}")

    # ---- choosing ----------------------------------------------------------------------------------------

    def explicit(self) -> Keep:
        """What the user named."""
        wanted = self._options.axis or ""
        axis = next((a for a in self._all if a.name == wanted), None)
        if axis is None:
            names = [a.name for a in self._all]
            raise PipelineError(f"prune: there is no free axis {wanted!r}{did_you_mean(wanted, names)}")
        if axis not in self.found:
            why = "protect names it" if self._options.coupled or axis.exact else "it is coupled, and coupled is false"
            raise PipelineError(f"prune: axis {wanted!r} is to be pruned and to stay: {why}; drop one of the two")
        outside = [i for i in self._options.keep if not 0 <= i < axis.size]
        if outside:
            raise PipelineError(f"prune: axis {wanted!r} has indices 0 to {axis.size - 1}, keep names {outside[0]}")
        mask = np.zeros(axis.size, bool)
        mask[list(self._options.keep)] = True
        if mask.all():
            self._note(f"keep names every index of {axis.name}: nothing is removed")
            return {}
        keep = {axis.name: mask}
        return keep if self._is_within(self._trial(keep)[0]) else self._refused("the indices that keep names")

    def chosen(self) -> Keep:
        """What stays by importance: as much goes as the target asks for and the budget allows."""
        planner = Planner(self.found, self._scores(), self._options.multiple, self._options.together)
        amount = self._target(planner)
        if amount is None:
            return {}
        best = greatest_amount(lambda a: self._allows(planner, a), amount, TRIALS)
        keep = planner.keep(best) if best > 0 else {}
        if not keep:
            return self._refused("any index")
        if best < amount and self._has_target:
            self._note(f"the budget allows an amount of {best:.3f} where the target asks for {amount:.3f}")
        return keep

    @property
    def _has_target(self) -> bool:
        o = self._options
        return any(t is not None for t in (o.ratio, o.flops, o.params, o.latency))

    def _target(self, planner: Planner) -> float | None:
        """The amount that meets the target; all if there is none; None if it cannot be met."""
        o, sizes = self._options, self._sizes
        if o.ratio is not None:
            return o.ratio
        if o.flops is not None:
            return self._reached(planner, "FLOPs", o.flops, sizes.flops({}), sizes.flops)
        if o.params is not None:
            whole = sum(n for _, n, _ in self._context.model.weights())
            return self._reached(planner, "parameters", o.params, whole, lambda k: whole - sizes.removed_parameters(k))
        if o.latency is not None:
            return self._fast_enough(planner, o.latency)
        if self._approximation.limit == float("inf"):
            raise PipelineError(
                "prune: an infinite budget sets no limit, so say how much: ratio=, flops=, params=, latency= or axis="
            )
        return 1.0

    def _reached(self, planner: Planner, what: str, share: float, whole: int | None, left: object) -> float | None:
        if whole is None:
            raise PipelineError(
                f"prune: the {what} of this model cannot be told (symbolic sizes, or an op whose cost is not known); "
                "give ratio= or params= instead"
            )
        assert callable(left)
        amount = least_amount(lambda a: left(planner.keep(a)) <= (1 - share) * whole)
        if amount is None:
            reachable = 1 - left(planner.keep(1.0)) / whole
            self._note(f"{what} can go down by {reachable:.1%} at most, not by {share:.1%}: the model stays as it is")
        return amount

    def _fast_enough(self, planner: Planner, share: float) -> float | None:
        model, feed = self._context.model, self._approximation.feeds[0]
        amount = least_amount(
            lambda a: time_ratio(self._trial(planner.keep(a))[0], model, feed) <= 1 - share, steps=TRIALS
        )
        if amount is None:
            self._note(f"the measured time cannot go down by {share:.0%}: the model stays as it is")
        return amount

    def _scores(self) -> Mapping[str, Scores]:
        options, axes, data = self._options, self._axes, self._approximation
        match options.importance:
            case "taylor":
                found = gradients(self._context.model, options.loss, data.feeds, data.weights)
                return {a.name: taylor(axes, a, found) for a in self.found}
            case "activation":
                squares = mean_squares(self._context.model, axes, self.found, data.feeds, data.weights)
                return {a.name: activation(axes, a, squares) for a in self.found}
            case "random":
                return {a.name: random(a, options.seed) for a in self.found}
        return {a.name: magnitude(axes, a) for a in self.found}

    # ---- trying ------------------------------------------------------------------------------------------

    def _trial(self, keep: Keep, *, check: bool = False, most: float = float("inf")) -> tuple[Model, list[str]]:
        """A copy of the model with `keep`, verified only with `check`, and the names of the axes that were shortened,
        `most` of them: one that cannot be will be left as it is when it is to be shortened for good, too."""
        copy, done = self._context.model.copy(), list[str]()
        axes = Axes(copy.main)
        for axis in free_axes(axes):
            if axis.name in keep and len(done) < most:
                with suppress(CannotEmit, Rejected):
                    shorten_checked(axes, axis, keep[axis.name], Journal(copy.main), check=check)
                    done.append(axis.name)
        copy.refresh()
        return copy, done

    def _allows(self, planner: Planner, amount: float) -> bool:
        keep = planner.keep(amount)
        return not keep or self._is_within(self._trial(keep)[0])

    def _is_within(self, model: Model) -> bool:
        return self._approximation.measure(model) <= self._approximation.limit

    def _refused(self, what: str) -> Keep:
        limit, metric = self._approximation.limit, self._approximation.metric
        self._note(f"removing {what} takes {metric} above {limit:.3g}: the model stays as it is")
        return {}

    # ---- applying ----------------------------------------------------------------------------------------

    def is_within_as_applied(self, keep: Keep) -> bool:
        """Whether the budget holds for as much of `keep` as will be done: applications may be left out on request,
        and one that fails its check is undone. What was chosen is not chosen anew for that."""
        context, limit = self._context, self._approximation.limit
        if not keep or limit == float("inf"):
            return True
        ledger, names = context.ledger, [a.name for a in self._all if a.name in keep]
        skipped = {n for i, n in enumerate(names, 1) if ledger.id_ahead("axis", i) in ledger.skip}
        most = len(names) if ledger.limit is None else ledger.limit - ledger.kept
        trial, done = self._trial({n: keep[n] for n in names if n not in skipped}, check=self._checked, most=most)
        if len(done) == len(names) or self._is_within(trial):
            return True
        left = ", ".join(n for n in names if n not in done)
        self._note(
            f"without {left}, which is skipped, beyond the limit or undone, the rest takes "
            f"{self._approximation.metric} above {limit:.3g}: the model stays as it is"
        )
        return False

    @property
    def _checked(self) -> bool:
        return self._context.verify in ("match", "model")

    def apply(self, keep: Keep) -> None:
        """Shorten every axis for good, each an application of its own."""
        context, graph = self._context, self._axes.graph
        place, before = len(context.notes), self._sizes.flops({}) if keep else None
        for axis in self._all:
            if axis.name not in keep or context.ledger.exhausted:
                continue
            nodes = tuple(graph.node_name(n) for n in self._axes.current(axis.nodes))
            change = partial(self._shorten, axis, keep[axis.name])
            done = context.apply("axis", nodes, change, approximate=True)
            if done is not None:
                self._note(f"{axis.name}: {axis.size} → {done} ({'exact' if axis.exact else 'coupled'})")
        after = self._measured_sizes().flops({}) if before else None
        if before and after is not None:
            moved = f"{scaled(before).rstrip()} → {scaled(after).rstrip()} ({after / before - 1:+.1%})"
            context.notes.insert(place, f"FLOPs for the calibration inputs: {moved}")
        self._approximation.settle(self._approximation.measure(context.model) if keep else self._approximation.spent)

    def _shorten(self, axis: FreeAxis, mask: Mask) -> tuple[int, Evidence]:
        evidence = shorten_checked(self._axes, axis, mask, Journal(self._axes.graph), check=self._checked)
        if not self._checked:
            evidence = Evidence("types" if self._context.verify != "off" else "none")
        return int(mask.sum()), evidence

    def _note(self, text: str) -> None:
        self._context.notes.append(text)


def _is_protected(axis: FreeAxis, patterns: Sequence[str]) -> bool:
    names = [axis.name, *(m.weight for m in axis.members)]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
