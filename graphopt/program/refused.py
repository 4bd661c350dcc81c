"""Schedulers that cannot be written as a schedule, by name and with the reason."""

from __future__ import annotations

import inspect
from typing import Any

from graphopt.errors import UnsupportedError

_CATEGORIES = "it samples categories, which is not affine in the sample"
_INTERVAL = "its noise is the increment of a Brownian path over an interval of sigma (torchsde) and not a draw a call"
_STAGES = "it changes the sample's resolution between stages (a foreign step signature)"

REASONS = {
    "AmusedScheduler": _CATEGORIES,
    "BlockRefinementScheduler": _CATEGORIES,
    "CogVideoXDPMScheduler": "its step() takes the last call's prediction and timestep (a foreign step signature)",
    "CosineDPMSolverMultistepScheduler": _INTERVAL,
    "DDPMWuerstchenScheduler": "its timesteps are one a token batch and one more than its calls (a foreign signature)",
    "DPMSolverSDEScheduler": _INTERVAL,
    "DiscreteDDIMScheduler": _CATEGORIES,
    "EntropyBoundScheduler": _CATEGORIES,
    "HeliosDMDScheduler": _STAGES,
    "HeliosScheduler": _STAGES,
    "KarrasVeScheduler": "its sample is noised between steps (a foreign step signature)",
    "PiFlowScheduler": "its model gives a policy over a grid of times and not one prediction",
    "PiflowScheduler": "its model gives a policy over a grid of times and not one prediction",
    "RePaintScheduler": "its step() takes the image and the mask to paint into (a foreign step signature)",
    "SCMScheduler": "its timesteps are one more than its calls (a foreign step signature)",
    "ScoreSdeVeScheduler": "it has a predictor and a corrector instead of step() (a foreign step signature)",
    "ScoreSdeVpScheduler": "it has a predictor instead of step() (a foreign step signature)",
    "VQDiffusionScheduler": _CATEGORIES,
}

_OPTIONS = {
    "per_token_timesteps": "timesteps of each token are not one number a call",
    "generator": "a schedule is read once and run with any generator: give it to run()",
    "variance_noise": "noise is given to run()",
}


def refuse_by_name(scheduler: Any) -> None:
    """Raise UnsupportedError if the scheduler's class, configuration or signature rules a schedule out."""
    name = type(scheduler).__name__
    if isinstance(scheduler, type):
        raise UnsupportedError(f"{scheduler.__name__} is a class and no scheduler: give an object of it")
    if name in REASONS:
        raise UnsupportedError(f"{name} cannot be written as a schedule: {REASONS[name]}.")
    if not all(hasattr(scheduler, part) for part in ("config", "set_timesteps", "step")):
        raise UnsupportedError(
            f"{name} is no diffusers scheduler: one with config, set_timesteps() and step() is expected."
        )
    variance = str(scheduler.config.get("variance_type") or "")
    if variance.startswith("learned"):
        raise UnsupportedError(
            f"{name} has variance_type={variance!r}: the model's output holds a learned variance in doubled channels, "
            "in which a step is not affine. Use variance_type='fixed_small' and the first half of the channels."
        )
    if scheduler.config.get("thresholding"):
        raise UnsupportedError(
            f"{name} has thresholding=True: dynamic thresholding clips at a quantile of each sample, which is not "
            "affine. Set thresholding=False; clip_sample=True can be written where the scheduler has it."
        )
    _refuse_signature(name, scheduler)


def _refuse_signature(name: str, scheduler: Any) -> None:
    required = [
        key
        for key, parameter in inspect.signature(scheduler.step).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if sorted(required) != ["model_output", "sample", "timestep"]:
        raise UnsupportedError(
            f"{name} has a foreign step signature: step({', '.join(required)}) where "
            "step(model_output, timestep, sample) is expected."
        )


def refuse_option(scheduler: str, option: str, value: Any) -> None:
    """Raise UnsupportedError for options of step() that a schedule cannot hold."""
    if option in _OPTIONS and value is not None:
        raise UnsupportedError(f"{scheduler}: {option} cannot be part of a schedule: {_OPTIONS[option]}.")
