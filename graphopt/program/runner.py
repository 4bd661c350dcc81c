"""Running a program row by row, whatever runs its graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from graphopt.errors import ModelError
from graphopt.ir.graph import TensorType
from graphopt.program.body import Body, Known
from graphopt.program.executor import next_state, noise_source
from graphopt.program.guidance import Scale, combine, is_number, row_scales
from graphopt.program.interface import require_type
from graphopt.program.program import Program

RunUnit: TypeAlias = Callable[[Sequence[Any]], Sequence[Any]]
"""A unit's outputs for its inputs, in order."""
Units: TypeAlias = Mapping[tuple[str, str], RunUnit]
"""By body and unit name: ("denoiser", "step")."""
Observe: TypeAlias = Callable[[str, str, Sequence[int], Sequence[Any]], None]
"""Told of every run of a unit: body and unit name, the rows that the run is for, and what the unit is fed."""


class Runner:
    """A program as a callable; see `Program.__call__` for its arguments. Holds nothing of a request: conditions are
    evaluated anew at every call, so a result can never be stale."""

    def __init__(self, program: Program, units: Units, arrays: str, observe: Observe | None = None) -> None:
        """
        Args:
            program: what is run.
            units: what runs its graphs.
            arrays: the kind of arrays that `units` take and return: "torch" or "numpy".
            observe: is told of every run of a unit, before it.
        """
        self.program = program
        self._observe = observe
        self._units = units
        self._to_own = to_torch if arrays == "torch" else to_numpy

    def __call__(
        self,
        noise: Any,
        generator: Any = None,
        *,
        guidance_scale: Scale | None = None,
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
        guidance_scale: Scale | None = None,
        callback: Callable[[int, Any], Any] | None = None,
        **conditions: Any,
    ) -> Any:
        """As calling it, from a `sample` that has the scale of the first row already (image to image)."""
        program = self.program
        check_sample(program.interface.sample, sample)
        check_callback(callback)
        scales = scales_of(program, guidance_scale)
        guided = program.guidance is not None
        given = program.interface.gather(conditions, guided=guided)
        own = {name: self._to_own(value) for name, value in given.items()}
        branches = program.interface.branches(own, concatenate, guided=guided)
        request = _Request(self, branches, scales)
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
                    check_sample(program.interface.sample, changed, CALLED_BACK)
                    state[0] = self._to_own(changed)
        return like(sample, state[0])


class _Request:
    """One call of a runner: prologues and tables evaluated, rows to come."""

    def __init__(self, runner: Runner, branches: Sequence[dict[str, Any]], scales: Sequence[float]) -> None:
        self._runner = runner
        self._program = runner.program
        self._branches = branches
        self._scales = scales
        self._prologues: dict[tuple[str, int], Sequence[Any]] = {}
        self._tables: dict[tuple[int, int], Sequence[Any]] = {}
        """By row and branch."""
        for name in dict.fromkeys(self._program.calls):
            for branch in range(len(branches)):
                self._prepare(name, self._program.bodies[name], branch)

    def _prepare(self, name: str, body: Body, branch: int) -> None:
        known = Known(self._branches[branch])
        rows = [row for row, called in enumerate(self._program.calls) if called == name]
        if body.prologue is not None:
            known = replace(known, prologue=self._run(name, "prologue", rows, known.feeds(body.prologue)))
        self._prologues[name, branch] = known.prologue
        if body.table is not None and body.batched:
            all_rows = replace(known, timestep=self._runner._to_own(timestep_table(self._program, rows)))
            stacked = self._run(name, "table", rows, all_rows.feeds(body.table))
            self._tables |= {(row, branch): [c[place, ...] for c in stacked] for place, row in enumerate(rows)}
        elif body.table is not None:
            for row in rows:
                feeds = replace(known, timestep=self._timestep(row)).feeds(body.table)
                self._tables[row, branch] = self._run(name, "table", [row], feeds)

    def _run(self, body: str, unit: str, rows: Sequence[int], feeds: list[Any]) -> Sequence[Any]:
        if self._runner._observe is not None:
            self._runner._observe(body, unit, rows, feeds)
        return self._runner._units[body, unit](feeds)

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
        return combine(results[0], results[1], self._scales[row], program.guidance.rescale)

    def _call(self, row: int, branch: int, x: Any) -> Any:
        program = self._program
        name = program.calls[row]
        known = Known(
            self._branches[branch],
            self._prologues[name, branch],
            self._tables.get((row, branch), ()),
            self._timestep(row),
            x,
        )
        feeds = known.feeds(program.bodies[name].step)
        prediction = self._run(name, "step", [row], feeds)[0]
        channels = program.interface.prediction_channels
        return prediction if channels is None else prediction[:, :channels]

    def _timestep(self, row: int) -> Any:
        return self._runner._to_own(timestep_table(self._program, [row])[0, ...])


def timestep_table(program: Program, rows: Sequence[int]) -> np.ndarray[Any, Any]:
    """The timesteps of some rows as the denoiser takes them, stacked along a new first axis."""
    type_ = program.interface.seen("timestep")
    assert type_.shape is not None
    shape = [d for d in type_.shape if isinstance(d, int)]
    values = [float(program.schedule.timesteps[row]) * program.interface.timestep_scale for row in rows]
    return np.stack([np.full(shape, value, dtype=type_.dtype) for value in values])


def check_sample(type_: TensorType, sample: Any, what: str = "the initial sample") -> None:
    """Raise ModelError unless `sample` is of this type."""
    require_type(what, type_, sample)


CALLED_BACK = "the sample that `callback` returned"


def check_callback(callback: Any) -> None:
    """Raise ModelError unless it can be called, or is None."""
    if callback is not None and not callable(callback):
        raise ModelError(f"callback={callback!r}: expected a function of a row's number and its sample, or None")


def scales_of(program: Program, given: Scale | None) -> tuple[float, ...]:
    """The guidance scale of each row: the guidance's own, or the one `given` to a call; () without guidance.

    Raises:
        ModelError: it is given to a program without guidance, or none that the program takes.
    """
    guidance = program.guidance
    if guidance is None:
        if given is not None:
            raise ModelError("guidance_scale is given and this program has no guidance; build it with guidance=...")
        return ()
    if given is None:
        return row_scales(guidance.scale, program.calls)
    if not guidance.varies and not is_number(given):
        raise ModelError(
            f"guidance_scale={given!r}: expected a finite number; for one by body or by row, build the program with "
            "a scale by body or by row"
        )
    return row_scales(given, program.calls)


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
