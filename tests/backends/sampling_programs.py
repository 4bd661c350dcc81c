"""Sampling programs with ONNX graphs for the tests of the onnxruntime backend, each denoiser converted once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from inspect import signature
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

import graphopt
from graphopt.backends.onnxruntime import OnnxRuntimeBackend
from graphopt.program.guidance import Guidance, combine
from graphopt.program.program import Program
from graphopt.program.schedule import Schedule

STEPS = 8
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "DDIM": lambda: DDIMScheduler(clip_sample=False),
    "DDPM": lambda: DDPMScheduler(clip_sample=False),
    "DPM++ 2M": lambda: DPMSolverMultistepScheduler(),
    "DPM++ SDE": lambda: DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++"),
    "PNDM": lambda: PNDMScheduler(),
    "PLMS": lambda: PNDMScheduler(skip_prk_steps=True),
    "Heun": lambda: HeunDiscreteScheduler(),
    "Euler ancestral": lambda: EulerAncestralDiscreteScheduler(),
    "UniPC": lambda: UniPCMultistepScheduler(),
    "LMS": lambda: LMSDiscreteScheduler(),
    "DEIS": lambda: DEISMultistepScheduler(),
    "flow match Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "LCM": lambda: LCMScheduler(clip_sample=False),
}
# With clipping x0 is (x - sigma m) / alpha, with alpha near 1/60 in the first row; a SASolver's rows cancel too.
SENSITIVE: dict[str, Callable[[], Any]] = {
    "DDIM clipped": DDIMScheduler,
    "DDPM clipped": DDPMScheduler,
    "SA solver": SASolverScheduler,
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def small_unet() -> torch.nn.Module:
    """A conditional U-Net of diffusers with the weights of its initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=12, attention_head_dim=4, norm_num_groups=4,
        ).eval()  # fmt: skip


NOISE, TEXT, NEGATIVE = draw(2, 4, 8, 8), draw(2, 5, 12, seed=1), draw(2, 5, 12, seed=2)
GIVEN = {"encoder_hidden_states": TEXT}
GUIDED = {**GIVEN, "negative_encoder_hidden_states": NEGATIVE}


@cache
def torch_program(doubled: bool = False) -> Program:
    """DDIM on the U-Net, as a torch graph; `doubled` for guidance in one batch."""
    example = {"sample": NOISE, "timestep": torch.tensor(1.0), "encoder_hidden_states": TEXT}
    guidance = Guidance(3.0) if doubled else None
    return graphopt.Sampler(small_unet(), SCHEDULERS["DDIM"](), STEPS, example_inputs=example, guidance=guidance)


@cache
def _converted(doubled: bool) -> Program:
    backend = OnnxRuntimeBackend()
    return torch_program(doubled).map_models(lambda name, model: backend.convert(model))


def onnx_program(guidance: Guidance | None = None) -> Program:
    """The same as an ONNX graph, with this guidance."""
    return replace(_converted(guidance is not None and guidance.mode == "batch"), guidance=guidance)


def with_scheduler(program: Program, scheduler: Any, steps: int = STEPS) -> Program:
    """The program with another schedule; all rows call its first body."""
    schedule = Schedule.from_diffusers(scheduler, steps)
    return replace(program, schedule=schedule, calls=(next(iter(program.bodies)),) * len(schedule))


def lower(program: Program, **options: Any) -> Any:
    return OnnxRuntimeBackend().lower_program(program, **{"threads": 1, **options})


def diffusers_loop(
    scheduler: Any, predict: Callable[[Any, Any], Any], sample: torch.Tensor, seed: int | None = None,
    steps: int = STEPS,
) -> torch.Tensor:  # fmt: skip
    """The loop of a diffusers pipeline from unit normal noise."""
    scheduler.set_timesteps(steps)
    draws = seed is not None and "generator" in signature(scheduler.step).parameters
    extra = {"generator": torch.Generator().manual_seed(seed)} if draws else {}
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    sample = sample * getattr(scheduler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            sample = scheduler.step(predict(scaled(sample, timestep), timestep), timestep, sample, **extra).prev_sample
    return sample


def predict_with(module: torch.nn.Module, guidance: Guidance | None = None) -> Callable[[Any, Any], Any]:
    """The prediction of the U-Net as pipelines compute it: both branches in one batch."""

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if guidance is None:
            return module(x, t, TEXT.to(x.dtype)).sample
        text = torch.cat([NEGATIVE, TEXT]).to(x.dtype)
        without, with_ = module(torch.cat([x, x]), t, text).sample.chunk(2)
        return combine(without, with_, guidance.scale, guidance.rescale)

    return predict


def distance(a: Any, b: Any) -> float:
    """Largest difference relative to the largest value of `b`."""
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max())
