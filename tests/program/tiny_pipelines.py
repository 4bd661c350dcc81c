"""Pipelines of diffusers from small random configs, with tokenizers of a few words; nothing is fetched."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from graphopt.pipeline.backend import Backend
from graphopt.program.reference import reference_runner, run_unit

WORDS = ("cat", "dog", "red", "blue", "blurry")


class ReferenceBackend(Backend):
    """Runs programs as they are in torch: quick to compile."""

    name = "as-it-is"

    def lower(self, model, **options):
        run = run_unit(model)
        return lambda *arrays: run(arrays)

    def lower_program(self, program, **options):
        return reference_runner(program)


def randomised(module: torch.nn.Module, seed: int) -> Any:
    """In inference mode, with weights that make every input count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.parameters():
            scale = 0.1 if tensor.ndim == 1 else 0.6 / tensor[0].numel() ** 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + (tensor.ndim == 1))
    return module.eval()


def clip_tokenizer(folder) -> CLIPTokenizer:
    letters = sorted(set("".join(WORDS)))
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{c}</w>" for c in letters)]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=9)


def t5_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {token: i for i, token in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=9
    )


def clip(kind: type = CLIPTextModel, seed: int = 11) -> Any:
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=9, projection_dim=10, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return randomised(kind(config), seed)


def t5(width: int) -> Any:
    config = T5Config(vocab_size=16, d_model=width, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    return randomised(T5EncoderModel(config), 12)


@cache
def vae() -> AutoencoderKL:
    down, up = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    made = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=down, up_block_types=up, latent_channels=4, norm_num_groups=4,
        sample_size=16, shift_factor=0.1,
    )  # fmt: skip
    return randomised(made, 13)


def unet(in_channels: int = 4, seed: int = 14) -> UNet2DConditionModel:
    made = UNet2DConditionModel(
        sample_size=8, in_channels=in_channels, out_channels=4, block_out_channels=(16,), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=16, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    return randomised(made, seed)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion(folder, kind: type = StableDiffusionPipeline, in_channels: int = 4, **others: Any) -> Any:
    scheduler = DPMSolverMultistepScheduler(beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    return quiet(
        kind(
            vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(folder), unet=unet(in_channels),
            scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **others,
        )
    )  # fmt: skip


def pixart(kind: type = PixArtSigmaPipeline) -> Any:
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, sample_size=8, patch_size=2, caption_channels=12, use_additional_conditions=False,
    )  # fmt: skip
    return quiet(
        kind(
            tokenizer=t5_tokenizer(), text_encoder=t5(12), vae=vae(), transformer=randomised(transformer, 15),
            scheduler=DPMSolverMultistepScheduler(),
        )
    )  # fmt: skip


def stable_diffusion_3(folder) -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=16, pooled_projection_dim=20, out_channels=4,
        pos_embed_max_size=12,
    )  # fmt: skip
    return quiet(
        StableDiffusion3Pipeline(
            transformer=randomised(transformer, 16), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(),
            text_encoder=clip(CLIPTextModelWithProjection, 17), tokenizer=clip_tokenizer(folder),
            text_encoder_2=clip(CLIPTextModelWithProjection, 18), tokenizer_2=clip_tokenizer(folder),
            text_encoder_3=t5(32), tokenizer_3=t5_tokenizer(),
        )
    )  # fmt: skip


def flux() -> Any:
    """Without text encoders: for embeddings 24 wide and pooled ones 20 wide."""
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return quiet(
        FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae(), text_encoder=None,
            tokenizer=None, text_encoder_2=None, tokenizer_2=None, transformer=randomised(transformer, 19),
        )
    )  # fmt: skip
