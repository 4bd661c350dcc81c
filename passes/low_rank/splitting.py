"""Writing a plan: into a copy to measure it, into single layers to compare them, into the model to keep it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.graph import CannotEmit, Graph
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.passes.low_rank.activations import INPUTS_AT_ONCE, activations
from graphopt.passes.low_rank.candidates import Candidate, Choices
from graphopt.passes.low_rank.choice import Plan
from graphopt.passes.low_rank.layers import Layer, node_called
from graphopt.rewrite.contract import Approximate, Rounding
from graphopt.rewrite.driver import write_match
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.rule import Match, Refused
from graphopt.verify.execute import Runner, model_runner

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context
    from graphopt.verify.approximation import Approximation


class Splitter:
    """Applies chains to the model of one run, or to copies of it."""

    def __init__(self, context: Context, approximation: Approximation, choices: Sequence[Choices]) -> None:
        self.context = context
        self.approximation = approximation
        self.layers = {c.layer.name: c.layer for c in choices}
        self.kept: set[str] = set()
        """Layers that were split."""
        self._measured: dict[Hashable, float] = {}

    def measure(self, plan: Plan) -> float:
        """The budget's metric of the model with `plan`. A plan is measured once: a program is sampled for that."""
        return self._once("held out", plan, self.approximation.measure)

    def measure_tuning(self, plan: Plan) -> float:
        """The same on the tuning data."""
        return self._once("tuning", plan, self.approximation.measure_tuning)

    def _once(self, part: str, plan: Plan, measure: Callable[[Model], float]) -> float:
        key = part, frozenset(self.kept), frozenset(plan.items())
        if key not in self._measured:
            self._measured[key] = measure(self._trial(plan))
        return self._measured[key]

    def _trial(self, plan: Plan) -> Model:
        """A copy of the model with `plan`."""
        trial = self.context.model.copy()
        for name, candidate in plan.items():
            write(trial.main, self.layers[name], candidate)
        return trial

    def apply(self, plan: Plan) -> None:
        """Split the layers of `plan`, each verified on its own. Where one is undone, the rest is measured anew."""
        pending = dict(plan)
        for name, candidate in plan.items():
            del pending[name]
            if self.context.ledger.exhausted:
                return
            self._split(self.layers[name], candidate)
            if name not in self.kept and not candidate.exact and pending and not self._fits(pending):
                pending = {n: c for n, c in pending.items() if c.exact}
                self.context.notes.append(f"{name} was undone, and without it the rest does not fit the budget")
                self.apply(pending)
                return

    def _fits(self, plan: Plan) -> bool:
        return self.measure(plan) <= self.approximation.limit

    def _split(self, layer: Layer, candidate: Candidate) -> None:
        graph = self.context.model.main
        split = candidate.split(layer)
        # Sums of infinities that are taken apart are NaN.
        contract = Rounding(special=False) if candidate.exact else Approximate(self.approximation.metric)
        rule = split.rule(contract)
        node = node_called(graph, layer.name)
        match = rule.match(graph, node)
        assert isinstance(match, Match)
        application, _ = self.context.editor(graph).apply(
            rule.name,
            contract,
            [node],
            lambda journal: write_match(rule, match, [node], journal),
            rule=rule,
            match=match,
            declared={match.bindings.values["w"]: split.declared(match)},
        )
        if application.status == "kept":
            self.kept.add(layer.name)

    def errors(self, plan: Plan) -> dict[str, float]:
        """For each layer of `plan`, |y' - y| / |y - b| of its own outputs on the tuning data, run natively: y before
        and y' after, both from the inputs that the layer has in the model as it is."""
        found: dict[str, float] = {}
        names = list(plan)
        for start in range(0, len(names), INPUTS_AT_ONCE):
            some = names[start : start + INPUTS_AT_ONCE]
            found.update(self._errors({name: plan[name] for name in some}))
        return found

    def _errors(self, plan: Plan) -> dict[str, float]:
        model, pairs = self.context.model, {}
        for name, candidate in plan.items():
            pairs[name] = alone(model, self.layers[name]), alone(model, self.layers[name], candidate)
        sums = {name: np.zeros(2) for name in plan}
        values = list(dict.fromkeys(self.layers[name].x for name in plan))
        batches = activations(model, values, self.approximation.feeds)
        for arrays, weight in zip(batches, self.approximation.weights, strict=True):
            fed = dict(zip(values, arrays, strict=True))
            for name, (before, after) in pairs.items():
                x = fed[self.layers[name].x]
                (y,), (other,) = before([x]), after([x])
                sums[name] += weight * squares(self.layers[name], y, other)
        return {name: relative(both) for name, both in sums.items()}


def squares(layer: Layer, y: Array, other: Array) -> Array:
    """|y' - y|^2 and |y - b|^2."""
    wide = y.astype(np.float64)
    error = np.sum(np.square(other.astype(np.float64) - wide))
    if layer.bias is not None:
        bias = layer.bias.numpy().astype(np.float64)
        wide = wide - (bias.reshape(-1, *[1] * (wide.ndim - 2)) if layer.op == "conv" else bias)
    return np.asarray([error, np.sum(np.square(wide))])


def relative(sums: Array) -> float:
    """|y' - y| / |y - b| of their squares."""
    return float(np.sqrt(sums[0] / sums[1])) if sums[0] != 0.0 else 0.0


def alone(model: Model, layer: Layer, candidate: Candidate | None = None) -> Runner:
    """A layer of `model` as it is, or as a chain, run natively on what it reads."""
    graph = model.main
    part = model.extract([node_called(graph, layer.name)], [layer.x], [layer.out])
    if candidate is not None:
        write(part.main, layer, candidate)
        part.refresh()
    return model_runner(part)


def write(graph: Graph, layer: Layer, candidate: Candidate) -> None:
    """Split a layer of a copy, unverified. What cannot be written stays as it is, as it will in the model."""
    rule = candidate.split(layer).rule(Approximate())
    node = node_called(graph, layer.name)
    match = rule.match(graph, node)
    assert isinstance(match, Match)
    with suppress(CannotEmit, Refused), Journal(graph) as journal:
        write_match(rule, match, [node], journal)
