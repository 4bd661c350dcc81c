"""Tiny models of transformers: real architectures, two layers or so, random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.pruning_inputs import TinyModel, image, table, text, token_ids

_WIDTH: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_VISION = _WIDTH | {"image_size": 32, "patch_size": 8, "num_labels": 10}
_TEXT = _WIDTH | {"vocab_size": 64, "max_position_embeddings": 32}
_DECODER = _TEXT | {"use_cache": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
_GQA = _DECODER | {"num_key_value_heads": 2}
_FOUR_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_labels": 10}


def _maker(model: str, config: str, settings: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        module: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**settings))
        return module

    return make


def _vision(name: str, family: str, inputs: Any = None, **settings: Any) -> TinyModel:
    make = _maker(f"{family}ForImageClassification", f"{family}Config", settings)
    return TinyModel(name, make, inputs or image())


def _causal(name: str, family: str, model: str = "", **settings: Any) -> TinyModel:
    return TinyModel(name, _maker(model or f"{family}ForCausalLM", f"{family}Config", settings), text())


def _masked(name: str, family: str, **settings: Any) -> TinyModel:
    return TinyModel(name, _maker(f"{family}ForMaskedLM", f"{family}Config", settings), text())


def _translation() -> dict[str, Any]:
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(length=5, seed=2)}


TRANSFORMERS = table(
    _vision("hf_beit", "Beit", **_VISION, use_relative_position_bias=True),
    _masked("hf_bert", "Bert", **_TEXT),
    _vision(
        "hf_bit", "Bit", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="preactivation",
        num_groups=4, num_labels=10,
    ),
    _vision("hf_convnext", "ConvNext", **_FOUR_STAGES),
    _vision("hf_convnextv2", "ConvNextV2", **_FOUR_STAGES),
    _vision("hf_deit", "DeiT", **_VISION),
    _vision("hf_dinov2", "Dinov2", **(_VISION | {"intermediate_size": None}), mlp_ratio=2),
    _masked("hf_distilbert", "DistilBert", vocab_size=64, max_position_embeddings=32, dim=32, n_layers=2, n_heads=4,
            hidden_dim=64),
    _causal("hf_gpt2", "GPT2", "GPT2LMHeadModel", vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=4,
            use_cache=False, bos_token_id=1, eos_token_id=1),
    _causal("hf_gptneox_fusedqkv", "GPTNeoX", **_DECODER),
    _vision(
        "hf_levit", "Levit", image(64), image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1], key_dim=[8, 8, 8], mlp_ratio=[2, 2, 2], attention_ratio=[2, 2, 2], num_labels=10,
    ),
    _causal("hf_llama_gqa", "Llama", **_GQA),
    _causal("hf_llama_mha", "Llama", **_DECODER),
    _causal("hf_mamba", "Mamba", vocab_size=64, hidden_size=32, state_size=4, num_hidden_layers=2, use_cache=False,
            pad_token_id=0, bos_token_id=1, eos_token_id=1),
    # batched_mm is the form of the experts that both torch.export and torch.onnx take.
    _causal("hf_mixtral_moe", "Mixtral", **_GQA, num_local_experts=4, num_experts_per_tok=2,
            experts_implementation="batched_mm"),
    _vision("hf_mobilenet_v1", "MobileNetV1", image_size=32, depth_multiplier=0.25, min_depth=8, num_labels=10),
    _vision("hf_mobilenet_v2", "MobileNetV2", image_size=32, depth_multiplier=0.25, min_depth=8, num_labels=10),
    _causal("hf_phi3_fusedqkv", "Phi3", **_GQA),
    _vision("hf_poolformer", "PoolFormer", **_FOUR_STAGES),
    _causal("hf_qwen3", "Qwen3", **_GQA, head_dim=8),
    _vision("hf_regnet", "RegNet", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 2], groups_width=8,
            layer_type="y", num_labels=10),
    _vision("hf_resnet", "ResNet", embedding_size=16, hidden_sizes=[32, 64], depths=[1, 2], num_labels=10),
    _masked("hf_roberta", "Roberta", **_TEXT),
    _vision("hf_segformer", "Segformer", image(64), **_FOUR_STAGES, num_attention_heads=[1, 2, 3, 4],
            decoder_hidden_size=32),
    _vision("hf_swin", "Swin", image_size=32, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[2, 4],
            window_size=4, num_labels=10),
    TinyModel(
        "hf_t5_encdec",
        _maker("T5ForConditionalGeneration", "T5Config", {
            "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
            "use_cache": False, "decoder_start_token_id": 0,
        }),
        _translation,
    ),
    _vision("hf_vit", "ViT", **_VISION),
)  # fmt: skip

TRANSFORMERS_HELD_OUT = table(
    _masked("hf_albert", "Albert", **_TEXT, embedding_size=16),
    _causal("hf_bloom", "Bloom", vocab_size=64, hidden_size=32, n_layer=2, n_head=4, use_cache=False),
    _vision("hf_dinov2_registers", "Dinov2WithRegisters", **(_VISION | {"intermediate_size": None}), mlp_ratio=2),
    _masked("hf_electra", "Electra", **_TEXT, embedding_size=16),
    _causal("hf_gemma2", "Gemma2", **_GQA, head_dim=8, sliding_window=4),
    _vision("hf_mobilevit", "MobileViT", image(64), image_size=64, hidden_sizes=[16, 24, 32], num_attention_heads=4,
            neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32], num_labels=10),
)  # fmt: skip
