"""Experts that pick their weights by a table of ids, tokens by choices, as gpt-fast writes them: flattened to rows and
lowered, or left as they are with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
import torch
from moe_blocks import EXPERTS, HIDDEN, WIDTH, error, lowered, tokens
from torch.nn import functional

Tensor: TypeAlias = torch.Tensor
CLOSE = 1e-5
"""Relative error that is allowed beside torch."""


class Experts(torch.nn.Module):
    """A router, and experts that are a function of this module, tokens [T, WIDTH], experts and shares [T, k]."""

    def __init__(self, compute: Callable[..., Tensor], k: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in {
            "gate": (EXPERTS, WIDTH), "w1": (EXPERTS, HIDDEN, WIDTH), "w2": (EXPERTS, WIDTH, HIDDEN),
            "w3": (EXPERTS, HIDDEN, WIDTH), "b1": (EXPERTS, HIDDEN), "scale": (HIDDEN,),
            "both": (EXPERTS, WIDTH, 2 * HIDDEN),
        }.items():  # fmt: skip
            setattr(self, name, torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.3))
        self.compute, self.k = compute, k

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        shares, ids = functional.linear(rows, self.gate).softmax(-1).topk(self.k, -1)
        return self.compute(self, rows, ids, shares).reshape(x.shape)


def gpt_fast(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    """pytorch-labs/gpt-fast, mixtral-moe/model.py, ConditionalFeedForward and MOEFeedForward."""
    x1 = functional.silu(torch.einsum("ti,taoi -> tao", x, self.w1[ids]))
    x3 = torch.einsum("ti, taoi -> tao", x, self.w3[ids])
    outs = torch.einsum("tao, taio -> tai", (x1 * x3), self.w2[ids])
    return torch.einsum("tai,ta -> ti", outs, shares)


def by_matmul(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    h = functional.gelu(x[:, None, None, :] @ self.w1[ids].transpose(-1, -2))
    return ((h @ self.w2[ids].transpose(-1, -2)).squeeze(2) * shares[..., None]).sum(1)


def weights_first(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    h = torch.relu(self.w1[ids] @ x[:, None, :, None])
    return ((self.w2[ids] @ h).squeeze(-1) * shares[..., None]).sum(1)


def gate_and_up(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    """One matrix for both, biases, a scale that all experts have, and a share of the row between the products."""
    gate, up = torch.einsum("ti,taio->tao", x, self.both[ids]).chunk(2, -1)
    h = (functional.silu(gate) * up + self.b1[ids]) * self.scale * shares[..., None]
    return torch.einsum("taio,tao->tai", self.w2[ids], h).sum(1)


def normed(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    h = torch.einsum("ti,taoi->tao", x, self.w1[ids]).softmax(-1)
    return (torch.einsum("tao,taio->tai", h, self.w2[ids]) * shares[..., None]).sum(1)


KNOWN = {
    "gpt-fast": gpt_fast, "matmul": by_matmul, "weights first": weights_first, "gate and up": gate_and_up,
    "softmax": normed,
}  # fmt: skip


@pytest.mark.parametrize("compute", KNOWN.values(), ids=KNOWN)
def test_tables_of_experts_are_lowered_for_any_number_of_tokens(compute: Any) -> None:
    block = Experts(compute).eval()
    _, run = lowered(block, 7, dynamic=True)
    assert {"lower-moe/flat-rows#1 kept", "lower-moe/picked-experts#1 kept"} <= {*run.notes}
    assert not any("left alone" in note for note in run.notes)
    for count in (1, 7, 64):
        assert error(block, run, tokens(count)) < CLOSE


@pytest.mark.parametrize("count, k", [(1, 2), (7, 1), (1, 1), (9, EXPERTS)])
def test_tables_of_experts_are_lowered_for_a_fixed_number_of_tokens(count: int, k: int) -> None:
    block = Experts(gpt_fast, k).eval()
    _, run = lowered(block, count, dynamic=False)
    form = "all" if k == EXPERTS else "picked"
    assert {"lower-moe/flat-rows#1 kept", f"lower-moe/{form}-experts#1 kept"} <= {*run.notes}
    assert error(block, run, tokens(count)) < CLOSE


def over_choices(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    h = torch.einsum("ti,taoi->tao", x, self.w1[ids])
    return torch.einsum("tao,taio->tai", h - h.mean(1, keepdim=True), self.w2[ids]).sum(1)


def over_tokens(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    h = torch.einsum("ti,taoi->tao", x, self.w1[ids])
    return torch.einsum("tao,taio->tai", h.softmax(0), self.w2[ids]).sum(1)


def summed_at_once(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    h = torch.einsum("ti,taoi->tao", x, self.w1[ids])
    return torch.einsum("tao,taio->ti", h, self.w2[ids])


def other_choice(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    """The rows of one choice with the matrices of the other."""
    h = torch.einsum("ti,taoi->tao", x, self.w1[ids]).flip(1)
    return torch.einsum("tao,taio->tai", h, self.w2[ids]).sum(1)


def all_pairs(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    """Every choice of a token with the matrix of every choice."""
    h = torch.einsum("ti,taoi->tao", x, self.w1[ids])
    return torch.einsum("tao,tbio->tabi", h, self.w2[ids]).sum((1, 2))


def broadcast(self: Experts, x: Tensor, ids: Tensor, shares: Tensor) -> Tensor:
    """The choices of a token are the rows of a matrix here: with two tokens of two choices it looks like the others."""
    h = torch.einsum("ti,taoi->tao", x, self.w1[ids])
    return (h @ self.w2[ids].transpose(-1, -2)).sum((1, 2))


def test_axes_that_only_happen_to_fit_are_not_those_of_the_table() -> None:
    block = Experts(broadcast).eval()
    _, run = lowered(block, 2, dynamic=False)
    assert not any("undone" in note for note in run.notes)
    assert any("or what follows mixes rows" in note for note in run.notes)
    assert error(block, run, tokens(2)) < CLOSE


BETWEEN = {"tokens are mixed": over_tokens, "choices are exchanged": other_choice}


@pytest.mark.parametrize("compute", BETWEEN.values(), ids=BETWEEN)
def test_what_mixes_rows_between_products_stays_and_the_products_are_lowered_each(compute: Any) -> None:
    block = Experts(compute).eval()
    _, run = lowered(block, 7, dynamic=True)
    assert {"lower-moe/flat-rows#1 kept", "lower-moe/picked-experts#2 kept"} <= {*run.notes}
    for count in (1, 7, 20):
        assert error(block, run, tokens(count)) < CLOSE


STRANGE = {"choices are mixed": over_choices, "choices are summed": summed_at_once, "all pairs": all_pairs}


@pytest.mark.parametrize("compute", STRANGE.values(), ids=STRANGE)
def test_what_mixes_rows_of_a_table_is_as_it_was_and_the_reason_is_said(compute: Any) -> None:
    block = Experts(compute).eval()
    _, run = lowered(block, 7, dynamic=True)
    assert any("or what follows mixes rows" in note for note in run.notes)
    assert not any("flat-rows" in note for note in run.notes)
    for count in (1, 7, 20):
        assert error(block, run, tokens(count)) < CLOSE
