"""Small approximate passes: they round the weights of linear layers to a grid, one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphopt import Approximate, GraphPass
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.journal import Journal

LAYERS = ("linear", "matmul", "conv")


def layers(graph):
    """The nodes with a constant weight, as calls."""
    for node in list(graph.nodes()):
        call = graph.call(node)
        if call and call.op in LAYERS and graph.constant(call.operands[1]) is not None:
            yield call


def write_rounded(graph, call, grid):
    """What writes `call` with its weight rounded to multiples of `grid`."""

    def write(journal):
        x, w, *others = call.operands
        weight = graph.constant(w).numpy()
        rounded = (np.round(weight.astype(np.float64) / grid) * grid).astype(weight.dtype)
        value = journal.add_constant(ArrayRef(rounded), "rounded")
        types = [graph.type(o) for o in call.outputs]
        new = journal.insert(call.op, [x, value, *others], call.fields, before=call.node, types=types)
        journal.replace(call.outputs[0], new[0])
        journal.doom([call.node])

    return write


def copied(model):
    main = model.main
    return model.extract(list(main.nodes()), main.inputs(), main.outputs())


@dataclass(frozen=True)
class RoundWeights(GraphPass):
    """Rounds every layer for which the budget allows it, the first ones first."""

    name: ClassVar[str] = "round-weights"
    contract: ClassVar[str] = "Approximate: the user's metric stays within the user's budget"

    grid: float = 0.1

    def run(self, context):
        approximation = context.approximation(self)
        for position in range(len(list(layers(context.model.main)))):
            trial = copied(context.model)
            self.round(trial.main, position)
            if approximation.measure(trial) <= approximation.limit and not context.ledger.exhausted:
                graph = context.model.main
                call = list(layers(graph))[position]
                contract = Approximate(approximation.metric)
                context.editor(graph).apply(
                    "round-layer", contract, [call.node], write_rounded(graph, call, self.grid)
                )
        approximation.settle(approximation.measure(context.model))

    def round(self, graph, position):
        journal = Journal(graph)
        write_rounded(graph, list(layers(graph))[position], self.grid)(journal)
        journal.commit()


@dataclass(frozen=True)
class Reckless(RoundWeights):
    """Asks for the budget and rounds everything without measuring."""

    name: ClassVar[str] = "reckless"

    def run(self, context):
        context.approximation(self)
        self.round_all(context, self.grid)

    def round_all(self, context, grid):
        graph = context.model.main
        for call in list(layers(graph)):
            if not context.ledger.exhausted:
                write = write_rounded(graph, call, grid)
                context.editor(graph).apply("round-layer", Approximate(), [call.node], write)


@dataclass(frozen=True)
class Unasked(Reckless):
    """Does not even ask for the budget."""

    name: ClassVar[str] = "unasked"

    def run(self, context):
        self.round_all(context, self.grid)
