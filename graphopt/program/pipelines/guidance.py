"""Classifier-free guidance as seen from outside: what a pipeline makes of predictions that are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from graphopt.program.guidance import Guidance, combine
from graphopt.program.pipelines.calls import Deviation, same


def read_guidance(probes: Sequence[torch.Tensor], output: torch.Tensor, hints: tuple[Any, Any]) -> Guidance | None:
    """The guidance that turned the denoiser's outputs `probes` into the scheduler's input `output`.

    With the first branch u and the second c, guidance gives a u + b c for every element of the batch, where b / (a + b)
    is the scale and a + b - 1 is what rescaling added. Unless the hints give the same bits, both are solved for, and
    what they give is compared with `output`. (A pipeline with the branches in the other order has the scale 1 - scale.)

    Args:
        probes: of each call in a step; random numbers of shape [B or 2B, C, ...].
        output: [B, C' <= C, ...]
        hints: scale and rescale as the pipeline's attributes name them, or None; taken if they agree, for they have
            all their digits.

    Raises:
        Deviation: the output is something else.
    """
    if len(probes) == 1 and same(probes[0][:, : output.shape[1]], output):
        return None
    first, second = branches(probes, output)
    if not first.shape == second.shape == output.shape:
        raise Deviation("it makes something else of its denoiser's output than guidance of two branches")
    scale, rescale = _hinted(first, second, output, hints) or _solve(
        first.double(), second.double(), output.double(), hints
    )
    if not 0.0 <= rescale <= 1.0 or not agrees(output, combine(first, second, scale, rescale)):
        raise Deviation("its guidance is not the usual one (scale and rescale)")
    return Guidance(scale, "batch" if len(probes) == 1 else "calls", rescale)


def branches(probes: Sequence[torch.Tensor], output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both branches, from one call or from two, with as many channels as `output` has."""
    first, second = probes if len(probes) == 2 else probes[0].tensor_split(2)
    return first[:, : output.shape[1]], second[:, : output.shape[1]]


def guided(probes: Sequence[torch.Tensor], output: torch.Tensor, guidance: Guidance | None) -> torch.Tensor:
    """What guidance makes of `probes`, with as many channels as `output` has."""
    if guidance is None:
        return probes[0][:, : output.shape[1]]
    assert isinstance(guidance.scale, float)  # one for all steps, as `read_guidance` gives it
    combined: torch.Tensor = combine(*branches(probes, output), guidance.scale, guidance.rescale)
    return combined


def agrees(output: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether they differ by rounding only; in half precision, whose rounding would hide another scale, not at all."""
    if output.dtype != expected.dtype or output.shape != expected.shape:
        return False
    if output.dtype in (torch.float16, torch.bfloat16):
        return same(output, expected)
    allowed = 16 * torch.finfo(expected.dtype).eps * float(expected.abs().max())
    return bool(((output - expected).abs() <= allowed).all())


def _hinted(
    first: torch.Tensor, second: torch.Tensor, output: torch.Tensor, hints: tuple[Any, Any]
) -> tuple[float, float] | None:
    """Scale and rescale as the pipeline's attributes name them, if they give `output` to the last bit."""
    scale, rescale = hints[0], hints[1] or 0.0
    if not isinstance(scale, int | float) or not isinstance(rescale, int | float):
        return None
    return (float(scale), float(rescale)) if same(output, combine(first, second, scale, rescale)) else None


def _solve(u: torch.Tensor, c: torch.Tensor, output: torch.Tensor, hints: tuple[Any, Any]) -> tuple[float, float]:
    """Scale and rescale, in float64; any numbers if there are none that fit."""
    basis = torch.stack([u.flatten(1), c.flatten(1)], -1)
    weights = torch.linalg.lstsq(basis, output.flatten(1)[..., None]).solution[..., 0]
    total = weights.sum(1)
    scale = _nearest(float((weights[:, 1] / total).mean()), hints[0])
    if bool(((total - 1).abs() <= 1e-4).all()):
        return scale, 0.0
    full = combine(u, c, scale, 1.0).flatten(1).norm(dim=1) / combine(u, c, scale, 0.0).flatten(1).norm(dim=1)
    return scale, _nearest(float(((total - 1) / (full - 1)).mean()), hints[1])


def _nearest(value: float, hint: Any) -> float:
    """The number that a user is likely to have written for a measured one."""
    for candidate in (hint, round(value, 3)):
        if isinstance(candidate, int | float) and abs(candidate - value) <= 1e-5 * max(1.0, abs(value)):
            return float(candidate)
    return value
