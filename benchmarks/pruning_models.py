"""The models that structured pruning is measured on: 47 tiny ones, and 10 more that no rule was written for.

Nothing is downloaded: architectures are those of transformers, diffusers or hand-made, weights are random and seeded.
"""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks import pruning_handmade as handmade
from benchmarks.pruning_diffusers import DIFFUSERS, DIFFUSERS_HELD_OUT
from benchmarks.pruning_inputs import TinyModel, normal, positional, table, token_ids
from benchmarks.pruning_transformers import TRANSFORMERS, TRANSFORMERS_HELD_OUT

_IMAGE = positional(2, 3, 16, 16)
_TOKENS = positional(2, 6, 16)

HANDMADE = table(
    TinyModel("densenet_block", handmade.densenet, _IMAGE),
    TinyModel("geglu_mlp", handmade.GegluMlp, _TOKENS),
    TinyModel("gqa_fused_qkv", lambda: handmade.FusedQkv(4, 2), _TOKENS),
    TinyModel("groupnorm_res", handmade.group_norm_residual, _IMAGE),
    TinyModel("lstm", handmade.Lstm, lambda: (token_ids(vocabulary=32),)),
    TinyModel("mha_fused_qkv", lambda: handmade.FusedQkv(4, 4), _TOKENS),
    TinyModel("pixel_shuffle_sr", handmade.pixel_shuffle, _IMAGE),
    TinyModel("resnet_small", handmade.resnet, _IMAGE),
    TinyModel("resnext_small_g8", handmade.resnext, _IMAGE),
    TinyModel("se_block", handmade.squeeze_excite, _IMAGE),
    TinyModel("shufflenet_block", handmade.shufflenet, _IMAGE),
    TinyModel("vgg_flatten", handmade.vgg_flatten, lambda: (normal(2, 3, 8, 8),)),
)

MODELS: Mapping[str, TinyModel] = dict(sorted((HANDMADE | TRANSFORMERS | DIFFUSERS).items()))

HELD_OUT: Mapping[str, TinyModel] = dict(sorted((TRANSFORMERS_HELD_OUT | DIFFUSERS_HELD_OUT).items()))


def find(name: str) -> TinyModel:
    """The model of that name, from either list. Raises KeyError, with all names, if there is none."""
    if name in MODELS:
        return MODELS[name]
    if name in HELD_OUT:
        return HELD_OUT[name]
    raise KeyError(f"no model {name!r}; expected one of {', '.join([*MODELS, *HELD_OUT])}")
