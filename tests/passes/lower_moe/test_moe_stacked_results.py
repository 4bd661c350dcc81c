"""Results of experts that are stacked, weighted and added up are computed for the tokens that picked them."""

from __future__ import annotations

import pytest
import torch
from dense_checks import WIDE, is_lowered, lowered


class Stacked(torch.nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.router = way, torch.nn.Linear(WIDE, 6)
        layers = (torch.nn.Sequential(torch.nn.Linear(WIDE, 16), torch.nn.Linear(16, WIDE)) for _ in range(6))
        self.experts = torch.nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, ids = torch.topk(torch.softmax(self.router(x), -1), 2)
        gates = torch.zeros(x.shape[0], 6).scatter(1, ids, values)
        made = torch.stack([expert(x) for expert in self.experts], 1)
        if self.way == "sum":
            return (made * gates.unsqueeze(-1)).sum(1)
        if self.way == "einsum":
            return torch.einsum("ted,te->td", made, gates)
        return torch.bmm(gates.unsqueeze(1), made).squeeze(1)


@pytest.mark.parametrize("way", ("sum", "einsum", "product"))
def test_stacked_results_are_a_sum(way: str) -> None:
    result = lowered(Stacked(way))
    assert is_lowered(result) and "stacked-results" in {a.rule for a in result.report.kept}
