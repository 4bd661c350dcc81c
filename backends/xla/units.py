"""The graphs of a sampling program as functions that share their weights, each op of them held against the runtime of
its storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from graphopt.backends.program_rows import called_bodies, calling_rows
from graphopt.backends.xla.loop import RunUnit
from graphopt.backends.xla.unit_graphs import Checked, UnitGraph, Weight, unit_graph, weight_identity
from graphopt.errors import UnsupportedError
from graphopt.ir.graph import TensorType
from graphopt.ir.weights import Array, numpy_dtype
from graphopt.program.body import Body, Known
from graphopt.program.program import Program
from graphopt.program.requests import draw_request
from graphopt.program.runner import concatenate, timestep_table

Walk = Callable[[str, list[Array]], Sequence[Array]]
"""What a walk along a body makes of a unit, by its name, and its inputs: results that later units may take."""


class Units:
    """The graphs of the bodies that rows call."""

    def __init__(self, program: Program) -> None:
        """
        Raises:
            UnsupportedError: ops without a kernel or outside of the vocabulary, or a buffer that a graph writes.
        """
        self._program = program
        self._graphs: dict[tuple[str, str], UnitGraph] = {}
        self._walk(self._read)
        places: dict[object, int] = {}
        self.weights: list[Weight] = []
        """What the graphs read, each tensor once whatever number of them reads it."""
        self.names: list[str] = []
        """Theirs, as in "denoiser/step/conv.weight": by the first graph that reads them."""
        self.functions: dict[tuple[str, str], RunUnit] = {}
        """Of all weights and the unit's inputs, by body and unit name."""
        self._places: dict[tuple[str, str], list[int]] = {}
        for key, graph in self._graphs.items():
            for name, weight in zip(graph.names, graph.weights, strict=True):
                if places.setdefault(weight_identity(weight), len(places)) == len(self.weights):
                    self.weights.append(weight)
                    self.names.append("/".join((*key, name)))
            self._places[key] = [places[weight_identity(weight)] for weight in graph.weights]
            self.functions[key] = partial(_run, graph.function, self._places[key])

    def divided(self, parts: int) -> list[int | None]:
        """The dimension along which each of `weights` may be divided into `parts`; None for what stays whole."""
        found: list[int | None] = [None] * len(self.weights)
        for key, graph in self._graphs.items() if parts > 1 else ():
            for place, dim in zip(self._places[key], graph.divided(parts), strict=True):
                found[place] = dim if found[place] is None else found[place]
        return found

    def check(self) -> int:
        """Compare every op with that of torch or onnxruntime, on drawn conditions and noise; how many were, of distinct
        sizes.

        Raises:
            UnsupportedError: an op differs, naming it, its operands and by how much.
        """
        checked = Checked()
        self._walk(lambda name, unit, feeds: self._graphs[name, unit].check(checked, feeds))
        checked.torch.compare()
        return len(checked)

    def _read(self, name: str, unit: str, feeds: list[Array]) -> list[Array]:
        """The graph of a unit is read at the sizes of `feeds`; zeros of the types of its results."""
        model = getattr(self._program.bodies[name], unit).model
        graph = self._graphs[name, unit] = unit_graph(model, feeds)
        return [] if unit == "step" else [_zeros(type_, f"{name}/{unit}") for type_ in graph.result_types()]

    def _walk(self, run: Callable[[str, str, list[Array]], Sequence[Array]]) -> None:
        """`run(body, unit, inputs)` for every unit, of drawn conditions and noise and the results of earlier units."""
        program = self._program
        request = draw_request(program, seed=0)
        guided = program.guidance is not None
        conditions = program.interface.branches(request.conditions, concatenate, guided=guided)[-1]
        noise = request.noise
        sample = np.concatenate([noise, noise]) if program.interface.doubled else noise
        for name, body in called_bodies(program).items():
            self._walk_body(name, body, Known(conditions, sample=sample), partial(run, name))

    def _walk_body(self, name: str, body: Body, known: Known, run: Walk) -> None:
        """Its units in their order."""
        times = timestep_table(self._program, calling_rows(self._program, name))
        known = replace(known, timestep=times[0, ...])
        if (prologue := body.prologue) is not None:
            known = replace(known, prologue=run("prologue", known.feeds(prologue)))
        if (table := body.table) is not None and body.batched:
            stacks = run("table", replace(known, timestep=times).feeds(table))
            known = replace(known, table=[stack[0, ...] for stack in stacks])
        elif table is not None:
            known = replace(known, table=run("table", known.feeds(table)))
        run("step", known.feeds(body.step))


def _zeros(type_: TensorType | None, unit: str) -> Array:
    sizes = [d for d in (type_.shape if type_ is not None else None) or () if isinstance(d, int)]
    if type_ is None or type_.shape is None or len(sizes) < len(type_.shape):
        raise UnsupportedError(f"backend 'xla': a result of {unit} is {type_}, and its sizes have to be known")
    return np.zeros(sizes, numpy_dtype(type_.dtype))


def _run(function: Any, places: Sequence[int], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    results: list[Any] = function([weights[place] for place in places], inputs)
    return results
