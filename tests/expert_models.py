"""Blocks of experts from transformers with experts that no token is routed to, and data for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

import graphopt
from graphopt.ir.model import Model

WIDTH, HIDDEN, EXPERTS, K, TOKENS = 32, 48, 8, 2, 24
ANY_LENGTH = ({1: torch.export.Dim("tokens", min=1, max=4096)},)
BLOCKS = ("mixtral", "qwen3", "deepseek")
FORMS = ("grouped_mm fx", "batched_mm fx", "batched_mm onnx")
"""How transformers computes experts where it can be exported, and the storage."""


def block(
    name: str, kind: str = "grouped_mm", *, dead: Sequence[int] = (), experts: int = EXPERTS, groups: int = 1,
    normalised: bool = True,
) -> Any:  # fmt: skip
    """A block whose router never selects the experts `dead` for the tokens of `batches`, which have a constant 3 in
    front: their weight for it is very negative."""
    if name == "mixtral":
        config: Any = MixtralConfig(
            hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=experts, num_experts_per_tok=K
        )
        made: Any = MixtralSparseMoeBlock
    elif name == "qwen3":
        config = Qwen3MoeConfig(
            hidden_size=WIDTH, moe_intermediate_size=HIDDEN, num_experts=experts, num_experts_per_tok=K,
            norm_topk_prob=normalised,
        )  # fmt: skip
        made = Qwen3MoeSparseMoeBlock
    else:
        config = DeepseekV3Config(
            hidden_size=WIDTH, moe_intermediate_size=HIDDEN, n_routed_experts=experts, num_experts_per_tok=K,
            n_group=groups, topk_group=max(1, groups // 2), n_shared_experts=1,
        )  # fmt: skip
        made = DeepseekV3MoE
    config._experts_implementation = kind
    torch.manual_seed(0)
    module = made(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        module.gate.weight[:, 0] = 0.0
        for expert in dead:
            if name == "deepseek":
                module.gate.e_score_correction_bias[expert] = -5.0
            module.gate.weight[expert, 0] = -50.0
    return module


def tokens(seed: int, count: int = TOKENS) -> torch.Tensor:
    x = torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(seed))
    x[..., 0] = 3.0
    return x


def batches(count: int = 4) -> list[Any]:
    return [tokens(seed).numpy() for seed in range(count)]


def exported(module: Any, form: str, *, dynamic: bool = True) -> Model:
    """`module` in a storage."""
    shapes = ANY_LENGTH if dynamic else None
    if form.endswith("fx"):
        return graphopt.load(module, example_inputs=(tokens(0),), dynamic_shapes=shapes)
    program = torch.onnx.export(module, (tokens(0),), dynamo=True, verbose=False, dynamic_shapes=shapes)
    return graphopt.load(program.model_proto)


def routed(module: Any, data: Sequence[Any]) -> tuple[Any, Any]:
    """What torch itself routes: tokens [E] and sums of gate weights [E], from the block's own router."""
    count, gate = np.zeros(module.gate.weight.shape[0], np.int64), np.zeros(module.gate.weight.shape[0])
    with torch.no_grad():
        for batch in data:
            x = torch.from_numpy(batch).reshape(-1, WIDTH)
            _, weights, ids = module.gate(x)
            np.add.at(count, ids.numpy().reshape(-1), 1)
            np.add.at(gate, ids.numpy().reshape(-1), weights.numpy().reshape(-1))
    return count, gate
