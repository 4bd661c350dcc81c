"""The branches of a program's guidance as ONNX values: which inputs each call of the denoiser reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.backends.ort_builder import Builder, inline, new_input
from graphopt.backends.program_inputs import require_names
from graphopt.backends.program_rows import called_bodies
from graphopt.ir.graph import TensorType
from graphopt.program.body import Feed, Unit
from graphopt.program.interface import NEGATIVE
from graphopt.program.program import Program


@dataclass(eq=False)
class Branch:
    """What is known to one call of the denoiser before the loop."""

    conditions: Mapping[str, ir.Value]
    prologue: dict[str, Mapping[int, ir.Value]] = field(default_factory=dict)
    """The results of the prologue by body and number."""
    table: dict[str, Mapping[int, ir.Value]] = field(default_factory=dict)
    """The results of the table by body and number: for one row, or stacked for all rows that call the body."""


class Parts:
    """The units' models as they are inlined, and where their inputs come from."""

    def __init__(self, models: Mapping[tuple[str, str], ir.Model]) -> None:
        """`models`: by body and unit name."""
        self._models = models

    def call(
        self,
        key: tuple[str, str],
        unit: Unit,
        branches: Sequence[Branch],
        value: Callable[[Feed, Branch], ir.Value],
        into: ir.Graph,
    ) -> list[list[ir.Value]]:
        """The unit inlined once for each branch, with one set of weights; returns the outputs of each."""
        model, weights, scope = self._models[key], dict[str, ir.Value](), "/".join(key)
        places = input_places(model)
        results = []
        for number, branch in enumerate(branches):
            feeds = {place: value(feed, branch) for place, feed in zip(places, unit.feeds, strict=True)}
            own = scope if len(branches) == 1 else f"{scope}/{number}"
            results.append(inline(model, feeds, into, own, weights))
        return results


def input_places(model: ir.Model) -> list[int]:
    """Positions of the inputs of a model's graph that are no constants."""
    old = (model.ir_version or 0) < 4
    return [i for i, value in enumerate(model.graph.inputs) if not (old and value.is_initializer())]


def feed_value(feed: Feed, branch: Branch, body: str, sample: ir.Value | None, timestep: ir.Value) -> ir.Value:
    """The value of one input of a unit of `body`."""
    match feed.kind:
        case "sample":
            assert sample is not None
            return sample
        case "timestep":
            return timestep
        case "condition":
            return branch.conditions[feed.name]
        case "prologue":
            return branch.prologue[body][feed.index]
    return branch.table[body][feed.index]


def condition_inputs(program: Program, builder: Builder) -> list[Branch]:
    """Declare the conditions as inputs of the graph, in the order of the interface.

    Raises:
        UnsupportedError: a condition has the name of another input or output.
    """
    require_names(program)
    conditions = program.interface.conditions
    own = {c.name: new_input(builder.graph, c.name, c.type) for c in conditions}
    if program.guidance is None:
        return [Branch(own)]
    negative = {
        c.name: new_input(builder.graph, NEGATIVE + c.name, c.type) if c.branched else own[c.name] for c in conditions
    }
    if not program.interface.doubled:
        return [Branch(negative), Branch(own)]
    both = {
        c.name: builder.op("Concat", negative[c.name], own[c.name], axis=0) if c.branched else own[c.name]
        for c in conditions
    }
    return [Branch(both)]


def evaluate_prologues(program: Program, parts: Parts, builder: Builder, branches: Sequence[Branch]) -> None:
    """Inline the prologue of every body and note its results in the branches."""
    for name, body in called_bodies(program).items():
        if body.prologue is None:
            continue
        results = parts.call(
            (name, "prologue"), body.prologue, branches, lambda f, b: b.conditions[f.name], builder.graph
        )
        for branch, outputs in zip(branches, results, strict=True):
            branch.prologue[name] = dict(enumerate(outputs))


def output_types(unit: Unit) -> list[TensorType | None]:
    """The types of a unit's outputs, as far as they are known."""
    main = unit.model.main
    return [main.type(value) for value in main.outputs()]
