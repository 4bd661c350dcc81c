"""What a call of a compiled sampling program gives its runtime: every input as an array, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import TensorType
from graphopt.ir.weights import Array, numpy_dtype
from graphopt.program.guidance import Scale
from graphopt.program.interface import NEGATIVE
from graphopt.program.noise import draw_noise, used_draws
from graphopt.program.program import Program
from graphopt.program.runner import check_sample, scales_of, to_numpy

RESERVED = ("noise", "initial_scale", "step_noise", "guidance_scale", "sample", "row")
"""Names of inputs and outputs that are not conditions."""


@dataclass(frozen=True)
class ProgramInputs:
    """One call of a program."""

    noise: Array
    """Of the type of the program's sample."""
    initial_scale: Array
    """What the noise is multiplied by, a number."""
    conditions: Mapping[str, Array]
    """By name; of a guided program those of the unconditional branch too, as `negative_<name>`."""
    step_noise: Array
    """Every draw that is used, [total, *sample]; it may be none."""
    guidance_scale: Array | None
    """A number, or one for each row where the guidance has it so; None without guidance."""

    def by_name(self) -> dict[str, Array]:
        """The inputs that the program has."""
        feeds = {"noise": self.noise, "initial_scale": self.initial_scale, **self.conditions}
        if len(self.step_noise):
            feeds["step_noise"] = self.step_noise
        if self.guidance_scale is not None:
            feeds["guidance_scale"] = self.guidance_scale
        return feeds


def input_types(program: Program, numbers: str) -> dict[str, TensorType]:
    """The types of `ProgramInputs.by_name`, with scales of the dtype `numbers`."""
    interface, guidance, rows = program.interface, program.guidance, len(program.schedule)
    types = {"noise": interface.sample, "initial_scale": TensorType(numbers, ())}
    types |= {c.name: c.type for c in interface.conditions}
    if guidance is not None:
        types |= {NEGATIVE + c.name: c.type for c in interface.conditions if c.branched}
        types["guidance_scale"] = TensorType(numbers, (rows,) if guidance.varies else ())
    if count := int(used_draws(program.schedule).sum()):
        types["step_noise"] = TensorType(interface.sample.dtype, (count, *(interface.sample.shape or ())))
    return types


def read_call(
    program: Program,
    start: Any,
    initial_scale: float | None,
    generator: Any,
    guidance_scale: Scale | None,
    conditions: Mapping[str, Any],
    numbers: str | None = None,
) -> ProgramInputs:
    """The inputs of a call; see `Program.__call__` for its arguments.

    Args:
        program: what is called.
        start: noise, or a sample that has the scale of the first row already.
        initial_scale: what `start` is multiplied by; None for noise.
        generator: what draws the noise of the rows, or a seed.
        guidance_scale: None for the guidance's own.
        conditions: as they are given.
        numbers: the dtype of the scales; None for that of the sample.

    Raises:
        ModelError: an input is missing, unknown or of another type.
    """
    check_sample(program.interface.sample, start)
    given = _conditions(program, conditions)
    dtype = numpy_dtype(numbers or program.interface.sample.dtype)
    first = program.schedule.init_noise_sigma if initial_scale is None else initial_scale
    step_noise = draw_noise(
        program.schedule, start.shape, program.interface.sample.dtype, _source(generator, start)
    )
    scales = scales_of(program, guidance_scale)
    scale = None
    if program.guidance is not None:
        scale = np.asarray(scales if program.guidance.varies else scales[0]).astype(dtype)
    return ProgramInputs(to_numpy(start), np.asarray(first).astype(dtype), given, step_noise, scale)


def _conditions(program: Program, conditions: Mapping[str, Any]) -> dict[str, Array]:
    """By input name; what is not given for the unconditional branch is that of the conditional one."""
    interface, guided = program.interface, program.guidance is not None
    given = {name: to_numpy(value) for name, value in interface.gather(conditions, guided=guided).items()}
    if guided:
        for condition in interface.conditions:
            if condition.branched:
                given.setdefault(NEGATIVE + condition.name, given[condition.name])
    return given


def _source(generator: Any, start: Any) -> Any:
    """Without a generator torch samples draw from torch's own, as in diffusers, so that torch.manual_seed counts."""
    if generator is None and not isinstance(start, np.ndarray):
        import torch

        return torch.default_generator
    return generator


def require_names(program: Program) -> None:
    """Raises UnsupportedError if a condition has the name of another input or output."""
    for condition in program.interface.conditions:
        if condition.name in RESERVED:
            raise UnsupportedError(
                f"a condition is named {condition.name!r}, as is an input or output of the program itself; rename "
                "that argument of the denoiser"
            )
