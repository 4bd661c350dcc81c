"""Experts in a loop over stacked weights: as in torch, in a graph whose size does not depend on how many there are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from moe_blocks import ANY_LENGTH, BLOCKS, WIDTH, mixtral, tokens

import graphopt
from graphopt.passes.lower_moe import looped

CLOSE = 1e-5


def exported(block: Any) -> onnx.ModelProto:
    program = torch.onnx.export(block, (tokens(7),), dynamo=True, verbose=False, dynamic_shapes=ANY_LENGTH)
    assert program is not None
    return program.model_proto


def looped_form(block: Any) -> Any:
    return graphopt.optimize(exported(block), "lower-moe{form=loop}", target="onnxruntime")


def as_in_torch(result: Any, block: Any, x: torch.Tensor) -> bool:
    with torch.no_grad():
        expected = block(x).numpy()
    return bool(np.abs(result.lower()(x.numpy()) - expected).max() < CLOSE * np.abs(expected).max())


@pytest.mark.parametrize("name", BLOCKS)
def test_any_number_of_tokens_is_as_in_torch(name: str) -> None:
    block = BLOCKS[name]("batched_mm")
    result = looped_form(block)
    assert [(a.rule, a.status) for a in result.report.applications if "experts" in a.rule] == [("loop-experts", "kept")]
    assert all(as_in_torch(result, block, tokens(count)) for count in (1, 7, 64, 1024))


def test_experts_without_a_token_are_not_looked_at() -> None:
    block = mixtral("batched_mm")
    with torch.no_grad():
        block.gate.weight[2:] = 0.0
        block.gate.weight[0], block.gate.weight[1] = 1.0, 0.5
        block.experts.down_proj[3:] = float("nan")
    result = looped_form(block)
    assert as_in_torch(result, block, tokens(64).abs())


def test_the_graph_has_one_size_and_no_weight_is_doubled() -> None:
    sizes = []
    for experts in (4, 16):
        model = exported(mixtral("batched_mm", experts=experts))
        result = graphopt.optimize(model, "lower-moe{form=loop}", target="onnxruntime")
        (loop,) = [node for node in result.model.graph.node if node.op_type == "Loop"]
        sizes.append((len(result.model.graph.node), len(loop.attribute[0].g.node)))
        weights = [sum(int(np.prod(t.dims)) for t in m.graph.initializer) for m in (model, result.model)]
        assert weights[1] < weights[0] + 64
    assert sizes[0] == sizes[1]


def test_a_weight_of_another_expert_is_seen() -> None:
    original = looped._Round._one_row

    def wrong(body: Any, stack: Any) -> Any:
        body.number = body.writer.numbers(1)
        return original(body, stack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(looped._Round, "_one_row", wrong)
        result = looped_form(mixtral("batched_mm"))
    assert {a.rule: a.status for a in result.report.applications}["loop-experts"] == "undone"
    assert as_in_torch(result, mixtral("batched_mm"), tokens(7))


class Sum(torch.nn.Module):
    """Four experts for every token, the gates of two of them zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(WIDTH, 4)
        self.experts = torch.nn.ModuleList([torch.nn.Linear(WIDTH, WIDTH) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        best, ids = torch.topk(self.gate(rows).softmax(-1), 2)
        gates = torch.zeros(rows.shape[0], 4).scatter(1, ids, best)
        terms = [gates[:, e, None] * expert(rows) for e, expert in enumerate(self.experts)]
        return terms[0] + terms[1] + terms[2] + terms[3]


def test_experts_that_are_not_stacked_are_in_another_form_and_why_is_said() -> None:
    torch.manual_seed(0)
    block = Sum().eval()
    program = torch.onnx.export(block, (tokens(7),), dynamo=True, verbose=False)
    assert program is not None
    result = graphopt.optimize(program.model_proto, "lower-moe{form=loop}", target="onnxruntime")
    notes = "\n".join(result.report.passes[0].notes)
    assert "not in form loop: no rows pick weights from a stack" in notes and "in form sorted" in notes
    assert as_in_torch(result, block, tokens(7))
