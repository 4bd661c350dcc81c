"""What a program is sampled from when it is measured: noise and conditions, given or drawn from a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.errors import ModelError
from graphopt.ir.weights import Array
from graphopt.program.interface import NEGATIVE, flatten
from graphopt.program.program import Program
from graphopt.program.runner import Runner
from graphopt.verify.calibration import Calibration, Input
from graphopt.verify.inputs import draw_input

SAMPLES = 4
"""How many samples, at least, are drawn for each of the two parts where no data is given."""
NOISE = "noise"
"""The name of the initial noise in calibration data."""


@dataclass(frozen=True)
class Request:
    """One call of a program."""

    noise: Array
    conditions: Mapping[str, Array]
    """By name; those of the unconditional branch as `negative_<name>`."""
    seed: int = 1
    """Of the noise that stochastic rows draw."""

    def sample(self, runner: Runner) -> Array:
        """The final sample of `runner`'s program; the same for the same program, whatever was run before."""
        conditions: dict[str, Any] = dict(self.conditions)
        sample: Array = runner(self.noise, np.random.default_rng(self.seed), **conditions)
        return sample


def draw_request(program: Program, seed: int) -> Request:
    """Seeded noise and conditions: normal floats, and 0 and 1 for integers."""
    rng = np.random.default_rng(seed)
    noise = draw_input(rng, program.interface.sample)
    return Request(noise, {i.name: draw_input(rng, i.type) for i in _conditions(program) if i.type is not None})


def requests_of(program: Program, calibration: Calibration) -> tuple[list[Request], list[Request]]:
    """The requests to tune on, and those that are held out.

    Raises:
        ModelError: the data does not fit what `program` takes.
    """
    if calibration.data is None:
        count = calibration.limit or _enough(program, calibration)
        if count < 2:
            raise ModelError("calibration with limit=1 leaves nothing to hold out: draw 2 requests or more")
        return calibration.divide([draw_request(program, seed) for seed in range(count)])
    requests = _given(program, calibration)
    if len(requests) < 2:
        raise ModelError(
            "calibration data of a program is one request, which cannot be split in a tuning part and a held-out "
            f"part: give two or more, or arrays of a multiple of the batch {program.interface.sample}"
        )
    return calibration.divide(requests)


def first_request(program: Program, calibration: Calibration | None) -> Request:
    """The first of the requests that are given, or one that is drawn.

    Raises:
        ModelError: the data does not fit what `program` takes.
    """
    if calibration is None or calibration.data is None:
        return draw_request(program, seed=0)
    return _given(program, calibration)[0]


def _given(program: Program, calibration: Calibration) -> list[Request]:
    inputs = [Input(NOISE, program.interface.sample, optional=True), *_conditions(program)]
    batches = calibration.batches(inputs, read=_by_name)
    return [_request(program, seed, batch) for seed, batch in enumerate(batches)]


def _enough(program: Program, calibration: Calibration) -> int:
    shape = program.interface.sample.shape
    batch = shape[0] if shape and isinstance(shape[0], int) else 1
    smaller = min(calibration.held_out, 1.0 - calibration.held_out)
    return math.ceil(math.ceil(SAMPLES / batch) / smaller)


def _conditions(program: Program) -> list[Input]:
    conditions = program.interface.conditions
    found = [Input(c.name, c.type) for c in conditions]
    if program.guidance is not None:
        found += [Input(NEGATIVE + c.name, c.type, optional=True) for c in conditions if c.branched]
    return found


def _request(program: Program, seed: int, batch: Mapping[str, Array]) -> Request:
    conditions = {name: array for name, array in batch.items() if name != NOISE}
    program.interface.gather(conditions, guided=program.guidance is not None)
    return Request(batch[NOISE] if NOISE in batch else draw_request(program, seed).noise, conditions)


def _by_name(item: Any) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise ModelError(
            f"calibration of a sampling program has a {type(item).__name__}: expected dicts of its conditions by name, "
            f"with {NOISE!r} or without"
        )
    return dict(flatten("", item))
