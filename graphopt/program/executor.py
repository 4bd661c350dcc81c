"""Runs a schedule row by row with any callable as the model: the reference executor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import UnsupportedError
from graphopt.program.noise import draws_from

if TYPE_CHECKING:
    from graphopt.program.schedule import Schedule


def run(
    schedule: Schedule,
    model: Callable[[Any, Any], Any],
    sample: Any,
    generator: Any = None,
    *,
    noise: Any = None,
    callback: Callable[[int, Any, Any], Any] | None = None,
) -> Any:
    """Execute the schedule; see `Schedule.run`."""
    draws = noise_source(schedule, sample, generator, noise)
    state = [sample] + [None] * (schedule.live_tensors - 1)
    for row in range(len(schedule)):
        timestep = timestep_like(schedule, row, sample)
        scale = float(schedule.input_scale[row])
        output = model(state[0] if scale == 1.0 else state[0] * scale, timestep)
        if tuple(output.shape) != tuple(sample.shape):
            raise UnsupportedError(
                f"Call {row}: the model gave shape {tuple(output.shape)} for a sample of {tuple(sample.shape)}; "
                "a schedule needs one prediction of the sample's shape."
            )
        state = next_state(schedule, row, state, output, [next(draws) for _ in range(int(schedule.draws[row]))])
        if callback is not None:
            changed = callback(row, timestep, state[0])
            state[0] = state[0] if changed is None else changed
    return state[0]


def next_state(schedule: Schedule, row: int, state: Sequence[Any], output: Any, noise: Sequence[Any]) -> list[Any]:
    """One row: the state after the call whose output is given; None stands for a tensor of zeros."""
    clamped, clip = None, schedule.clip
    if clip is not None and clip.gain[row].any():
        inside = _combination([*clip.state[row], clip.model[row]], [*state, output])
        clamped = inside.clip(float(clip.low[row]), float(clip.high[row]))
    tensors = [*state, output, clamped, *noise]
    gains = clip.gain[row] if clip is not None else np.zeros(schedule.live_tensors)
    return [
        _combination(
            [
                *schedule.transition[row, i],
                schedule.model_gain[row, i],
                gains[i],
                *schedule.noise_gain[row, i, : len(noise)],
            ],
            tensors,
        )
        for i in range(schedule.live_tensors)
    ]


def _combination(coefficients: Sequence[float], tensors: Sequence[Any]) -> Any:
    """The weighted sum, in the tensors' dtype; None if nothing is in it."""
    total = None
    for coefficient, tensor in zip(coefficients, tensors, strict=True):
        if coefficient == 0 or tensor is None:
            continue
        term = tensor * float(coefficient)  # a Python float leaves the tensor's dtype alone
        total = term if total is None else total + term
    return total


def timestep_like(schedule: Schedule, row: int, sample: Any) -> Any:
    """The row's timestep in the scheduler's own type: a 0-d tensor beside a tensor, a numpy scalar beside an array."""
    if isinstance(sample, np.ndarray):
        return np.dtype(schedule.timestep_dtype).type(schedule.timesteps[row])
    import torch

    return torch.tensor(schedule.timesteps[row], dtype=getattr(torch, schedule.timestep_dtype), device=sample.device)


def noise_source(schedule: Schedule, sample: Any, generator: Any = None, noise: Any = None) -> Iterator[Any]:
    """The draws of all rows in their order, given as one array or drawn like `sample`; see `Schedule.run`."""
    if noise is None:
        return _drawn(schedule, sample, generator)
    expected = (schedule.total_draws, *sample.shape)
    if generator is not None or tuple(noise.shape) != expected:
        raise UnsupportedError(
            f"The noise has shape {tuple(noise.shape)} instead of {expected} (total_draws, *sample.shape)"
            + (", and a generator is given too; give one of them." if generator is not None else ".")
        )
    return iter(noise)


def _drawn(schedule: Schedule, sample: Any, generator: Any) -> Iterator[Any]:
    wide = schedule.noise_dtype == "float32"
    if isinstance(sample, np.ndarray) or not _is_torch(generator):
        dtype = "float32" if wide else str(sample.dtype).removeprefix("torch.")
        draw = draws_from(generator, tuple(sample.shape), dtype)
        while True:
            yield _as(sample, draw())
    import torch

    while True:
        yield torch_normal(sample.shape, generator, sample.device, torch.float32 if wide else sample.dtype).to(sample)


def _is_torch(generator: Any) -> bool:
    """Whether torch draws: from one of its generators, from a list of them, or from its own state."""
    each = generator if isinstance(generator, list | tuple) else [generator]
    return all(g is None or type(g).__module__.partition(".")[0] == "torch" for g in each)


def _as(sample: Any, drawn: Any) -> Any:
    """An array as the kind, dtype and device of `sample`."""
    if isinstance(sample, np.ndarray):
        return np.asarray(drawn).astype(sample.dtype)
    import torch

    return torch.from_numpy(np.asarray(drawn)).to(sample)


def torch_normal(shape: Sequence[int], generator: Any, device: Any, dtype: Any) -> Any:
    """Unit normal noise as diffusers draws it: on the generator's device, with a list one image at a time."""
    import torch

    generators = generator if isinstance(generator, list | tuple) else [generator]
    device = torch.device(device)
    of_generator = generators[0].device if generators[0] is not None else device
    on = of_generator if of_generator.type == "cpu" else device
    if len(generators) == 1:
        return torch.randn(tuple(shape), generator=generators[0], device=on, dtype=dtype).to(device)
    if len(generators) != shape[0]:
        raise UnsupportedError(f"{len(generators)} generators are given for a batch of {shape[0]}; give one per image.")
    one = (1, *shape[1:])
    return torch.cat([torch.randn(one, generator=g, device=on, dtype=dtype) for g in generators]).to(device)
