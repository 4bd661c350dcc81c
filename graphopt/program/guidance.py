"""Classifier-free guidance: how the predictions with and without the condition are combined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from graphopt.errors import ModelError, did_you_mean

Scale: TypeAlias = float | Mapping[str, float] | Sequence[float]
"""A number; or one for each body by its name; or one for each row."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

    prediction = unconditional + scale · (conditional − unconditional)

    Conditions of the unconditional branch are given as `negative_<name>`, at least one of them; the others are
    shared by both branches.

    Raises:
        ValueError: another mode, a share outside of [0, 1], or a scale that is no finite number.
    """

    scale: Scale = 7.5
    """The default; a call may give another. By body for denoisers chosen by timestep."""
    mode: Literal["batch", "calls"] = "batch"
    """"batch": the denoiser is called once on twice the batch, the unconditional half first. "calls": twice."""
    rescale: float = 0.0
    """Share, in [0, 1], by which the standard deviation of the result is brought back to that of the conditional
    prediction (Lin et al. 2023, arXiv 2305.08891, section 3.4)."""

    def __post_init__(self) -> None:
        if self.mode not in ("batch", "calls"):
            raise ValueError(f"mode={self.mode!r}: expected 'batch' or 'calls'")
        if not is_number(self.rescale) or not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale={self.rescale!r}: expected a share in [0, 1]")
        if not is_number(self.scale) and not isinstance(self.scale, Mapping | list | tuple):
            raise ValueError(f"scale={self.scale}: expected a finite number, or one for each body or row")
        scales = self.scale.values() if isinstance(self.scale, Mapping) else np.atleast_1d(self.scale)
        if not all(is_number(number) for number in scales):
            raise ValueError(f"scale={self.scale}: expected a finite number")

    @property
    def varies(self) -> bool:
        """Whether the scale is said for each body or each row."""
        return not is_number(self.scale)


def is_number(scale: Any) -> bool:
    """Whether it is a finite number."""
    if isinstance(scale, bool | str) or not np.isscalar(scale):
        return False
    return bool(np.isfinite(float(scale)))  # type: ignore[arg-type]


def row_scales(scale: Scale, calls: Sequence[str]) -> tuple[float, ...]:
    """The scale of each row, where `calls` are the bodies that the rows call.

    Raises:
        ModelError: it is not finite numbers, or not one for each row or each body.
    """
    if is_number(scale):
        return (float(scale),) * len(calls)  # type: ignore[arg-type]
    names = list(dict.fromkeys(calls))
    if isinstance(scale, Mapping):
        for name in scale:
            if name not in names:
                raise ModelError(
                    f"a guidance scale is given for {name!r}{did_you_mean(str(name), names)}; rows call "
                    f"{', '.join(names)}"
                )
        if missing := [name for name in names if name not in scale]:
            raise ModelError(f"no guidance scale is given for {missing[0]!r}; rows call {', '.join(names)}")
        scale = [scale[name] for name in calls]
    if not isinstance(scale, list | tuple | np.ndarray) or not all(is_number(number) for number in scale):
        raise ModelError(f"guidance_scale={scale!r}: expected a finite number, or one for each body or row")
    if len(scale) != len(calls):
        raise ModelError(f"{len(scale)} guidance scales are given for a schedule of {len(calls)} rows")
    return tuple(float(number) for number in scale)


def combine(unconditional: Any, conditional: Any, scale: float, rescale: float) -> Any:
    """The guided prediction; torch tensors or numpy arrays of shape [B, ...], in their own dtype."""
    guided = unconditional + scale * (conditional - unconditional)
    if rescale == 0.0:
        return guided
    adjusted = guided * (_std(conditional) / _std(guided))
    return rescale * adjusted + (1.0 - rescale) * guided


def _std(x: Any) -> Any:
    """Sample standard deviation of every batch element, over all other axes."""
    axes = tuple(range(1, x.ndim))
    if isinstance(x, np.ndarray):
        return np.asarray(x.std(axis=axes, keepdims=True, ddof=1), dtype=x.dtype)
    return x.std(dim=axes, keepdim=True)
