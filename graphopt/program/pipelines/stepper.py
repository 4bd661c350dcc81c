"""Single calls of a compiled denoiser, with what is known before a request's loop evaluated once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from graphopt.program.body import Feed, Unit
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
        self._conditions: dict[str, Any] = {}
        self._prologue: Sequence[Any] = ()
        self._tables: dict[tuple[float, ...], Sequence[Any]] = {}

    def __call__(self, call: DenoiserCall) -> torch.Tensor:
        """What the denoiser returns for a call."""
        stepper = self._stepper
        if self._last is None or self._last.change(call) is not None:
            self._conditions = {name: stepper._own(value) for name, value in call.conditions.items()}
            self._prologue = self._evaluate("prologue", stepper._body.prologue, call)
            self._tables = {}
        self._last = call
        timestep = tuple(call.timestep.reshape(-1).tolist())
        if timestep not in self._tables:
            self._tables[timestep] = self._evaluate("table", stepper._body.table, call)
        result: torch.Tensor = to_torch(self._evaluate("step", stepper._body.step, call, self._tables[timestep])[0])
        return result

    def _evaluate(self, name: str, unit: Unit | None, call: DenoiserCall, table: Sequence[Any] = ()) -> Sequence[Any]:
        if unit is None:
            return ()
        feeds = [self._value(feed, call, table) for feed in unit.feeds]
        if name != "table" or not self._stepper._body.batched:
            return self._stepper.run(name, feeds)
        one = [value[None] if f.kind == "timestep" else value for f, value in zip(unit.feeds, feeds, strict=True)]
        return [result[0, ...] for result in self._stepper.run(name, one)]

    def _value(self, feed: Feed, call: DenoiserCall, table: Sequence[Any]) -> Any:
        match feed.kind:
            case "sample":
                return self._stepper._own(call.sample)
            case "timestep":
                return self._stepper._own(call.timestep)
            case "condition":
                return self._conditions[feed.name]
            case "prologue":
                return self._prologue[feed.index]
        return table[feed.index]
