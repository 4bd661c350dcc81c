"""The graphs of a sampling program as functions that share their weights, each op of them held against torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.export.exported_program import ExportedProgram

from graphopt.backends.program_rows import called_bodies, calling_rows
from graphopt.backends.xla.conformance import Conformance
from graphopt.backends.xla.function import decomposed, function_of
from graphopt.backends.xla.loop import RunUnit
from graphopt.backends.xla.tensor_parallel import divided_dims
from graphopt.backends.xla.weights import weight_names, weights_of
from graphopt.ir.fx.tensors import tensor_identity, to_torch
from graphopt.program.body import Body, Known
from graphopt.program.program import Program
from graphopt.program.requests import draw_request
from graphopt.program.runner import concatenate, timestep_table


class Units:
    """The graphs of the bodies that rows call."""

    def __init__(self, program: Program) -> None:
        """
        Raises:
            UnsupportedError: ops without a kernel, or a buffer that a graph writes.
        """
        self._program = program
        self._graphs = {
            (body, name): decomposed(_exported(unit.model))
            for body, held in called_bodies(program).items()
            for name, unit in held.units()
        }
        self._models = {key: getattr(program.bodies[key[0]], key[1]).model for key in self._graphs}
        places: dict[object, int] = {}
        self.weights: list[torch.Tensor] = []
        """What the graphs read, each tensor once whatever number of them reads it."""
        self.functions: dict[tuple[str, str], RunUnit] = {}
        """Of all weights and the unit's inputs, by body and unit name."""
        self._places: dict[tuple[str, str], list[int]] = {}
        for key, graph in self._graphs.items():
            tensors = weights_of(graph)
            for tensor in tensors:
                if places.setdefault(tensor_identity(tensor), len(places)) == len(self.weights):
                    self.weights.append(tensor)
            self._places[key] = [places[tensor_identity(tensor)] for tensor in tensors]
            self.functions[key] = partial(_run, function_of(graph), self._places[key])

    def divided(self, parts: int) -> list[int | None]:
        """The dimension along which each of `weights` may be divided into `parts`; None for what stays whole."""
        found: list[int | None] = [None] * len(self.weights)
        for key, graph in self._graphs.items():
            dims = divided_dims(self._models[key].main, parts) if parts > 1 else {}
            for place, name in zip(self._places[key], weight_names(graph), strict=True):
                found[place] = dims.get(name) if found[place] is None else found[place]
        return found

    def check(self) -> int:
        """Compare every op with torch's, on drawn conditions and noise; how many were, of distinct sizes.

        Raises:
            UnsupportedError: an op differs, naming it, its operands and by how much.
        """
        program, checked = self._program, Conformance()
        guided = program.guidance is not None
        request = draw_request(program, seed=0)
        given = {name: to_torch(array) for name, array in request.conditions.items()}
        conditions = program.interface.branches(given, concatenate, guided=guided)[-1]
        noise = to_torch(request.noise)
        sample = torch.cat([noise, noise]) if program.interface.doubled else noise
        for name, body in called_bodies(program).items():
            self._check_body(checked, name, body, Known(conditions, sample=sample))
        checked.compare()
        return len(checked.seen)

    def _check_body(self, checked: Conformance, name: str, body: Body, known: Known) -> None:
        """Its units in their order, on what the earlier ones give."""
        times = to_torch(timestep_table(self._program, calling_rows(self._program, name)))
        known = replace(known, timestep=times[0])

        def run(unit: str, known: Known) -> list[torch.Tensor]:
            return checked.run(self._graphs[name, unit], known.feeds(getattr(body, unit)))

        if body.prologue is not None:
            known = replace(known, prologue=run("prologue", known))
        if body.table is not None and body.batched:
            known = replace(known, table=[stack[0] for stack in run("table", replace(known, timestep=times))])
        elif body.table is not None:
            known = replace(known, table=run("table", known))
        run("step", known)


def _exported(model: Any) -> ExportedProgram:
    program: ExportedProgram = model.program()
    return program


def _run(function: Any, places: Sequence[int], weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
    results: list[Any] = function([weights[place] for place in places], inputs)
    return results
