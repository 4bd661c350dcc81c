"""Pipelines of Wan 2.2 with two tiny transformers from random configs; nothing is fetched."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

SCHEDULERS = {
    "UniPC": lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    "flow match Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=5.0),
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NOISE, TEXT, NEGATIVE = draw(1, 4, 2, 4, 4), draw(1, 5, 16, seed=1), draw(1, 5, 16, seed=2)
GIVEN = {"encoder_hidden_states": TEXT, "negative_encoder_hidden_states": NEGATIVE}


@cache
def transformer(seed: int, **changes: Any) -> WanTransformer3DModel:
    """With random weights that make every input count."""
    config = {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4,
        "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 32, "num_layers": 1, "rope_max_seq_len": 32,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = WanTransformer3DModel(**{**config, **changes})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in made.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return made.eval()


def wan(scheduler: str, boundary_ratio: float | None = 0.875, **components: Any) -> WanPipeline:
    """Without text encoder and VAE: for embeddings and latents. `transformer` has the high noise."""
    given = {"transformer": transformer(1), "transformer_2": transformer(2), **components}
    pipe = WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=SCHEDULERS[scheduler](), boundary_ratio=boundary_ratio,
        **given,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def example(timestep_dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {"hidden_states": NOISE, "timestep": torch.ones(1, dtype=timestep_dtype), "encoder_hidden_states": TEXT}


def sampled(pipe: WanPipeline, steps: int, scale: float, scale_2: float | None) -> torch.Tensor:
    """The latents that diffusers' own loop gives from `NOISE`."""
    result: torch.Tensor = pipe(
        prompt_embeds=TEXT, negative_prompt_embeds=NEGATIVE, latents=NOISE, num_inference_steps=steps, height=32,
        width=32, num_frames=5, guidance_scale=scale, guidance_scale_2=scale_2, output_type="latent",
    ).frames  # fmt: skip
    return result


def distance(got: Any, expected: Any) -> float:
    """Largest difference relative to the largest value."""
    got, expected = torch.as_tensor(got).double(), torch.as_tensor(expected).double()
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())
