"""Switch Transformers' experts, written as a sum over all of them, become a choice, capacity and all: tokens that are
dropped have gates of zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from moe_blocks import EXPERTS, HIDDEN, WIDTH
from transformers import SwitchTransformersConfig
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersSparseMLP

import graphopt

CLOSE = 1e-5


def all_experts(experts: Any, rows: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What the loop over the experts that were hit computes."""
    terms = [expert(rows) * (chosen[:, 0, e, None] * weights) for e, expert in enumerate(experts.values())]
    total: torch.Tensor = sum(terms)  # type: ignore[assignment]
    return total


def switch(capacity: int) -> Any:
    config = SwitchTransformersConfig(
        d_model=WIDTH, d_ff=HIDDEN, num_experts=EXPERTS, expert_capacity=capacity, router_bias=False
    )
    torch.manual_seed(0)
    block = SwitchTransformersSparseMLP(config).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return block


def traceable(capacity: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A block without the loop, tokens, and what the block with it makes of them."""
    block, x = switch(capacity), torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = block(x)
    classifier, experts = block.router.classifier, block.experts
    classifier.to = lambda dtype: classifier
    experts.forward = lambda *given: all_experts(experts, *given)
    return block, x, expected


@pytest.mark.parametrize("capacity", (64, 1))
def test_each_expert_of_a_switch_transformer_has_its_own_tokens(capacity: int) -> None:
    block, x, expected = traceable(capacity)
    program = torch.onnx.export(block, (x,), dynamo=True, verbose=False)
    assert program is not None
    result = graphopt.optimize(program.model_proto, "lower-moe", target="onnxruntime")
    assert [(a.rule, a.status) for a in result.report.applications] == [("dense-experts", "kept")]
    run = onnxruntime.InferenceSession(result.model.SerializeToString())
    (found,) = run.run(None, {run.get_inputs()[0].name: x.numpy()})
    assert float(np.abs(found - expected.numpy()).max()) < CLOSE * float(expected.abs().max())


@pytest.mark.parametrize("capacity", (64, 1))
def test_a_module_is_lowered_as_its_export_is(capacity: int) -> None:
    block, x, expected = traceable(capacity)
    result = graphopt.optimize(block, "lower-moe", example_inputs=(x,), target="onnxruntime")
    run = result.lower()
    assert "lower-moe/dense-experts#1 kept" in run.notes
    assert float((run(x) - expected).abs().max()) < CLOSE * float(expected.abs().max())


class Best(torch.nn.Module):
    """Something is chosen, and it is no expert."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, place = torch.topk(x.softmax(-1), 2)
        return torch.gather(x, -1, place), x.argmax(-1)


def test_a_choice_without_experts_is_left_alone_without_a_word() -> None:
    x = torch.randn(3, 8)
    run = graphopt.lower(Best().eval(), "onnxruntime", example_inputs=(x,))
    assert run.notes == ()
    assert all(torch.equal(one, other) for one, other in zip(run(x), Best()(x), strict=True))
