"""Single calls of a compiled denoiser, with what is known before a request's loop evaluated once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from graphopt.program.body import Known
from graphopt.program.pipelines.calls import DenoiserCall
from graphopt.program.program import Program
from graphopt.program.runner import to_numpy, to_torch
from graphopt.program.sampler import BODY


class Stepper:
    """A program's body, lowered unit by unit."""

    def __init__(self, program: Program, lower: Callable[[Any], Callable[..., Any]]) -> None:
        self._body = program.bodies[BODY]
        self._units = {name: lower(unit.model) for name, unit in self._body.units()}
        self._own = to_torch if program.storage == "fx" else to_numpy

    def request(self) -> StepwiseRequest:
        return StepwiseRequest(self)

    def run(self, name: str, feeds: Sequence[Any]) -> Sequence[Any]:
        """The outputs of a unit."""
        results = self._units[name](*feeds)
        return results if isinstance(results, tuple | list) else (results,)


class StepwiseRequest:
    """The calls of one request. Prologue and table are kept from call to call only while the conditions are the very
    tensors of the call before, unwritten."""

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._last: DenoiserCall | None = None
        self._known = Known({})
        self._tables: dict[tuple[float, ...], Sequence[Any]] = {}

    def __call__(self, call: DenoiserCall) -> torch.Tensor:
        """What the denoiser returns for a call."""
        stepper, body = self._stepper, self._stepper._body
        if self._last is None or self._last.change(call) is not None:
            known = Known({name: stepper._own(value) for name, value in call.conditions.items()})
            if body.prologue is not None:
                known = replace(known, prologue=stepper.run("prologue", known.feeds(body.prologue)))
            self._known = known
            self._tables = {}
        self._last = call
        known = replace(self._known, timestep=stepper._own(call.timestep), sample=stepper._own(call.sample))
        timestep = tuple(call.timestep.reshape(-1).tolist())
        if timestep not in self._tables:
            self._tables[timestep] = body.table_of_row(partial(stepper.run, "table"), known)
        known = replace(known, table=self._tables[timestep])
        result: torch.Tensor = to_torch(stepper.run("step", known.feeds(body.step))[0])
        return result
