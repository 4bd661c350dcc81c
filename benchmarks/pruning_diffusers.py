"""Tiny models of diffusers: denoisers and an autoencoder, random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pruning_inputs import TinyModel, normal, table


def _model(name: str, family: str, inputs: Callable[[], dict[str, Any]], **settings: Any) -> TinyModel:
    def make() -> nn.Module:
        import diffusers

        module: nn.Module = getattr(diffusers, family)(**settings)
        return module

    return TinyModel(name, make, inputs)


def _timesteps() -> Tensor:
    return torch.tensor([7, 400])


def _text() -> Tensor:
    return normal(2, 6, 24, seed=2)


def _conditioned(name: str = "sample", size: int = 16) -> dict[str, Any]:
    return {name: normal(2, 4, size, size), "timestep": _timesteps(), "encoder_hidden_states": _text()}


def _controlled() -> dict[str, Any]:
    return _conditioned() | {"controlnet_cond": normal(2, 3, 32, 32, seed=3)}


def _sd3() -> dict[str, Any]:
    return _conditioned("hidden_states", 8) | {"pooled_projections": normal(2, 20, seed=3)}


def _flux() -> dict[str, Any]:
    return {
        "hidden_states": normal(2, 16, 4),
        "timestep": torch.tensor([0.7, 0.2]),
        "encoder_hidden_states": _text(),
        "pooled_projections": normal(2, 20, seed=3),
        "img_ids": torch.arange(48.0).reshape(16, 3),
        "txt_ids": torch.zeros(6, 3),
        "guidance": torch.tensor([3.5, 2.0]),
    }


def _wan() -> dict[str, Any]:
    return {
        "hidden_states": normal(2, 4, 3, 8, 8),
        "timestep": _timesteps(),
        "encoder_hidden_states": _text(),
    }


_UNET: dict[str, Any] = {
    "sample_size": 16, "in_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 4,
}  # fmt: skip
_CROSS: dict[str, Any] = _UNET | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 24, "attention_head_dim": 2,
}  # fmt: skip

DIFFUSERS = table(
    _model("df_controlnet", "ControlNetModel", _controlled, **{k: v for k, v in _CROSS.items() if k != "sample_size"},
           conditioning_embedding_out_channels=(8, 16)),
    _model(
        "df_dit", "DiTTransformer2DModel",
        lambda: {"hidden_states": normal(2, 4, 8, 8), "timestep": _timesteps(), "class_labels": torch.tensor([3, 5])},
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_type="ada_norm_zero", norm_num_groups=4,
    ),
    _model(
        "df_flux", "FluxTransformer2DModel", _flux, patch_size=1, in_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24, pooled_projection_dim=20,
        guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    ),
    _model(
        "df_pixart", "PixArtTransformer2DModel", lambda: _conditioned("hidden_states", 8), num_attention_heads=4,
        attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32, sample_size=8,
        patch_size=2, caption_channels=24, use_additional_conditions=False,
    ),
    _model(
        "df_sd3_mmdit", "SD3Transformer2DModel", _sd3, sample_size=8, patch_size=2, in_channels=4, num_layers=2,
        attention_head_dim=8, num_attention_heads=4, joint_attention_dim=24, caption_projection_dim=32,
        pooled_projection_dim=20, out_channels=4, pos_embed_max_size=12,
    ),
    _model("df_unet2d_condition", "UNet2DConditionModel", _conditioned, **_CROSS, out_channels=4,
           up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")),
    _model(
        "df_unet2d_ddpm", "UNet2DModel", lambda: {"sample": normal(2, 4, 16, 16), "timestep": _timesteps()}, **_UNET,
        out_channels=4, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    ),
    _model(
        "df_vae_kl", "AutoencoderKL", lambda: {"sample": normal(2, 3, 16, 16)}, block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4,
        sample_size=16, latent_channels=4,
    ),
)  # fmt: skip

DIFFUSERS_HELD_OUT = table(
    _model(
        "df_auraflow", "AuraFlowTransformer2DModel",
        lambda: _conditioned("hidden_states", 8) | {"timestep": torch.tensor([0.7, 0.2])}, sample_size=8,
        num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=24, caption_projection_dim=32, pos_embed_max_size=16,
    ),
    _model(
        "df_autoencoder_tiny", "AutoencoderTiny", lambda: {"sample": normal(2, 3, 16, 16)},
        encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    ),
    _model(
        "df_sana", "SanaTransformer2DModel", lambda: _conditioned("hidden_states", 8), in_channels=4, out_channels=4,
        num_attention_heads=4, attention_head_dim=8, num_layers=2, num_cross_attention_heads=4,
        cross_attention_head_dim=8, cross_attention_dim=32, caption_channels=24, sample_size=8,
    ),
    _model(
        "df_wan", "WanTransformer3DModel", _wan, num_attention_heads=4, attention_head_dim=12, in_channels=4,
        out_channels=4, text_dim=24, freq_dim=16, ffn_dim=64, num_layers=2, rope_max_seq_len=32,
    ),
)  # fmt: skip
