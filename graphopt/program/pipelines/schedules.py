"""The schedule of a request, from the scheduler as its pipeline has set it up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from graphopt.errors import UnsupportedError
from graphopt.program.by_hand import changed_by_hand, frozen, made_anew, methods_replaced, numbers_of
from graphopt.program.pipelines.cache import Cache
from graphopt.program.pipelines.calls import Deviation
from graphopt.program.schedule import Schedule


class Schedules:
    """Schedules that were read, and schedulers that cannot be."""

    def __init__(self, size: int) -> None:
        self._read: Cache[Schedule | str] = Cache(size)

    def read(
        self, scheduler: Any, setup: Mapping[str, Any], begin: int, options: Mapping[str, Any]
    ) -> tuple[Any, Schedule]:
        """The schedule of a scheduler that stands at its first step, and a key that is equal for equal ones.

        Args:
            scheduler: never changed.
            setup: what the pipeline gave `set_timesteps`.
            begin: the entry of `scheduler.timesteps` to start at.
            options: what it gives `step`, without generator and return_dict.

        Raises:
            Deviation: it cannot be written as a schedule exactly.
        """
        key = (
            type(scheduler),
            frozen(scheduler.config),
            frozen(setup),
            frozen(options),
            begin,
            tuple(numbers_of(scheduler).items()),
            tuple(methods_replaced(scheduler).items()),
        )
        found = self._read.get(key, lambda: _read(scheduler, setup, begin, options))
        if isinstance(found, str):
            raise Deviation(found)
        return key, found


def _read(scheduler: Any, setup: Mapping[str, Any], begin: int, options: Mapping[str, Any]) -> Schedule | str:
    given = {name: value for name, value in setup.items() if name not in ("device", "num_inference_steps")}
    for name, value in {**given, **options}.items():
        if isinstance(value, torch.Tensor):
            given[name] = value.tolist()
    options = {name: value for name, value in options.items() if value is not None}
    if any(isinstance(value, torch.Tensor) for value in options.values()):
        return "it gives its scheduler's step a tensor of its own"
    try:
        fresh = made_anew(scheduler)
        fresh.set_timesteps(**setup)
        if changed := changed_by_hand(scheduler, fresh):
            return f"its scheduler's {changed} are not what its configuration gives"
        return Schedule.from_diffusers(
            scheduler, setup.get("num_inference_steps"), begin_index=begin, **given, **options
        )
    except UnsupportedError as error:
        return str(error)


def placeholder(timesteps: torch.Tensor) -> Schedule:
    """A schedule with which a body is compiled before the real one is known: its number of rows is what passes look
    at. Every row returns the prediction."""
    rows = len(timesteps)
    return Schedule(
        timesteps=timesteps.detach().cpu().double().numpy(),
        timestep_dtype=str(timesteps.dtype).removeprefix("torch."),
        input_scale=np.ones(rows),
        transition=np.zeros((rows, 1, 1)),
        model_gain=np.ones((rows, 1)),
        noise_gain=np.zeros((rows, 1, 0)),
        draws=np.zeros(rows, dtype=np.int64),
        clip=None,
        init_noise_sigma=1.0,
        prediction_type="sample",
        signal=None,
        sigma=None,
        source=f"{rows} rows",
        step_index=np.arange(rows),
        state_names=("x",),
    )
