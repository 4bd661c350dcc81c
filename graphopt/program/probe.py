"""Reads a diffusers scheduler by running it on symbols: every step's coefficients, draws and clamps.

A symbol is a tensor whose last axis has one place of its own; a scheduler is elementwise in the sample, so each
place is an independent probe. See `symbols` for how randomness and clamps are met.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from graphopt.errors import UnsupportedError
from graphopt.program.by_hand import changed_by_hand, made_anew
from graphopt.program.prediction import levels_fit
from graphopt.program.refused import refuse_by_name, refuse_option
from graphopt.program.rows import Floats, Ints, SymbolRows
from graphopt.program.symbols import Symbols

AMPLITUDES = (1e-3, 1e3)
# Coefficients seen at the two amplitudes differ by no more than this.
AGREEMENT = 1e-9
# The arguments of step() that are not options: the probe gives them itself.
GIVEN = {"self", "device", "model_output", "timestep", "sample", "return_dict", "kwargs"}


@dataclass(frozen=True)
class Levels:
    """How much image and noise a sample holds: x_j = signal_j x0 + sigma_j eps."""

    signal: Floats  # (R,)
    sigma: Floats  # (R,)


@dataclass(frozen=True)
class Probed:
    """A scheduler's schedule as read from it, before a minimal state is found."""

    timesteps: Floats  # (R,)
    timestep_dtype: str
    step_index: Ints  # (R,)
    input_scale: Floats  # (R,)
    rows: SymbolRows
    init_noise_sigma: float
    noise_dtype: str
    prediction_type: str
    levels: Levels | None
    source: str


@dataclass(frozen=True)
class Request:
    """A scheduler and how its pipeline would set it up and call it."""

    scheduler: Any
    name: str
    setup: Mapping[str, Any]
    step_options: Mapping[str, Any]
    begin_index: int

    def ready(self) -> Any:
        """A new scheduler of the same configuration, set up; the caller's is never touched."""
        return self._set_up(made_anew(self.scheduler))

    def require_unchanged(self, fresh: Any) -> None:
        """
        Raises:
            UnsupportedError: the caller's scheduler, set up alike, is not what a `fresh` one is.
        """
        if changed := changed_by_hand(self._set_up(copy.deepcopy(self.scheduler)), fresh):
            raise UnsupportedError(
                f"{self.name}: its {changed} is not what its configuration gives, and would be lost: a schedule is "
                "read from new schedulers of the same configuration. Give it by the configuration."
            )

    def _set_up(self, scheduler: Any) -> Any:
        driven(f"{self.name}.set_timesteps", lambda: scheduler.set_timesteps(**self.setup))
        return scheduler

    def timesteps(self, scheduler: Any) -> Any:
        """The timesteps of the calls to make, shape (R,)."""
        left = scheduler.timesteps[self.begin_index :]
        if not len(left):
            raise UnsupportedError(
                f"{self.name} has {len(scheduler.timesteps)} timesteps: none is left from begin_index "
                f"{self.begin_index} on."
            )
        return left

    def source(self, calls: int) -> str:
        steps = self.setup.get("num_inference_steps")
        parts = [f"{calls} calls" if steps is None else f"{steps} steps"]
        if self.begin_index:
            parts.append(f"from {self.begin_index}")
        given = {**self.setup, **self.step_options}
        parts += [f"{key}={value}" for key, value in given.items() if isinstance(value, bool | int | float | str)]
        return f"{self.name}({', '.join(part for part in parts if not part.startswith('num_inference_steps='))})"


def probe(
    scheduler: Any,
    steps: int | None,
    *,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
    begin_index: int = 0,
    options: Mapping[str, Any] | None = None,
) -> Probed:
    """Run the scheduler on symbols and read its rows; see `Schedule.from_diffusers` for the arguments.

    Raises:
        UnsupportedError: the scheduler is not affine in its sample, model outputs and noise, or cannot be driven.
    """
    refuse_by_name(scheduler)
    lists = {"timesteps": timesteps, "sigmas": sigmas}
    setup: dict[str, Any] = {key: list(value) for key, value in lists.items() if value is not None}
    setup = setup or {"num_inference_steps": steps}
    request = _request(scheduler, setup | ({} if mu is None else {"mu": mu}), dict(options or {}), begin_index)

    ready = request.ready()
    request.require_unchanged(ready)
    times = request.timesteps(ready)
    init_noise_sigma = float(getattr(ready, "init_noise_sigma", 1.0))
    counted = _follow(request, request.ready(), Symbols(request.name, 1.0, None))
    first, second = (
        _follow(request, request.ready(), Symbols(request.name, amplitude, counted.columns)) for amplitude in AMPLITUDES
    )
    rows = first.rows(init_noise_sigma)
    _check_affine(request, rows, second.rows(init_noise_sigma))
    prediction_type = _prediction_type(scheduler)
    levels = [
        _levels_of_noising(ready, times),
        _levels_of_scale(np.asarray(first.input_scale)),
        _levels_of_flow(ready, begin_index, len(times)),
    ]
    return Probed(
        timesteps=np.asarray(times.to(torch.float64)),
        timestep_dtype=str(times.dtype).removeprefix("torch."),
        step_index=np.arange(begin_index, begin_index + len(times)),
        input_scale=np.asarray(first.input_scale),
        rows=rows,
        init_noise_sigma=init_noise_sigma,
        noise_dtype="float32" if counted.draws_float32 else "sample",
        prediction_type=prediction_type,
        levels=_fitting(rows, prediction_type, levels),
        source=request.source(len(times)),
    )


def driven(where: str, call: Callable[[], Any]) -> Any:
    """Call the scheduler; its own complaints become refusals that say where."""
    try:
        return call()
    except UnsupportedError:
        raise
    except Exception as error:  # a scheduler may raise anything
        raise UnsupportedError(f"{where}: the scheduler itself fails: {type(error).__name__}: {error}") from error


def _request(scheduler: Any, setup: dict[str, Any], options: dict[str, Any], begin_index: int) -> Request:
    """Sort the options into those of set_timesteps and those of step."""
    name = type(scheduler).__name__
    of_setup = set(inspect.signature(scheduler.set_timesteps).parameters) - GIVEN
    of_step = set(inspect.signature(scheduler.step).parameters) - GIVEN
    setup |= {key: options.pop(key) for key in list(options) if key in of_setup - of_step}
    for key, value in options.items():
        refuse_option(name, key, value)
    unknown = [key for key in setup if key not in of_setup] + [key for key in options if key not in of_step]
    if unknown:
        known = ", ".join(sorted(of_setup | of_step))
        raise UnsupportedError(f"{name} takes no {unknown[0]}; set_timesteps() and step() take {known}.")
    if begin_index < 0:
        raise UnsupportedError(f"{name}: begin_index is {begin_index}, but it counts timesteps from 0.")
    return Request(scheduler, name, setup, options, begin_index)


def _follow(request: Request, scheduler: Any, symbols: Symbols) -> Symbols:
    """One run of the scheduler as a pipeline would drive it, on fresh symbols in every call."""
    times = request.timesteps(scheduler)
    if request.begin_index and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(request.begin_index)
    takes_previous = "prev_timestep" in inspect.signature(scheduler.step).parameters
    for row, timestep in enumerate(times):
        where = f"{request.name}, call {row}"
        options = dict(request.step_options)
        if takes_previous:  # as the UnCLIP pipelines call it
            options.setdefault("prev_timestep", times[row + 1] if row + 1 < len(times) else None)
        sample, output = symbols.begin(row)
        if hasattr(scheduler, "scale_model_input"):
            symbols.scaled(sample, driven(where, partial(scheduler.scale_model_input, sample, timestep)))
        else:
            symbols.scaled(sample, sample)
        step = partial(scheduler.step, output, timestep, sample, return_dict=False, **options)
        with symbols:
            result = driven(where, step)
        symbols.returned(sample, result[0])
    return symbols


def _check_affine(request: Request, one: SymbolRows, other: SymbolRows) -> None:
    """Both amplitudes must show the same coefficients."""
    for a, b in ((one.outputs, other.outputs), (one.clip_arguments, other.clip_arguments)):
        wrong = np.abs(a - b).max(axis=1) > AGREEMENT * np.abs(a).max(axis=1)
        if wrong.any():
            raise UnsupportedError(
                f"{request.name}, call {int(np.flatnonzero(wrong)[0])}: its step is not affine: it has other "
                f"coefficients for samples of size {AMPLITUDES[0]:g} than for samples of size {AMPLITUDES[1]:g}."
            )


def _prediction_type(scheduler: Any) -> str:
    """What the model is to predict; a scheduler with a parameterisation of its own gives its own name."""
    name = type(scheduler).__name__
    if name.startswith("EDM"):  # the network inside a preconditioning, see Karras et al. (2022), table 1
        return f"edm_{scheduler.config.get('prediction_type', 'epsilon')}"
    if "prediction_type" in scheduler.config:
        return str(scheduler.config["prediction_type"])
    return "flow_prediction" if name.startswith("Flow") else name.removesuffix("Scheduler").lower()


def _fitting(rows: SymbolRows, prediction_type: str, candidates: Sequence[Levels | None]) -> Levels | None:
    """The first levels with which the steps agree."""
    for levels in candidates:
        if levels is not None and levels_fit(rows, prediction_type, levels.signal, levels.sigma):
            return levels
    return None


def _levels_of_scale(input_scale: Floats) -> Levels | None:
    """The levels of a sample x0 + sigma eps whose model sees it with unit variance; None if it is not scaled so."""
    if not ((input_scale > 0) & (input_scale < 1)).all():
        return None
    return Levels(np.ones_like(input_scale), np.sqrt(1 / input_scale**2 - 1))


def _levels_of_flow(scheduler: Any, begin_index: int, calls: int) -> Levels | None:
    """The levels of a straight path from image to noise; None if the scheduler has no sigmas in [0, 1]."""
    sigmas = getattr(scheduler, "sigmas", None)
    if not isinstance(sigmas, torch.Tensor) or len(sigmas) < begin_index + calls:
        return None
    sigma = np.asarray(sigmas[begin_index : begin_index + calls].to(torch.float64))
    return Levels(1 - sigma, sigma) if ((sigma >= 0) & (sigma <= 1)).all() else None


def _levels_of_noising(scheduler: Any, times: Any) -> Levels | None:
    """Ask the scheduler how it would noise an image at each timestep; None if it cannot say."""
    one, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    noised = _noising(scheduler)
    if noised is None:
        return None
    try:
        signal = np.asarray([float(noised(one, zero, time[None])) for time in times])
        sigma = np.asarray([float(noised(zero, one, time[None])) for time in times])
    except Exception:  # a scheduler may raise anything; conversion is then refused, nothing else needs the levels
        return None
    return Levels(signal, sigma) if np.isfinite(signal).all() and np.isfinite(sigma).all() else None


def _noising(scheduler: Any) -> Callable[[Any, Any, Any], Any] | None:
    """The scheduler's own way to noise an image, called as (image, noise, timesteps)."""
    if hasattr(scheduler, "add_noise"):
        return partial(scheduler.add_noise)
    if hasattr(scheduler, "scale_noise"):
        return lambda image, noise, times: scheduler.scale_noise(image, times, noise)
    return None
