"""Blocks of experts of many families of transformers: each runs on onnxruntime as in torch, its experts on their own
tokens, or the reason why not is said."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from moe_blocks import EXPERTS, HIDDEN, KINDS, WIDTH, error, lowered, tokens
from transformers import GptOssConfig, GptOssModel

CLOSE = 1e-5
"""Relative error that is allowed beside torch."""

COMMON = {"hidden_size": WIDTH, "num_experts_per_tok": 2}
SMALL = {**COMMON, "intermediate_size": HIDDEN}
FAMILIES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "olmoe": ("olmoe", "OlmoeSparseMoeBlock", "OlmoeConfig", {**SMALL, "num_experts": EXPERTS}),
    "olmoe renormalised": (
        "olmoe", "OlmoeSparseMoeBlock", "OlmoeConfig", {**SMALL, "num_experts": EXPERTS, "norm_topk_prob": True}),
    "qwen2": (
        "qwen2_moe", "Qwen2MoeSparseMoeBlock", "Qwen2MoeConfig",
        {**COMMON, "num_experts": EXPERTS, "moe_intermediate_size": HIDDEN, "shared_expert_intermediate_size": 24}),
    "deepseek v2": (
        "deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config",
        {**COMMON, "n_routed_experts": EXPERTS, "moe_intermediate_size": HIDDEN, "n_shared_experts": 2, "n_group": 4,
         "topk_group": 2, "topk_method": "greedy", "routed_scaling_factor": 1.5}),
    "deepseek v2 groups": (
        "deepseek_v2", "DeepseekV2Moe", "DeepseekV2Config",
        {**COMMON, "n_routed_experts": EXPERTS, "moe_intermediate_size": HIDDEN, "n_shared_experts": 1, "n_group": 4,
         "topk_group": 2, "topk_method": "group_limited_greedy", "routed_scaling_factor": 1.5}),
    "deepseek v3": (
        "deepseek_v3", "DeepseekV3MoE", "DeepseekV3Config",
        {**COMMON, "n_routed_experts": EXPERTS, "moe_intermediate_size": HIDDEN, "n_shared_experts": 1, "n_group": 2,
         "topk_group": 1, "routed_scaling_factor": 2.5}),
    "granite": ("granitemoe", "GraniteMoeMoE", "GraniteMoeConfig", {**SMALL, "num_local_experts": EXPERTS}),
    "phi": ("phimoe", "PhimoeSparseMoeBlock", "PhimoeConfig", {**SMALL, "num_local_experts": EXPERTS}),
    "gpt-oss": ("gpt_oss", "GptOssMLP", "GptOssConfig", {**SMALL, "num_local_experts": EXPERTS}),
    "glm4": (
        "glm4_moe", "Glm4MoeMoE", "Glm4MoeConfig",
        {**COMMON, "n_routed_experts": EXPERTS, "moe_intermediate_size": HIDDEN, "n_shared_experts": 1, "n_group": 1,
         "topk_group": 1}),
    "ernie4.5": (
        "ernie4_5_moe", "Ernie4_5_MoeSparseMoeBlock", "Ernie4_5_MoeConfig",
        {"hidden_size": WIDTH, "moe_k": 2, "moe_num_experts": EXPERTS, "moe_intermediate_size": HIDDEN,
         "moe_num_shared_experts": 2}),
    "llama4": (
        "llama4", "Llama4TextMoe", "Llama4TextConfig",
        {**COMMON, "intermediate_size": HIDDEN, "num_local_experts": EXPERTS, "num_experts_per_tok": 1}),
}  # fmt: skip
ROUTED = [name for name in FAMILIES if name != "llama4"]


class Blocks(torch.nn.Module):
    """Blocks side by side, so that they are exported once; of those that return scores too, the result alone."""

    def __init__(self, names: Sequence[str], kind: str) -> None:
        super().__init__()
        self.names = tuple(names)
        self.blocks = torch.nn.ModuleList([block(name, kind) for name in names])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = [made(x) for made in self.blocks]
        return tuple(one[0] if isinstance(one, tuple) else one for one in found)


class Embedded(torch.nn.Module):
    """A model of language that is given embeddings [1, T, WIDTH]."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.model(inputs_embeds=x, use_cache=False).last_hidden_state
        return hidden


def block(name: str, kind: str) -> Any:
    """A block of a family with random weights, tokens of width WIDTH to tokens."""
    module, class_, config_class, options = FAMILIES[name]
    package = f"transformers.models.{module}"
    modeling = importlib.import_module(f"{package}.modeling_{module}")
    config = getattr(importlib.import_module(f"{package}.configuration_{module}"), config_class)(**options)
    config._experts_implementation = kind
    torch.manual_seed(0)
    made = getattr(modeling, class_)(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for buffer in made.buffers():
        torch.nn.init.normal_(buffer, std=0.2)
    return made


def assert_as_in_torch(blocks: Blocks, run: Any, counts: Sequence[int]) -> None:
    for count in counts:
        x = tokens(count)
        with torch.no_grad():
            expected = blocks(x)
        found = run(x)
        results = found if isinstance(found, tuple) else (found,)
        for name, one, other in zip(blocks.names, results, expected, strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype, name
            assert float((one - other).abs().max()) < CLOSE * float(other.abs().max()), (name, count)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_of_all_families_run_as_in_torch_for_any_number_of_tokens(kind: str) -> None:
    blocks = Blocks(ROUTED, kind).eval()
    result, run = lowered(blocks, 7, dynamic=True)
    assert {a.status for a in result.report.applications} == ({"kept"} if kind == "grouped_mm" else set())
    lowered_ones = [note for note in run.notes if note.startswith("lower-moe/picked-experts")]
    assert lowered_ones == [f"lower-moe/picked-experts#{k} kept" for k in range(1, len(ROUTED) + 1)]
    assert not result.report.passes[0].notes
    assert_as_in_torch(blocks, run, (1, 7, 64))


@pytest.mark.parametrize("count", (1, 7, 64))
def test_blocks_of_many_kinds_run_as_in_torch_for_a_fixed_number_of_tokens(count: int) -> None:
    blocks = Blocks(["qwen2", "deepseek v2 groups", "phi", "gpt-oss"], KINDS[count % 2]).eval()
    _, run = lowered(blocks, count, dynamic=False)
    assert "lower-moe/picked-experts#4 kept" in run.notes
    assert_as_in_torch(blocks, run, (count,))


def test_every_layer_of_a_whole_model_is_lowered() -> None:
    config = GptOssConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=2, head_dim=8,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=64, sliding_window=4,
    )  # fmt: skip
    config._attn_implementation, config._experts_implementation = "eager", "grouped_mm"
    torch.manual_seed(0)
    model = Embedded(GptOssModel(config)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    _, run = lowered(model, 7, dynamic=False)
    assert "lower-moe/picked-experts#3 kept" in run.notes
    assert error(model, run, tokens(7)) < CLOSE


@pytest.mark.parametrize("count", (1, 7))
def test_llama4_has_every_token_in_every_expert_and_stays_as_it_is(count: int) -> None:
    """Its experts are one product with a matrix for each expert, of tokens times a score of 0 for all but one."""
    blocks = Blocks(["llama4"], "grouped_mm").eval()
    result, run = lowered(blocks, count, dynamic=False)
    assert not result.report.applications and not run.notes
    assert_as_in_torch(blocks, run, (count,))
