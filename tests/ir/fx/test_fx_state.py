"""What a model writes into its buffers and inputs shows there, and in nothing else that it returned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import graphopt
from graphopt.errors import InputError, ModelError

X = torch.arange(6.0).reshape(2, 3)
EVERYTHING = ["fuse-conv-bn", "clean-up", "merge-linear", "split-concats"]


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(2, 3))


class ReturnsWhatItStored(Keeps):
    def forward(self, x: torch.Tensor) -> Any:
        new = self.state + x
        self.state.copy_(new)
        return {"new": (new, new.t()), "again": new}


class ReturnsItsState(Keeps):
    def forward(self, x: torch.Tensor) -> Any:
        self.state.add_(x)
        return self.state, self.state.clone()


class ReturnsBoth(Keeps):
    def forward(self, x: torch.Tensor) -> Any:
        new = self.state + x
        self.state.copy_(new)
        return new, self.state, None, 3


@pytest.mark.parametrize("kind", [ReturnsWhatItStored, ReturnsItsState, ReturnsBoth])
@pytest.mark.parametrize("passes", [[], EVERYTHING], ids=["none", "all"])
def test_results_of_one_call_are_changed_by_the_next_only_where_the_original_does_that(kind: Any, passes: Any) -> None:
    original = kind()
    module = graphopt.optimize(copy.deepcopy(original), passes, example_inputs=X).model
    calls = [(module(X + i), original(X + i)) for i in range(3)]
    for got, expected in calls:
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert torch.equal(module.state_dict()["state"], original.state)


def test_a_result_that_an_input_becomes_is_no_view_of_it() -> None:
    class Stores(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            new = x + 1
            x.copy_(new)
            return new, x

    given = X.clone()
    new, same = graphopt.optimize(Stores(), example_inputs=X).model(given)
    assert torch.equal(given, X + 1)
    given.zero_()
    assert torch.equal(new, X + 1)
    assert not same.any()


class WritesOne(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return y * 2


@pytest.mark.parametrize("copied", [False, True])
def test_an_input_that_is_written_may_not_lie_where_another_does(copied: bool) -> None:
    module = graphopt.optimize(WritesOne(), example_inputs=(X, X)).model
    module = copy.deepcopy(module) if copied else module
    both = X.clone()
    with pytest.raises(InputError, match="'x' is written by the model and shares memory with 'y'"):
        module(both, both)
    assert torch.equal(both, X)
    apart = torch.stack((X, X))
    assert torch.equal(module(apart[0], apart[1]), 2 * X)
    assert torch.equal(apart[0], X + 1)


def test_buffers_that_share_memory_and_are_written_are_named() -> None:
    class Tied(Keeps):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("same", self.state)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.state.add_(x)
            return self.same * 2

    with pytest.raises(ModelError, match="its state 'state' and 'same' shares memory"):
        graphopt.optimize(Tied(), example_inputs=X)
