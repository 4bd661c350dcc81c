"""The shapes and values that make a table of numbers a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.errors import ModelError

if TYPE_CHECKING:
    from graphopt.program.schedule import Schedule

TIMESTEP_DTYPES = ("int64", "int32", "float32", "float64")


def check_schedule(schedule: Schedule) -> None:
    """Check shapes, types and finiteness.

    Raises:
        ModelError: the first field that is wrong, what it should be and what it is.
    """
    rows, live, draws = _sizes(schedule)
    _check(schedule, "timesteps", (rows,))
    _check(schedule, "input_scale", (rows,))
    _check(schedule, "transition", (rows, live, live))
    _check(schedule, "model_gain", (rows, live))
    _check(schedule, "noise_gain", (rows, live, draws))
    _check(schedule, "draws", (rows,), np.int64)
    _check(schedule, "step_index", (rows,), np.int64)
    for name in ("signal", "sigma"):
        if getattr(schedule, name) is not None:
            _check(schedule, name, (rows,))
    if schedule.clip is not None:
        for name, shape in {"low": (rows,), "high": (rows,), "model": (rows,)}.items():
            _check(schedule.clip, name, shape, inside="clip.")
        for name in ("state", "gain"):
            _check(schedule.clip, name, (rows, live), inside="clip.")
        if (schedule.clip.low > schedule.clip.high).any():
            raise ModelError("Schedule: clip.low is above clip.high in a row.")
    if not ((schedule.draws >= 0) & (schedule.draws <= draws)).all():
        raise ModelError(f"Schedule: draws must lie in 0..{draws}, the last axis of noise_gain.")
    if schedule.timestep_dtype not in TIMESTEP_DTYPES:
        raise ModelError(
            f"Schedule: timestep_dtype is {schedule.timestep_dtype!r}; known: {', '.join(TIMESTEP_DTYPES)}."
        )
    if schedule.noise_dtype not in ("sample", "float32"):
        raise ModelError(f"Schedule: noise_dtype is {schedule.noise_dtype!r} instead of 'sample' or 'float32'.")
    if len(schedule.state_names) != live:
        raise ModelError(f"Schedule: {len(schedule.state_names)} state_names for {live} live tensors.")
    if not np.isfinite(schedule.init_noise_sigma):
        raise ModelError("Schedule: init_noise_sigma is not finite.")


def _sizes(schedule: Schedule) -> tuple[int, int, int]:
    """(R, k, d) as the noise gains say."""
    shape = np.shape(schedule.noise_gain)
    if len(shape) != 3 or shape[0] == 0 or shape[1] == 0:
        raise ModelError(f"Schedule: noise_gain has shape {shape}; (rows, live tensors, draws) is expected.")
    return shape


def _check(owner: Any, name: str, shape: tuple[int, ...], dtype: Any = np.float64, inside: str = "") -> None:
    value = getattr(owner, name)
    if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
        found = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ModelError(f"Schedule: {inside}{name} must be {np.dtype(dtype)}{list(shape)}, but is {found}.")
    if not np.isfinite(value).all():
        raise ModelError(f"Schedule: {inside}{name} holds a value that is not finite.")
