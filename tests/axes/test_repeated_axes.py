"""How often something is repeated is an axis too, where weights tell the repetitions apart; an empty slice is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphopt
from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import free_axes
from graphopt.rewrite.journal import Journal


class Repeating(nn.Module):
    """Channels that are repeated, scaled one by one, and summed up."""

    def __init__(self, each: bool) -> None:
        super().__init__()
        self.each = each
        self.first, self.last = nn.Linear(3, 4), nn.Linear(12, 2)
        self.scale = nn.Parameter(torch.randn(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(self.scale * (x.repeat_interleave(3, -1) if self.each else x.repeat(1, 3)))


class CutOff(nn.Module):
    """The rest of all channels is nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.last(torch.cat([x[:, :4].sin(), x[:, 4:]], -1))


@pytest.mark.parametrize("each", [True, False])
def test_repetitions_can_go(each: bool) -> None:
    x = torch.randn(2, 3)
    model = graphopt.load(Repeating(each).eval(), example_inputs=(x,))
    axes = Axes(model.main)
    assert sorted(axis.size for axis in free_axes(axes)) == [3, 4]
    for axis in free_axes(axes):
        shorten_checked(axes, axis, np.arange(axis.size) != 1, Journal(model.main))
    pruned = model.export()
    assert pruned(x).shape == (2, 2) and pruned.get_parameter("scale").shape == (6,)


def test_an_empty_slice_needs_nothing() -> None:
    x = torch.randn(2, 3)
    model = graphopt.load(CutOff().eval(), example_inputs=(x,))
    axes = Axes(model.main)
    (axis,) = free_axes(axes)
    shorten_checked(axes, axis, np.array([True, False, True, False]), Journal(model.main))
    assert model.export()(x).shape == (2, 2)
