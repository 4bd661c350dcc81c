"""Blocks of experts from transformers run on onnxruntime as they run in torch, each expert on its own tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from moe_blocks import BLOCKS, KINDS, deepseek, error, lowered, mixtral, tokens

import graphopt
from graphopt.ir.text import model_text

CLOSE = 1e-5
"""Relative error that is allowed beside torch."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_any_number_of_tokens_is_as_in_torch(name: str, kind: str) -> None:
    block = BLOCKS[name](kind)
    result, run = lowered(block, 7, dynamic=True)
    assert [a.status for a in result.report.applications] == (["kept"] if kind == "grouped_mm" else [])
    assert any("picked-experts#1 kept" in note for note in run.notes)
    for count in (1, 7, 64, 1024):
        assert error(block, run, tokens(count)) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", (1, 64))
def test_a_fixed_number_of_tokens_is_as_in_torch(count: int, kind: str) -> None:
    block = deepseek(kind)
    _, run = lowered(block, count, dynamic=False)
    assert any("picked-experts#1 kept" in note for note in run.notes)
    assert error(block, run, tokens(count)) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
def test_experts_without_a_token_are_as_in_torch(kind: str) -> None:
    block = mixtral(kind)
    with torch.no_grad():
        block.gate.weight[3:] = 0.0
        block.gate.weight[0], block.gate.weight[1] = 1.0, 0.5
    x = tokens(64).abs()
    with torch.no_grad():
        chosen = torch.topk(x[0] @ block.gate.weight.T, 2).indices
    assert set(chosen.flatten().tolist()) <= {0, 1, 2}
    _, run = lowered(block, 7, dynamic=True)
    assert error(block, run, x) < CLOSE


def test_all_experts_of_each_token_are_the_dense_layer() -> None:
    block = mixtral("grouped_mm", experts=4, k=4)
    _, run = lowered(block, 7, dynamic=True)
    x = tokens(9)
    with torch.no_grad():
        gates = torch.softmax(x[0] @ block.gate.weight.T, -1)
        up, down = block.experts.gate_up_proj, block.experts.down_proj
        halves = torch.einsum("td,efd->tef", x[0], up).chunk(2, -1)
        dense = torch.einsum("te,tef,edf->td", gates, torch.nn.functional.silu(halves[0]) * halves[1], down)
    assert torch.allclose(run(x)[0], dense, rtol=0, atol=CLOSE * float(dense.abs().max()))


def exported(block: Any, count: int = 7) -> onnx.ModelProto:
    return torch.onnx.export(block, (tokens(count),), dynamo=True, verbose=False).model_proto


def test_no_weight_is_copied_or_doubled() -> None:
    model = exported(mixtral("batched_mm"))
    result = graphopt.optimize(model, "lower-moe", target="onnxruntime")
    text = model_text(graphopt.load(result.model))
    assert "gather(%" in text and "[14,96,32]" not in text and "14,32,48" not in text
    sizes = [sum(int(np.prod(t.dims)) for t in m.graph.initializer) for m in (model, result.model)]
    assert sizes[1] < sizes[0] + 64


@pytest.mark.parametrize("count", (1, 7))
@pytest.mark.parametrize("wrong", range(0, 8, 3))
def test_every_weight_of_every_expert_is_looked_at(wrong: int, count: int) -> None:
    """Verification runs as many rows as there are experts at least, so that a wrong one is seen."""
    from graphopt.passes.lower_moe.stacks import Stack

    original = Stack.of

    def swapped(stack: Stack, expert: int, *, transposed: bool = False) -> Any:
        return original(stack, (expert + (expert == wrong)) % stack.experts, transposed=transposed)

    model = exported(mixtral("batched_mm"), count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stack, "of", swapped)
        report = graphopt.optimize(model, "lower-moe", target="onnxruntime").report
    statuses = {a.rule: a.status for a in report.applications}
    assert statuses["picked-experts"] == "undone"
    right = graphopt.optimize(model, "lower-moe", target="onnxruntime").report
    assert {a.status for a in right.applications} == {"kept"}


def test_what_is_for_torch_keeps_its_grouped_products() -> None:
    block = mixtral("grouped_mm")
    result = graphopt.optimize(block, "lower-moe", example_inputs=(tokens(7),))
    assert result.report.applications == []
    assert torch.equal(result.model(tokens(7)), block(tokens(7)))
