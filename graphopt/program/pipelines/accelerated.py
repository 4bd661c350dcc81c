"""The accelerated pipeline: a copy of the user's, of a subclass, that shares all components."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch

from graphopt.errors import UnsupportedError
from graphopt.program.pipelines.accelerator import DENOISERS, Accelerator
from graphopt.program.pipelines.compiled import Settings
from graphopt.program.pipelines.report import AccelerationReport


class _Accelerated:
    """Mixed into the pipeline's class."""

    _graphopt: Accelerator

    @property
    def graphopt_report(self) -> AccelerationReport:
        """How requests ran, and what was compiled."""
        return self._graphopt.report

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._graphopt.adopt(name, value))


def accelerated(pipe: Any, settings: Settings, cache_size: int) -> Any:
    """A pipeline that is called as `pipe` is; see `graphopt.diffusers.accelerate`."""
    name = next((n for n in DENOISERS if isinstance(getattr(pipe, n, None), torch.nn.Module)), None)
    if name is None or getattr(pipe, "scheduler", None) is None:
        raise UnsupportedError(
            f"{type(pipe).__name__} is no pipeline with a scheduler and a denoiser ({' or '.join(DENOISERS)})"
        )
    if isinstance(pipe, _Accelerated):
        raise UnsupportedError("the pipeline is accelerated already; give the one that it was made from")
    made = copy.copy(pipe)
    second = f"{name}_2"  # of two denoisers chosen by timestep
    names = (name, second) if isinstance(getattr(pipe, second, None), torch.nn.Module) else (name,)
    made.__dict__["_graphopt"] = Accelerator(names, settings, cache_size)
    object.__setattr__(made, "__class__", _subclass(type(pipe)))
    for denoiser in names:
        setattr(made, denoiser, getattr(pipe, denoiser))
    made.scheduler = pipe.scheduler
    return made


def _subclass(base: type[Any]) -> type[Any]:
    signature = inspect.signature(base.__call__)

    @functools.wraps(base.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise UnsupportedError("torch.autocast is on: it would change the dtypes of a denoiser that is compiled")
        given = dict(signature.bind_partial(self, *args, **kwargs).arguments)
        given |= given.pop("kwargs", {})
        return self._graphopt.run(self, lambda: base.__call__(self, *args, **kwargs), given)

    # The name is what save_pretrained writes, so that the pipeline is loaded as its own class again.
    return type(base.__name__, (_Accelerated, base), {"__call__": call, "__module__": base.__module__})
