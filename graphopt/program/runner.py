"""Running a program row by row, whatever runs its graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from graphopt.errors import ModelError
from graphopt.ir.graph import TensorType
from graphopt.program.body import Body, Feed
from graphopt.program.executor import next_state, noise_source
from graphopt.program.guidance import combine
from graphopt.program.interface import require_type
from graphopt.program.program import Program

RunUnit: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]
"""A unit's outputs for its inputs, in order."""
Units: TypeAlias = Mapping[tuple[str, str], RunUnit]
"""By body and unit name: ("denoiser", "step")."""


class Runner:
    """A program as a callable; see `Program.__call__` for its arguments. Holds nothing of a request: conditions are
    evaluated anew at every call, so a result can never be stale."""

    def __init__(self, program: Program, units: Units, arrays: str) -> None:
        """
        Args:
            program: what is run.
            units: what runs its graphs.
            arrays: the kind of arrays that `units` take and return: "torch" or "numpy".
        """
        self.program = program
        self._units = units
        self._to_own = to_torch if arrays == "torch" else to_numpy

    def __call__(
        self,
        noise: Any,
        generator: Any = None,
        *,
        guidance_scale: float | None = None,
        callback: Callable[[int, Any], Any] | None = None,
        **conditions: Any,
    ) -> Any:
        check_sample(self.program.interface.sample, noise)
        return self.run(
            noise * self.program.schedule.init_noise_sigma,
            generator,
            guidance_scale=guidance_scale,
            callback=callback,
            **conditions,
        )

    def run(
        self,
        sample: Any,
        generator: Any = None,
        *,
        guidance_scale: float | None = None,
        callback: Callable[[int, Any], Any] | None = None,
        **conditions: Any,
    ) -> Any:
        """As calling it, from a `sample` that has the scale of the first row already (image to image)."""
        program = self.program
        check_sample(program.interface.sample, sample)
        check_scale(program, guidance_scale)
        guided = program.guidance is not None
        given = program.interface.gather(conditions, guided=guided)
        own = {name: self._to_own(value) for name, value in given.items()}
        branches = program.interface.branches(own, concatenate, guided=guided)
        request = _Request(self, branches, guidance_scale)
        schedule = program.schedule
        state: list[Any] = [self._to_own(sample)] + [None] * (schedule.live_tensors - 1)
        draws = noise_source(schedule, state[0], generator, None)
        for row in range(len(schedule)):
            prediction = request.predict(row, state[0] * float(schedule.input_scale[row]))
            noise = [next(draws) for _ in range(int(schedule.draws[row]))]
            state = next_state(schedule, row, state, prediction, noise)
            if callback is not None:
                changed = callback(row, _copy(like(sample, state[0])))
                if changed is not None:
                    check_sample(program.interface.sample, changed)
                    state[0] = self._to_own(changed)
        return like(sample, state[0])


class _Request:
    """One call of a runner: prologues and tables evaluated, rows to come."""

    def __init__(self, runner: Runner, branches: Sequence[dict[str, Any]], scale: float | None) -> None:
        self._runner = runner
        self._program = runner.program
        self._branches = branches
        guidance = self._program.guidance
        self._scale = scale if scale is not None or guidance is None else guidance.scale
        self._prepared: dict[tuple[str, int], tuple[Sequence[Any], dict[int, Sequence[Any]]]] = {}
        for name in dict.fromkeys(self._program.calls):
            for number, conditions in enumerate(branches):
                self._prepared[name, number] = self._prepare(name, self._program.bodies[name], conditions)

    def _prepare(self, name: str, body: Body, conditions: dict[str, Any]) -> tuple[Sequence[Any], dict[int, Any]]:
        units = self._runner._units
        prologue: Sequence[Any] = ()
        tables: dict[int, Any] = {}
        if body.prologue is not None:
            feeds = [conditions[f.name] for f in body.prologue.feeds]
            prologue = units[name, "prologue"](feeds)
        if body.table is not None:
            rows = [row for row, called in enumerate(self._program.calls) if called == name]
            if body.batched:
                times = self._runner._to_own(timestep_table(self._program, rows))
                feeds = [self._value(f, 0, None, conditions, prologue, (), times) for f in body.table.feeds]
                stacked = units[name, "table"](feeds)
                return prologue, {row: [column[place, ...] for column in stacked] for place, row in enumerate(rows)}
            for row in rows:
                feeds = [self._value(f, row, None, conditions, prologue, ()) for f in body.table.feeds]
                tables[row] = units[name, "table"](feeds)
        return prologue, tables

    def predict(self, row: int, x: Any) -> Any:
        """The guided prediction for the scaled sample of a row."""
        program = self._program
        doubled = program.interface.doubled
        seen = concatenate([x, x]) if doubled else x
        results = [self._call(row, number, seen) for number in range(len(self._branches))]
        if program.guidance is None:
            return results[0]
        if doubled:
            half = x.shape[0]
            results = [results[0][:half], results[0][half:]]
        assert self._scale is not None
        return combine(results[0], results[1], self._scale, program.guidance.rescale)

    def _call(self, row: int, branch: int, x: Any) -> Any:
        program = self._program
        name = program.calls[row]
        prologue, tables = self._prepared[name, branch]
        feeds = [
            self._value(f, row, x, self._branches[branch], prologue, tables.get(row, ()))
            for f in program.bodies[name].step.feeds
        ]
        prediction = self._runner._units[name, "step"](feeds)[0]
        channels = program.interface.prediction_channels
        return prediction if channels is None else prediction[:, :channels]

    def _value(
        self,
        feed: Feed,
        row: int,
        x: Any,
        conditions: dict[str, Any],
        prologue: Sequence[Any],
        table: Sequence[Any],
        times: Any = None,
    ) -> Any:
        """What a unit reads; `times` is given instead of the row's timestep."""
        match feed.kind:
            case "sample":
                return x
            case "timestep":
                return self._timestep(row) if times is None else times
            case "condition":
                return conditions[feed.name]
            case "prologue":
                return prologue[feed.index]
        return table[feed.index]

    def _timestep(self, row: int) -> Any:
        return self._runner._to_own(timestep_table(self._program, [row])[0, ...])


def timestep_table(program: Program, rows: Sequence[int]) -> np.ndarray[Any, Any]:
    """The timesteps of some rows as the denoiser takes them, stacked along a new first axis."""
    seen, scale = program.interface.seen("timestep"), program.interface.timestep_scale
    return np.stack([timestep_array(seen, float(program.schedule.timesteps[row]), scale) for row in rows])


def timestep_array(type_: TensorType, value: float, scale: float = 1.0) -> np.ndarray[Any, Any]:
    """A timestep as the denoiser takes it."""
    assert type_.shape is not None
    shape = [d for d in type_.shape if isinstance(d, int)]
    return np.full(shape, value * scale, dtype=type_.dtype)


def check_sample(type_: TensorType, sample: Any) -> None:
    """Raise ModelError unless `sample` is of this type."""
    require_type("the initial sample", type_, sample)


def check_scale(program: Program, scale: Any) -> None:
    """Raise ModelError unless `scale` is a guidance scale that `program` takes, or None."""
    if scale is None:
        return
    if program.guidance is None:
        raise ModelError("guidance_scale is given and this program has no guidance; build it with guidance=...")
    if isinstance(scale, bool | str) or not np.isscalar(scale) or not np.isfinite(float(scale)):  # type: ignore[arg-type]
        raise ModelError(f"guidance_scale={scale!r}: expected a finite number")


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value.clone()


def concatenate(parts: Sequence[Any]) -> Any:
    """Along the first axis."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


def to_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value
    from graphopt.ir.fx.tensors import to_numpy as from_torch

    return from_torch(value.detach().cpu())


def to_torch(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        return value
    from graphopt.ir.fx.tensors import to_torch as from_numpy

    return from_numpy(np.asarray(value))


def like(model: Any, value: Any) -> Any:
    """`value` as the kind of array that `model` is."""
    return to_numpy(value) if isinstance(model, np.ndarray) else to_torch(value)
