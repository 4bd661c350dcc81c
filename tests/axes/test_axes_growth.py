"""The analysis grows with the graph: four times the nodes ask four times the questions, and a few more."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphopt
from graphopt.axes import terms
from graphopt.axes.free import analyse


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


def chain(blocks: int) -> nn.Module:
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(blocks)], nn.Linear(8, 4))


def residual(blocks: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), *[Residual() for _ in range(blocks)], nn.Linear(8, 4))


@pytest.mark.parametrize(("make", "width"), [(chain, 8), (residual, 4)])
def test_questions_grow_with_the_nodes(make, width, monkeypatch):
    asked = 0
    factors = terms.Space.factors

    def counted(self, term):
        nonlocal asked
        asked += 1
        return factors(self, term)

    monkeypatch.setattr(terms.Space, "factors", counted)
    counts = []
    for blocks in (10, 40):
        graph = graphopt.load(make(blocks).eval(), example_inputs=(torch.randn(2, width),)).main
        asked = 0
        assert len(analyse(graph)) >= blocks
        counts.append(asked)
    assert counts[1] < 5 * counts[0]
