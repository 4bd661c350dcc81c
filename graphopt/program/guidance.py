"""Classifier-free guidance: how the predictions with and without the condition are combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598).

    prediction = unconditional + scale · (conditional − unconditional)

    Conditions of the unconditional branch are given as `negative_<name>`, at least one of them; the others are
    shared by both branches.
    """

    scale: float = 7.5
    """The default; a call may give another."""
    mode: Literal["batch", "calls"] = "batch"
    """"batch": the denoiser is called once on twice the batch, the unconditional half first. "calls": twice."""
    rescale: float = 0.0
    """Share, in [0, 1], by which the standard deviation of the result is brought back to that of the conditional
    prediction (Lin et al. 2023, arXiv 2305.08891, section 3.4)."""

    def __post_init__(self) -> None:
        if self.mode not in ("batch", "calls"):
            raise ValueError(f"mode={self.mode!r}: expected 'batch' or 'calls'")
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale={self.rescale}: expected a share in [0, 1]")
        if not np.isfinite(self.scale):
            raise ValueError(f"scale={self.scale}: expected a finite number")


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
