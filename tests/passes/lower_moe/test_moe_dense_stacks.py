"""Experts in one tensor that are all computed for every token and gated, as einsum or batches of products."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from dense_checks import WIDE, is_lowered, lowered
from torch.nn import functional as F

EXPERTS, K, HIDDEN = 6, 2, 12


def picked(scores: torch.Tensor) -> torch.Tensor:
    weights, ids = torch.topk(torch.softmax(scores, -1), K, -1)
    return torch.zeros_like(scores).scatter(1, ids, weights)


class Stacks(torch.nn.Module):
    def __init__(self, compute: Callable[..., torch.Tensor], gating: Callable[..., torch.Tensor] = picked) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.compute, self.gating = compute, gating
        self.router = torch.nn.Linear(WIDE, EXPERTS)
        self.w1 = torch.nn.Parameter(torch.randn(EXPERTS, WIDE, HIDDEN) * 0.3)
        self.b1 = torch.nn.Parameter(torch.randn(EXPERTS, HIDDEN))
        self.w2 = torch.nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDE) * 0.3)
        self.b2 = torch.nn.Parameter(torch.randn(EXPERTS, WIDE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(self, x, self.gating(self.router(x)))


def products(m: Stacks, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    y = F.silu(x @ m.w1 + m.b1[:, None]) @ m.w2 + m.b2[:, None]
    return (y * gates.T[..., None]).sum(0)


def einsum_by_token(m: Stacks, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    h = F.silu(torch.einsum("td,edf->tef", x, m.w1) + m.b1)
    return torch.einsum("ted,te->td", torch.einsum("tef,efd->ted", h, m.w2) + m.b2, gates)


def einsum_by_expert(m: Stacks, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    h = F.gelu(torch.einsum("td,edf->etf", x, m.w1))
    return torch.einsum("etd,te->td", torch.einsum("etf,efd->etd", h, m.w2), gates)


def halves(m: Stacks, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    gate, up = (x @ torch.cat([m.w1, m.w1.flip(2)], 2)).chunk(2, -1)
    return ((gate[..., ::2] * up[..., 1::2]) @ m.w2[:, ::2] * gates.T[..., None]).sum(0)


def repeated(m: Stacks, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """As gpt-oss does it."""
    tokens = x.repeat(EXPERTS, 1).view(EXPERTS, -1, WIDE)
    y = torch.bmm(F.silu(torch.bmm(tokens, m.w1) + m.b1[:, None]), m.w2) + m.b2[:, None]
    return (y * gates.transpose(0, 1).view(EXPERTS, -1)[..., None]).sum(0)


def over_tokens(m: Stacks, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    return (torch.softmax(x @ m.w1, 1) @ m.w2 * gates.T[..., None]).sum(0)


def over_experts(m: Stacks, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    return ((x @ m.w1).cumsum(0) @ m.w2 * gates.T[..., None]).sum(0)


FORMS = [products, einsum_by_token, einsum_by_expert, repeated]


@pytest.mark.parametrize("compute", FORMS, ids=lambda f: f.__name__)
def test_stacks_that_are_gated_to_zero_become_a_choice(compute: Callable[..., torch.Tensor]) -> None:
    result = lowered(Stacks(compute))
    assert is_lowered(result)
    shapes = [list(i.dims) for i in result.model.graph.initializer]
    assert [EXPERTS, WIDE, HIDDEN] not in shapes and [EXPERTS, HIDDEN, WIDE] not in shapes
    assert shapes.count([WIDE, HIDDEN]) == shapes.count([HIDDEN, WIDE]) == EXPERTS


@pytest.mark.parametrize("compute", [halves, over_tokens, over_experts], ids=lambda f: f.__name__)
def test_what_happens_between_the_products_is_right_or_left(compute: Callable[..., torch.Tensor]) -> None:
    lowered(Stacks(compute))


def test_gates_that_are_not_zero_are_left() -> None:
    assert not lowered(Stacks(products, lambda scores: torch.softmax(scores, -1))).report.kept


def with_capacity(m: Stacks, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """As Switch Transformers do it: each expert has 4 places, and tokens beyond them are dropped."""
    weight, ids = torch.softmax(m.router(x), -1).max(-1)
    mask = F.one_hot(ids, EXPERTS).to(x.dtype)
    place = (torch.cumsum(mask, 0) - 1) * mask
    mask = mask * (place < 4)
    places = F.one_hot(place.sum(-1).long().clamp(0, 3), 4).to(x.dtype)
    dispatch = mask[..., None] * places[:, None]
    y = torch.bmm(F.relu(torch.bmm(torch.einsum("tec,td->ecd", dispatch, x), m.w1)), m.w2)
    return torch.einsum("tec,ecd->td", dispatch * weight[:, None, None], y)


def test_tokens_that_are_dropped_beyond_a_capacity_are_left_with_the_reason() -> None:
    result = lowered(Stacks(with_capacity))
    assert not is_lowered(result)
    assert "each expert has 4 places, a capacity beyond which tokens are dropped" in "\n".join(
        result.report.passes[0].notes
    )
