"""Denoisers of diffusers on XLA, in float32 and bfloat16."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import pytest

import graphopt

diffusers = pytest.importorskip("diffusers")


def pixart():
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=1,
        cross_attention_dim=32, sample_size=8, patch_size=2, caption_channels=20, use_additional_conditions=False,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 6, 20),
        "timestep": torch.tensor([5, 600]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def sd3():
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, 5, 12),
        "pooled_projections": torch.randn(2, 10),
        "timestep": torch.tensor([5.0, 600.0]),
    }


def conditioned_unet():
    model = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=4, cross_attention_dim=12,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return model, {
        "sample": torch.randn(2, 4, 8, 8),
        "timestep": torch.tensor([3, 900]),
        "encoder_hidden_states": torch.randn(2, 5, 12),
    }


def made(make):
    torch.manual_seed(0)
    model, inputs = make()
    return model.eval(), inputs


def first(result):
    return torch.utils._pytree.tree_leaves(result)[0]


@pytest.mark.parametrize("make", [pixart, sd3, conditioned_unet])
def test_denoisers_equal_torch(make):
    model, inputs = made(make)
    run = graphopt.lower(model, "xla", example_inputs=((), inputs))
    with torch.no_grad():
        expected = first(model(**inputs))
    torch.testing.assert_close(first(run(**inputs)), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_bfloat16_is_as_near_to_float32_as_torch_is():
    model, inputs = made(sd3)
    with torch.no_grad():
        expected = first(model(**inputs))
        model.bfloat16()
        inputs = {k: v.bfloat16() for k, v in inputs.items()}
        own = first(model(**inputs)).float()
    got = first(graphopt.lower(model, "xla", example_inputs=((), inputs))(**inputs))
    assert got.dtype == torch.bfloat16
    error = float((got.float() - expected).norm() / expected.norm())
    assert error < 0.02
    assert error < 2 * float((own - expected).norm() / expected.norm())
