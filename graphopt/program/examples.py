"""Example inputs for denoisers of diffusers, from their configs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphopt.errors import ModelError


def example_for(module: Any) -> dict[str, Any]:
    """Inputs of one call, batch 1, by argument name, on the device and in the dtype of the module's weights.

    Raises:
        ModelError: the class is not known; the message says how to give example inputs.
    """
    name = type(module).__name__
    make = _EXAMPLES.get(name)
    if make is None:
        raise ModelError(
            f"{name} is traced by running it once: pass example_inputs={{name: tensor, ...}} of one call without "
            f"guidance (known without: {', '.join(_EXAMPLES)})"
        )
    parameter = next(module.parameters())
    given = make(_Config(module.config), _Maker(parameter.dtype, parameter.device))
    return {**given, "return_dict": False}


def timestep_scale_of(module: Any) -> float:
    """What the pipelines of diffusers multiply timesteps by before they call a denoiser of this class."""
    return 0.001 if type(module).__name__ == "FluxTransformer2DModel" else 1.0


class _Maker:
    """Makes the tensors of an example: seeded normal numbers, so that a check that runs on them can fail."""

    def __init__(self, dtype: Any, device: Any) -> None:
        self._dtype = dtype
        self._device = device

    def floats(self, *shape: int) -> Any:
        return self._normal(shape, self._dtype)

    def ints(self, *shape: int) -> Any:
        import torch

        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def float32(self, *shape: int) -> Any:
        import torch

        return self._normal(shape, torch.float32)

    def ones(self, *shape: int) -> Any:
        import torch

        return torch.ones(shape, dtype=self._dtype, device=self._device)

    def _normal(self, shape: tuple[int, ...], dtype: Any) -> Any:
        import torch

        if self._device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=self._device)
        drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
        return drawn.to(dtype=dtype, device=self._device)


class _Config:
    """A config whose absent entries are None."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return self._config.get(name)


def _square(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _unet(c: _Config, make: _Maker) -> dict[str, Any]:
    example = {"sample": make.floats(1, c.in_channels, *_square(c.sample_size)), "timestep": make.float32()}
    if c.class_embed_type is not None or c.num_class_embeds is not None:
        example["class_labels"] = make.ints(1)
    return example


def _unet_condition(c: _Config, make: _Maker) -> dict[str, Any]:
    width = c.cross_attention_dim
    example = _unet(c, make)
    example["encoder_hidden_states"] = make.floats(1, 77, width if isinstance(width, int) else width[0])
    if c.addition_embed_type == "text_time":
        pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
        example["added_cond_kwargs"] = {"text_embeds": make.floats(1, pooled), "time_ids": make.floats(1, 6)}
    return example


def _dit(c: _Config, make: _Maker) -> dict[str, Any]:
    latents = make.floats(1, c.in_channels, *_square(c.sample_size))
    return {"hidden_states": latents, "timestep": make.ints(1), "class_labels": make.ints(1)}


def _pixart(c: _Config, make: _Maker) -> dict[str, Any]:
    tokens = 300 if c.sample_size == 128 else 120
    return {
        "hidden_states": make.floats(1, c.in_channels, *_square(c.sample_size)),
        "encoder_hidden_states": make.floats(1, tokens, c.caption_channels),
        "encoder_attention_mask": make.ones(1, tokens),
        "timestep": make.ints(1),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def _sd3(c: _Config, make: _Maker) -> dict[str, Any]:
    return {
        "hidden_states": make.floats(1, c.in_channels, *_square(c.sample_size)),
        "encoder_hidden_states": make.floats(1, 333, c.joint_attention_dim),
        "pooled_projections": make.floats(1, c.pooled_projection_dim),
        "timestep": make.float32(1),
    }


def _flux(c: _Config, make: _Maker) -> dict[str, Any]:
    tokens, text = 4096, 512
    example = {
        "hidden_states": make.floats(1, tokens, c.in_channels),
        "encoder_hidden_states": make.floats(1, text, c.joint_attention_dim),
        "pooled_projections": make.floats(1, c.pooled_projection_dim),
        "timestep": make.floats(1),
        "img_ids": make.floats(tokens, 3),
        "txt_ids": make.floats(text, 3),
    }
    if c.guidance_embeds:
        example["guidance"] = make.float32(1)
    return example


_EXAMPLES: Mapping[str, Callable[[_Config, _Maker], dict[str, Any]]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet_condition,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
