"""A sampling program as sessions that Python runs row by row, with the live tensors bound in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.backends.ort_compiled import RunError
from graphopt.backends.ort_residents import Residents
from graphopt.backends.ort_settings import Settings
from graphopt.backends.ort_step import input_name, step_model
from graphopt.backends.ort_values import from_ort, to_ort
from graphopt.backends.program_rows import calling_rows
from graphopt.ir.onnx.dtypes import DATA_TYPES
from graphopt.ir.weights import Array
from graphopt.program.body import Feed, Unit
from graphopt.program.program import Program
from graphopt.program.runner import timestep_table


class ProgramSessions:
    """One session for each prologue and table and for each body's step, in which the update is fused.

    Nothing of a request is kept: prologues and tables are evaluated anew in every run.
    """

    def __init__(
        self,
        program: Program,
        models: Mapping[tuple[str, str], ir.Model],
        tables: Mapping[str, Sequence[Array]],
        settings: Settings,
        *,
        low_memory: bool = False,
    ) -> None:
        """
        Args:
            models: the program's graphs, by body and unit name.
            tables: those that are constants, by body.
            settings: of every session.
            low_memory: whether sessions are open for one body at a time: each time that rows go over to another one,
                the sessions of the one before are closed and then those of the next opened.
        """
        self._program = program
        self._tables = {name: [[to_ort(row) for row in array] for array in table] for name, table in tables.items()}
        self._sessions = Residents(
            {
                (name, kind): partial(step_model, program, name, models) if kind == "step" else partial(_given, model)
                for name in dict.fromkeys(program.calls)
                for kind, model in ((k, m) for (n, k), m in models.items() if n == name)
                if kind != "table" or name not in tables
            },
            settings,
            one_body=low_memory,
        )

    def run(
        self,
        sample: Array,
        branches: Sequence[Mapping[str, Array]],
        step_noise: Array,
        scale: Array | None,
        callback: Callable[[int, Array], Array | None] | None,
    ) -> Array:
        """The final sample.

        Args:
            sample: of the scale of the first row.
            branches: the conditions of each call of the denoiser, as it sees them.
            step_noise: the used draws.
            scale: of the guidance.
            callback: called with every row and its sample, which is its own to keep; may return another sample.

        Raises:
            RunError: onnxruntime failed.
        """
        run = _Run(self._program, self._sessions, self._tables, branches, step_noise, scale)
        return run.over_rows(sample, callback)


class _Run:
    """One run: what is known before the loop, the live tensors twice, and a binding for each way between them."""

    def __init__(
        self,
        program: Program,
        sessions: Residents,
        tables: Mapping[str, Sequence[Sequence[Any]]],
        branches: Sequence[Mapping[str, Array]],
        step_noise: Array,
        scale: Array | None,
    ) -> None:
        self._program = program
        self._sessions = sessions
        self._tables = tables
        self._row = np.zeros((), dtype=np.int64)
        self._always = {"row": to_ort(self._row)}
        if len(step_noise):
            self._always["step_noise"] = to_ort(step_noise)
        if scale is not None:
            self._always["guidance_scale"] = to_ort(scale)
        self._conditions = [{name: to_ort(array) for name, array in branch.items()} for branch in branches]
        self._prologue: dict[tuple[str, int], Sequence[Any]] = {}
        self._table: dict[tuple[str, int, int], Sequence[Any]] = {}
        self._prepared: set[str] = set()
        self._bindings: dict[tuple[str, int], Any] = {}

    def _enter(self, name: str) -> None:
        """Rows go over to a body: what is known before them is evaluated when that is for the first time."""
        if self._sessions.one_body:
            self._bindings.clear()  # each of them keeps its session open
            self._sessions.enter(name)
        if name not in self._prepared:
            self._prepared.add(name)
            for branch in range(len(self._conditions)):
                self._prepare(name, branch)

    def _prepare(self, name: str, branch: int) -> None:
        body = self._program.bodies[name]
        if body.prologue is not None:
            self._prologue[name, branch] = self._evaluate(name, "prologue", body.prologue, branch, None)
        rows = calling_rows(self._program, name)
        if name in self._tables:
            for place, row in enumerate(rows):
                self._table[name, branch, row] = [column[place] for column in self._tables[name]]
        elif body.table is not None and body.batched:
            times = to_ort(timestep_table(self._program, rows))
            stacked = [from_ort(value) for value in self._evaluate(name, "table", body.table, branch, times)]
            for place, row in enumerate(rows):
                self._table[name, branch, row] = [to_ort(column[place, ...]) for column in stacked]
        elif body.table is not None:
            for row, timestep in zip(rows, timestep_table(self._program, rows), strict=True):
                self._table[name, branch, row] = self._evaluate(name, "table", body.table, branch, to_ort(timestep))

    def _evaluate(self, name: str, kind: str, unit: Unit, branch: int, timestep: Any) -> Sequence[Any]:
        session = self._sessions.session(name, kind)
        feeds = [timestep if f.kind == "timestep" else self._value(name, branch, 0, f) for f in unit.feeds]
        inputs = dict(zip((a.name for a in session.get_inputs()), feeds, strict=True))
        names = [a.name for a in session.get_outputs()]
        results: Sequence[Any] = _run(lambda: session.run_with_ort_values(names, inputs))
        return results

    def _value(self, name: str, branch: int, row: int, feed: Feed) -> Any:
        match feed.kind:
            case "condition":
                return self._conditions[branch][feed.name]
            case "prologue":
                return self._prologue[name, branch][feed.index]
        return self._table[name, branch, row][feed.index]

    def over_rows(self, sample: Array, callback: Callable[[int, Array], Array | None] | None) -> Array:
        live = self._program.schedule.live_tensors
        now, later = ([np.zeros(sample.shape, sample.dtype) for _ in range(live)] for _ in range(2))
        self._states = (now, later)
        now[0][...] = sample
        for row, name in enumerate(self._program.calls):
            if row == 0 or name != self._program.calls[row - 1]:
                self._enter(name)
            self._row[...] = row
            binding = self._binding(name, row % 2)
            self._bind(binding, name, row, "table")
            _run(partial(self._sessions.session(name, "step").run_with_iobinding, binding))
            result = self._states[(row + 1) % 2][0]
            if callback is not None and (changed := callback(row, result.copy())) is not None:
                result[...] = changed
        return self._states[len(self._program.calls) % 2][0]

    def _binding(self, name: str, parity: int) -> Any:
        """From one set of live tensors to the other, with everything bound that is the same in every row."""
        if (name, parity) not in self._bindings:
            binding = self._sessions.session(name, "step").io_binding()
            for key, value in self._always.items():
                binding.bind_ortvalue_input(key, value)
            self._bind(binding, name, 0, "condition")
            self._bind(binding, name, 0, "prologue")
            for index, (old, new) in enumerate(zip(self._states[parity], self._states[1 - parity], strict=True)):
                element = int(DATA_TYPES[old.dtype.name])
                binding.bind_input(f"state_{index}", "cpu", 0, element, old.shape, old.ctypes.data)
                binding.bind_output(f"state_{index}_after", "cpu", 0, element, new.shape, new.ctypes.data)
            self._bindings[name, parity] = binding
        return self._bindings[name, parity]

    def _bind(self, binding: Any, name: str, row: int, kind: str) -> None:
        for branch in range(len(self._conditions)):
            for feed in dict.fromkeys(self._program.bodies[name].step.feeds):
                if feed.kind == kind:
                    binding.bind_ortvalue_input(input_name(branch, feed), self._value(name, branch, row, feed))


def _given(model: ir.Model) -> ir.Model:
    return model


def _run(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # onnxruntime raises a class of its own for each of its status codes
        raise RunError(f"onnxruntime failed while it ran the program: {error}") from error
