"""The reference sampler of the digit models: a plain loop over a diffusers scheduler, in torch."""

from __future__ import annotations

from typing import Any

import torch

from graphopt.tools.digits.data import NULL_CLASS, SIDE

GUIDANCE = 1.5
"""The strength of classifier-free guidance that the quality figures are for; 1 is none."""


def noise(count: int, seed: int) -> torch.Tensor:
    """Starting noise (count, 1, 16, 16), the same for the same seed."""
    return torch.randn(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def sample(
    denoiser: torch.nn.Module,
    start: torch.Tensor,
    labels: torch.Tensor,
    scheduler: Any,
    steps: int,
    *,
    guidance: float = GUIDANCE,
) -> torch.Tensor:
    """Digits of the classes `labels`, from the noise `start`.

    Args:
        denoiser: what `load_unet` or `load_dit` returns.
        start: noise (n, 1, 16, 16) of unit variance.
        labels: (n,) in 0..10; 10 is any digit.
        scheduler: a scheduler of diffusers that draws no noise of its own.
        steps: how many steps it is set to.
        guidance: 1 calls the denoiser once a step, anything else on a batch of twice the size.

    Returns:
        (n, 1, 16, 16), nearly within [-1, 1].
    """
    scheduler.set_timesteps(steps)
    x = start * scheduler.init_noise_sigma
    with torch.no_grad():
        for time in scheduler.timesteps:
            output = guided(denoiser, scheduler.scale_model_input(x, time), time, labels, guidance)
            x = scheduler.step(output, time, x, return_dict=False)[0]
    return x


def guided(
    denoiser: torch.nn.Module, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor, guidance: float
) -> torch.Tensor:
    """The denoiser's output moved away from that for any digit: any + guidance * (asked - any)."""
    if guidance == 1:
        return denoiser(x, time, labels)
    both = torch.cat([torch.full_like(labels, NULL_CLASS), labels])
    free, asked = denoiser(torch.cat([x, x]), time, both).chunk(2)
    return free + guidance * (asked - free)
