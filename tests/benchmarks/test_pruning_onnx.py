"""The scoreboard of pruning compares axes of torch models with those of their ONNX files."""

from __future__ import annotations

import pytest

import graphopt
from benchmarks.pruning_models import find
from benchmarks.pruning_onnx import Compared, compare, exported
from benchmarks.sharpen import sharpen
from graphopt.ir.model import Model


def both(name: str) -> tuple[Model, Model]:
    module, example = find(name).build()
    sharpen(module)
    return graphopt.load(module, example_inputs=example), exported(module, example)[0]


# Repeated heads, shuffled channels with folded batch norms, gates, experts picked by number, rotated queries.
@pytest.mark.parametrize(
    ("name", "axes"),
    [("gqa_fused_qkv", 5), ("shufflenet_block", 5), ("geglu_mlp", 2), ("hf_mixtral_moe", 10), ("hf_phi3_fusedqkv", 10)],
)
def test_files_have_the_axes_of_their_models(name: str, axes: int) -> None:
    assert compare(*both(name)) == (Compared(axes, 0, 0), ())


def test_axes_at_other_places_are_not_the_same() -> None:
    (module, example), (other, _) = find("mha_fused_qkv").build(), find("mha_fused_qkv").build()
    sharpen(module)
    other.load_state_dict(module.state_dict())
    other.heads, other.kv_heads, other.head_size = 8, 8, 4
    found, details = compare(graphopt.load(module, example_inputs=example), exported(other, example)[0])
    assert (found.same, found.only_torch, found.only_onnx) == (1, 3, 3)
    assert len(details) == 6 and details[0] == "torch alone: qkv.weight:0.0.0 (4, exact)"


def test_what_counts_in_the_model_counts_in_its_file() -> None:
    found, details = compare(*both("df_unet2d_ddpm"))
    assert found.same > 0 and (found.only_torch, found.only_onnx, details) == (0, 0, ())
