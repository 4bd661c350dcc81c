"""Sampling programs for the tests of the XLA backend: denoisers that compile fast, each traced once."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from sampling_programs import NEGATIVE, NOISE, STEPS, TEXT, with_scheduler

import graphopt
from graphopt.program.guidance import Guidance, combine
from graphopt.program.program import Program


class Denoiser(torch.nn.Module):
    """Two convolutions, between which time and text act."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.time = torch.nn.Linear(2, 8)
        self.text = torch.nn.Linear(12, 8)
        self.last = torch.nn.Conv2d(8, 4, 3, padding=1)

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        angle = timestep.to(sample.dtype) / 300
        time = torch.tanh(self.time(torch.stack([angle.sin(), angle.cos()], -1)))
        text = torch.tanh(self.text(encoder_hidden_states)).mean(1)
        return self.last(torch.tanh(self.first(sample) + (time + text)[:, :, None, None]))


def seeded(make: Any, *args: Any, seed: int = 0, **options: Any) -> torch.nn.Module:
    """A module with random weights, the same in every run, in inference mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module: torch.nn.Module = make(*args, **options)
    return module.eval()


@cache
def denoiser(seed: int = 0) -> torch.nn.Module:
    return seeded(Denoiser, seed=seed)


@cache
def tiny_unet() -> torch.nn.Module:
    return seeded(
        UNet2DConditionModel,
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8,), layers_per_block=1, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=12,
        attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip


EXAMPLE = {"sample": NOISE, "timestep": torch.tensor(1.0), "encoder_hidden_states": TEXT}


@cache
def program_of(module: torch.nn.Module, guidance: Guidance | None = None) -> Program:
    """DDIM on `module`."""
    return graphopt.Sampler(module, DDIMScheduler(clip_sample=False), STEPS, example_inputs=EXAMPLE, guidance=guidance)


def lowered(module: torch.nn.Module, scheduler: Any, guidance: Guidance | None = None, **options: Any) -> Any:
    """The program with another scheduler, on XLA; its ops are not compared again unless asked for."""
    program = with_scheduler(program_of(module, guidance), scheduler)
    return program.lower("xla", **{"check": False, **options})


def expected_with(module: torch.nn.Module, guidance: Guidance | None = None) -> Any:
    """The guided prediction of `module`, as pipelines compute it."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if guidance is None:
            return first(module(x, t, TEXT.to(x.dtype)))
        text = torch.cat([NEGATIVE, TEXT])
        without, with_ = first(module(torch.cat([x, x]), t, text)).chunk(2)
        return combine(without, with_, guidance.scale, guidance.rescale)

    return predict


def first(result: Any) -> torch.Tensor:
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
    return found
