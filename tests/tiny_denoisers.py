"""Small random denoisers of five families, as diffusers has them, with example inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Denoiser = tuple[torch.nn.Module, dict[str, Any]]


def _random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def unet() -> Denoiser:
    from diffusers import UNet2DConditionModel

    module = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24, attention_head_dim=8, norm_num_groups=4,
    )  # fmt: skip
    return module, {
        "sample": _random(2, 4, 16, 16),
        "timestep": torch.tensor(7.0),
        "encoder_hidden_states": _random(2, 6, 24, seed=2),
    }


def pixart() -> Denoiser:
    from diffusers import PixArtTransformer2DModel

    module = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, sample_size=8, patch_size=2, caption_channels=24, use_additional_conditions=False,
    )  # fmt: skip
    return module, {
        "hidden_states": _random(2, 4, 8, 8),
        "timestep": torch.tensor([7.0, 7.0]),
        "encoder_hidden_states": _random(2, 6, 24, seed=2),
    }


def sd3() -> Denoiser:
    from diffusers import SD3Transformer2DModel

    module = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, caption_projection_dim=16, pooled_projection_dim=20, out_channels=4,
        pos_embed_max_size=12,
    )  # fmt: skip
    return module, {
        "hidden_states": _random(2, 4, 8, 8),
        "timestep": torch.tensor([7.0, 7.0]),
        "encoder_hidden_states": _random(2, 6, 24, seed=2),
        "pooled_projections": _random(2, 20, seed=3),
    }


def flux() -> Denoiser:
    from diffusers import FluxTransformer2DModel

    module = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return module, {
        "hidden_states": _random(2, 16, 4),
        "timestep": torch.tensor([0.7, 0.7]),
        "encoder_hidden_states": _random(2, 6, 24, seed=2),
        "pooled_projections": _random(2, 20, seed=3),
        "img_ids": torch.arange(48.0).reshape(16, 3),
        "txt_ids": torch.zeros(6, 3),
        "guidance": torch.tensor([3.5, 3.5]),
    }


def dit() -> Denoiser:
    from diffusers import DiTTransformer2DModel

    module = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=100, norm_type="ada_norm_zero",
    )  # fmt: skip
    return module, {
        "hidden_states": _random(2, 4, 8, 8),
        "timestep": torch.tensor([7, 7]),
        "class_labels": torch.tensor([3, 4]),
    }


FAMILIES: dict[str, Callable[[], Denoiser]] = {
    "unet": unet,
    "pixart": pixart,
    "sd3": sd3,
    "flux": flux,
    "dit": dit,
}


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """In inference mode, with no weight that is zero: what starts at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*module.parameters()]:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return module.eval()


def tiny(family: str) -> Denoiser:
    """A module of `family` and its keyword inputs; the same in every run."""
    module, inputs = FAMILIES[family]()
    return randomised(module), {**inputs, "return_dict": False}
