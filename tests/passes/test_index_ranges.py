"""Bounds of indices follow from what they number: torch computes nothing outside of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import graphopt
from graphopt.passes.value_ranges import value_range

SIZE = 8


class Function(torch.nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return self.function(scores)


def top(scores: torch.Tensor) -> torch.Tensor:
    return scores.topk(2, -1).indices


KNOWN: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[int, int]]] = {
    "topk": (top, (0, 7)),
    "topk unsorted": (lambda s: s.topk(2, -1, sorted=False).indices, (0, 7)),
    "largest": (lambda s: s.argmax(-1), (0, 7)),
    "least": (lambda s: s.argmin(-1), (0, 7)),
    "largest and its place": (lambda s: s.max(-1, keepdim=True).indices, (0, 7)),
    "places of a sort": (lambda s: s.sort(-1, descending=True).indices[:, :2], (0, 7)),
    "joined": (lambda s: torch.concat([s.max(-1, keepdim=True).indices, s[:, :3].max(-1, keepdim=True).indices], -1),
               (0, 7)),
    "stacked": (lambda s: torch.stack([s.argmax(-1), s[:, 5:].argmax(-1) + 5], -1), (0, 7)),
    "shifted": (lambda s: top(s) + 1, (1, 8)),
    "shifted around": (lambda s: (top(s) + 1) % SIZE, (0, 7)),
    "shifted down": (lambda s: top(s) - 1, (-1, 6)),
    "pairs": (lambda s: torch.div(top(s), 2, rounding_mode="floor"), (0, 3)),
    "cut off": (lambda s: (top(s) + 1).clamp(0, SIZE - 1), (1, 7)),
    "cut off below": (lambda s: (top(s) - 1).clamp(min=0), (0, 6)),
    "the least of two": (lambda s: torch.minimum(top(s), s[:, :3].argmax(-1, keepdim=True)), (0, 2)),
    "by way of a float": (lambda s: (top(s).float() * 0.5).long(), (0, 3)),
    "a table": (lambda s: torch.tensor([3, 1, 2, 0, 0, 0, 2, 1])[top(s)], (0, 3)),
    "a choice": (lambda s: torch.where(s[:, :2] > 0, top(s), SIZE), (0, 8)),
    "narrow": (lambda s: (top(s) * 100).to(torch.int8), (-128, 127)),
}  # fmt: skip


@pytest.mark.parametrize("function, expected", KNOWN.values(), ids=KNOWN)
def test_bounds_hold_what_torch_computes(function: Callable[..., torch.Tensor], expected: tuple[int, int]) -> None:
    scores = torch.randn(64, SIZE, generator=torch.Generator().manual_seed(0))
    graph = graphopt.load(Function(function), example_inputs=(scores,)).main
    assert value_range(graph, graph.outputs()[0]) == expected
    found = function(scores)
    assert expected[0] <= int(found.min()) and int(found.max()) <= expected[1]


def test_places_among_an_unknown_number_have_the_bounds_of_their_dtype() -> None:
    sizes = ({1: torch.export.Dim("experts", min=3, max=64)},)
    graph = graphopt.load(Function(top), example_inputs=(torch.randn(4, SIZE),), dynamic_shapes=sizes).main
    found = value_range(graph, graph.outputs()[0])
    assert found is not None and found[1] > 2**60
