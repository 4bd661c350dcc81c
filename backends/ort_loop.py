"""A whole sampling program as one ONNX model: prologue, tables, and a Loop over the rows.

Denoisers chosen by timestep have each a Loop over their rows; bodies that take turns are branches within one. The
weights of the denoiser are initialisers of the Loop's body: onnxruntime pre-packs them there, and does not do so for
weights that a body captures from the graph around it (measured: 1.11 of the time).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from graphopt.backends.ort_branches import (
    Branch,
    Parts,
    condition_inputs,
    evaluate_prologues,
    feed_value,
    output_types,
)
from graphopt.backends.ort_builder import Builder, Imports, empty_graph, input_with_default, new_input
from graphopt.backends.ort_row import RowWriter
from graphopt.backends.program_rows import called_bodies, calling_rows
from graphopt.ir.graph import TensorType
from graphopt.ir.weights import Array, numpy_dtype
from graphopt.program.body import Body
from graphopt.program.noise import used_draws
from graphopt.program.program import Program
from graphopt.program.runner import scales_of, timestep_table


def loop_model(
    program: Program, models: Mapping[tuple[str, str], ir.Model], tables: Mapping[str, Sequence[Array]]
) -> ir.Model:
    """The program as one model that any onnxruntime runs.

    Inputs: `noise` (unit normal), the conditions, those of the unconditional branch as `negative_<name>`,
    `step_noise` (every draw that is used, stacked) if rows draw noise, and two that have defaults: `initial_scale`,
    by which the noise is multiplied, and `guidance_scale`, one for each row where the guidance has them so. Output:
    `sample`.

    Args:
        program: a program whose graphs are ONNX.
        models: its graphs, by body and unit name.
        tables: those that are constants, by body; see `graphopt.backends.ort_tables.constant_tables`.

    Raises:
        UnsupportedError: the graphs import different operator sets, or a condition has the name of another input.
    """
    imports = Imports()
    for (body, unit), model in models.items():
        imports.add(f"{body}/{unit}", model)
    graph = _Loop(program, Parts(models), tables).graph()
    return imports.model(graph)


class _Loop:
    def __init__(self, program: Program, parts: Parts, tables: Mapping[str, Sequence[Array]]) -> None:
        self._program = program
        self._parts = parts
        self._tables = tables
        self._sample = program.interface.sample

    def graph(self) -> ir.Graph:
        program, sample = self._program, self._sample
        graph = empty_graph(program.name)
        builder = Builder(graph, "program")
        noise = new_input(graph, "noise", sample)
        branches = condition_inputs(program, builder)
        step_noise = None
        if count := int(used_draws(program.schedule).sum()):
            step_noise = new_input(graph, "step_noise", TensorType(sample.dtype, (count, *(sample.shape or ()))))
        scale = None
        if program.guidance is not None:
            scales = scales_of(program, None)
            default = self._number(scales if program.guidance.varies else scales[0])
            scale = input_with_default(graph, "guidance_scale", default)
        initial = input_with_default(graph, "initial_scale", self._number(program.schedule.init_noise_sigma))
        evaluate_prologues(program, self._parts, builder, branches)
        for name, body in called_bodies(program).items():
            self._evaluate_table(builder, name, body, branches)
        start = builder.op("Mul", noise, initial)
        builder.result(self._over_rows(builder, start, branches, scale, step_noise), "sample", sample)
        return graph

    def _number(self, value: float | Sequence[float]) -> Array:
        return np.asarray(value).astype(numpy_dtype(self._sample.dtype))

    def _evaluate_table(self, builder: Builder, name: str, body: Body, branches: Sequence[Branch]) -> None:
        """Results for all rows that call the body, stacked along a first axis: by one call, or by a Loop."""
        if body.table is None:
            return
        if name in self._tables:
            values = [builder.constant(array, f"{name}/table") for array in self._tables[name]]
            for branch in branches:
                branch.table[name] = dict(enumerate(values))
            return
        scope = f"rows of {name}"
        rows = calling_rows(self._program, name)
        if body.batched:
            times = builder.constant(timestep_table(self._program, rows), f"{name}/timesteps")
            stacks = self._parts.call(
                (name, "table"), body.table, branches, lambda f, b: feed_value(f, b, name, None, times), builder.graph
            )
            for branch, outputs in zip(branches, stacks, strict=True):
                branch.table[name] = dict(enumerate(outputs))
            return
        inner, row = _loop_body(scope)
        times = inner.constant(timestep_table(self._program, rows))
        timestep = inner.op("Gather", times, row, axis=0)
        results = self._parts.call(
            (name, "table"), body.table, branches, lambda f, b: feed_value(f, b, name, None, timestep), inner.graph
        )
        types = output_types(body.table)
        for number, outputs in enumerate(results):
            for index, value in enumerate(outputs):
                inner.result(value, f"{scope}/result_{number}_{index}", types[index])
        loop = builder.node("Loop", [builder.count(len(rows)), None], sum(map(len, results)), {"body": inner.graph})
        stacked = iter(loop.outputs)
        for branch, outputs in zip(branches, results, strict=True):
            branch.table[name] = {index: next(stacked) for index in range(len(outputs))}

    def _over_rows(
        self,
        builder: Builder,
        start: ir.Value,
        branches: Sequence[Branch],
        scale: ir.Value | None,
        step_noise: ir.Value | None,
    ) -> ir.Value:
        """A Loop over the rows of each body, or one over all rows if bodies take turns; returns the final sample."""
        live = self._program.schedule.live_tensors
        state = [start, *(builder.zeros(self._sample) for _ in range(live - 1))]
        for rows, names in _loops(self._program):
            scope = "row" if rows.start == 0 else f"row from {rows.start}"
            inner, number = _loop_body(scope)
            row = number if rows.start == 0 else inner.op("Add", number, inner.count(rows.start))
            before = [new_input(inner.graph, f"{scope}/state_{i}", self._sample) for i in range(live)]
            writer = RowWriter(self._program, inner, row)
            seen, timestep = writer.sample_seen(before[0]), writer.timestep()
            outputs = self._denoise(inner, row, names, branches, seen, timestep)
            after = writer.update(before, writer.predict(outputs, scale), step_noise)
            for index, value in enumerate(after):
                inner.result(value, f"{scope}/state_{index}_after", self._sample)
            count = builder.count(len(rows))
            state = list(builder.node("Loop", [count, None, *state], live, {"body": inner.graph}).outputs)
        return state[0]

    def _denoise(
        self,
        builder: Builder,
        row: ir.Value,
        names: Sequence[str],
        branches: Sequence[Branch],
        seen: ir.Value,
        timestep: ir.Value,
    ) -> Sequence[ir.Value]:
        """The denoiser's output for each branch, by that one of the bodies `names` which the row calls."""
        first, *others = names
        if not others:
            return self._call(builder, row, first, branches, seen, timestep)
        calls = RowWriter(self._program, builder, row).of_row(np.asarray([c == first for c in self._program.calls]))
        bodies = {}
        for side, chosen in (("then_branch", [first]), ("else_branch", others)):
            scope = f"call of {' or '.join(chosen)}"
            inner = Builder(empty_graph(side), scope)
            outputs = self._denoise(inner, row, chosen, branches, seen, timestep)
            type_ = output_types(self._program.bodies[chosen[0]].step)[0]
            for index, value in enumerate(outputs):
                inner.result(value, f"{scope}/result_{index}", type_)
            bodies[side] = inner.graph
        return builder.node("If", [calls], len(branches), bodies).outputs

    def _call(
        self,
        builder: Builder,
        row: ir.Value,
        name: str,
        branches: Sequence[Branch],
        seen: ir.Value,
        timestep: ir.Value,
    ) -> list[ir.Value]:
        """The step of one body, inlined with its weights into the graph of `builder`."""
        place = self._place(builder, name, row) if self._program.bodies[name].table is not None else None
        present = [
            replace(b, table={name: {i: builder.op("Gather", v, place, axis=0) for i, v in b.table[name].items()}})
            if place is not None
            else b
            for b in branches
        ]
        step = self._program.bodies[name].step
        results = self._parts.call(
            (name, "step"), step, present, lambda f, b: feed_value(f, b, name, seen, timestep), builder.graph
        )
        return [outputs[0] for outputs in results]

    def _place(self, builder: Builder, name: str, row: ir.Value) -> ir.Value:
        """Where the row stands among those that call the body."""
        rows = calling_rows(self._program, name)
        if len(rows) == len(self._program.calls):
            return row
        places = np.zeros(len(self._program.calls), dtype=np.int64)
        places[rows] = np.arange(len(rows))
        return RowWriter(self._program, builder, row).of_row(places)


def _loops(program: Program) -> list[tuple[range, list[str]]]:
    """The rows of each Loop and the bodies that they call."""
    names = list(called_bodies(program))
    rows = {name: calling_rows(program, name) for name in names}
    if any(places != list(range(places[0], places[-1] + 1)) for places in rows.values()):
        return [(range(len(program.calls)), names)]
    runs = [(range(places[0], places[-1] + 1), [name]) for name, places in rows.items()]
    return sorted(runs, key=lambda run: run[0].start)


def _loop_body(scope: str) -> tuple[Builder, ir.Value]:
    """The body of a Loop that never ends early, and the number of the iteration."""
    graph = empty_graph(scope)
    builder = Builder(graph, scope)
    number = new_input(graph, f"{scope}/number", TensorType("int64", ()))
    going_on = new_input(graph, f"{scope}/going_on", TensorType("bool", ()))
    builder.result(going_on, f"{scope}/go_on", TensorType("bool", ()))
    return builder, number
