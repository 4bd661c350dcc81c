"""Blocks of experts that torch.export cannot trace as they are: the error says what to do, and that works."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_hidream_image import MOEFeedForwardSwiGLU
from moe_blocks import HIDDEN, WIDTH, error, lowered, mixtral, tokens

from graphopt.errors import ModelError

CLOSE = 1e-5


def hidream() -> Any:
    torch.manual_seed(0)
    return MOEFeedForwardSwiGLU(WIDTH, HIDDEN, num_routed_experts=4, num_activated_experts=2).eval()


@pytest.mark.parametrize("block", (hidream(), mixtral("eager")), ids=("HiDream", "Mixtral"))
def test_a_loop_over_the_experts_that_were_hit_is_an_error_that_says_what_to_do(block: Any) -> None:
    with pytest.raises(ModelError, match="reads numbers out of tensors; choose another way.*docs/experts.md"):
        lowered(block, 7, dynamic=False)


@pytest.mark.parametrize("dynamic", (False, True))
def test_hidream_in_its_way_of_training_is_what_it_is_otherwise(dynamic: bool) -> None:
    block, reference = hidream(), hidream()
    block.training = True
    _, run = lowered(block, 7, dynamic=dynamic)
    for count in (1, 7, 64) if dynamic else (7,):
        assert error(reference, run, tokens(count)) < CLOSE


def test_hidream_without_a_token_for_an_expert_is_what_it_is_otherwise() -> None:
    block, reference = hidream(), hidream()
    with torch.no_grad():
        for made in (block, reference):
            made.gate.weight[2:] = 0.0
            made.gate.weight[0], made.gate.weight[1] = 1.0, 0.5
    block.training = True
    _, run = lowered(block, 7, dynamic=True)
    assert error(reference, run, tokens(16).abs()) < CLOSE
