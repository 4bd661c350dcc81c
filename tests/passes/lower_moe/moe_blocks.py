"""Blocks of experts as transformers has them, tiny, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

import graphopt

WIDTH, HIDDEN, EXPERTS = 32, 48, 8
ANY_LENGTH = ({1: torch.export.Dim("tokens", min=1, max=4096)},)


def mixtral(kind: str, *, experts: int = EXPERTS, k: int = 2) -> Any:
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=experts, num_experts_per_tok=k
    )
    return _ready(MixtralSparseMoeBlock, config, kind)


def qwen3(kind: str) -> Any:
    config = Qwen3MoeConfig(
        hidden_size=WIDTH, moe_intermediate_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=2, norm_topk_prob=True
    )
    return _ready(Qwen3MoeSparseMoeBlock, config, kind)


def deepseek(kind: str) -> Any:
    """A router of sigmoids that picks groups of experts first, and a shared expert."""
    config = DeepseekV3Config(
        hidden_size=WIDTH, moe_intermediate_size=HIDDEN, n_routed_experts=EXPERTS, num_experts_per_tok=2, n_group=4,
        topk_group=2, n_shared_experts=1,
    )  # fmt: skip
    return _ready(DeepseekV3MoE, config, kind)


BLOCKS = {"mixtral": mixtral, "qwen3": qwen3, "deepseek": deepseek}
KINDS = ("grouped_mm", "batched_mm")
"""How transformers computes experts where it can be exported."""


def _ready(block: Any, config: Any, kind: str) -> Any:
    config._experts_implementation = kind
    torch.manual_seed(0)
    made = block(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def tokens(count: int) -> torch.Tensor:
    return torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(count))


def lowered(block: Any, count: int, *, dynamic: bool) -> tuple[Any, Any]:
    """The result of the pass on `block`, and what onnxruntime makes of it."""
    result = graphopt.optimize(
        block, "lower-moe", example_inputs=(tokens(count),), dynamic_shapes=ANY_LENGTH if dynamic else None,
        target="onnxruntime",
    )  # fmt: skip
    return result, result.lower()


def error(block: Any, run: Any, x: torch.Tensor) -> float:
    """Relative error of `run` against the block itself."""
    with torch.no_grad():
        expected = block(x)
    return float((run(x) - expected).abs().max() / expected.abs().max())
