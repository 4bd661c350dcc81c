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


class Layers(nn.Module):
    """The first two layers are folded into one; the others stay, with one weight for both."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)
        self.layer, self.tied = nn.Linear(1, 1), nn.Linear(1, 1)
        self.tied.weight = self.layer.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.tied(self.layer(self.norm(self.conv(x[..., None]))))


def test_modules_that_come_out_have_parameters_of_their_own_and_share_memory() -> None:
    original = Layers().eval()
    result = graphopt.optimize(original, example_inputs=X)
    first, second = result.model, result.model
    first.double()
    assert {p.dtype for p in first.parameters()} == {torch.float64}
    assert {p.dtype for m in (original, second, result.model) for p in m.parameters()} == {torch.float32}
    assert [n for n, _ in second.named_parameters()].count("layer.weight") == 1
    assert second.get_parameter("tied.weight") is second.get_parameter("layer.weight")
    assert second.get_parameter("layer.weight").data_ptr() == original.layer.weight.data_ptr()


def test_another_dtype_of_the_original_leaves_what_came_out_alone() -> None:
    original = Layers().eval()
    expected = original(X)
    result = graphopt.optimize(original, example_inputs=X)
    module = result.model
    original.half()
    for run in (module, result.model, result.lower("onnxruntime", threads=1)):
        torch.testing.assert_close(run(X), expected)


def test_weights_that_are_written_afterwards_are_noticed() -> None:
    original = Layers().eval()
    result = graphopt.optimize(original, example_inputs=X)
    module, copied = result.model, copy.deepcopy(result.model)
    expected = module(X)
    with torch.no_grad():
        original.layer.weight.mul_(2)
    for use in (lambda: module(X), lambda: result.model, lambda: result.lower("onnxruntime", threads=1)):
        with pytest.raises(ModelError, match="'layer.weight' of the model that was given was written after"):
            use()
    assert torch.equal(copied(X), expected)


def test_what_comes_out_may_be_trained() -> None:
    result = graphopt.optimize(Layers().eval(), example_inputs=X)
    module = result.model
    before = module(X).detach()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(X).square().sum().backward()
    optimizer.step()
    assert not torch.equal(module(X), before)


def test_each_module_that_comes_out_starts_with_the_state_that_was_given(tmp_path: Any) -> None:
    original = ReturnsItsState()
    result = graphopt.optimize(original, example_inputs=X)
    first = result.model
    first(X)
    assert torch.equal(first(X)[1], 2 * X)
    assert torch.equal(result.model(X)[1], X)
    result.save(tmp_path / "model.pt2")
    assert torch.equal(torch.export.load(tmp_path / "model.pt2").module()(X)[1], X)
    assert not original.state.any()


@pytest.mark.parametrize("inside", [False, True], ids=["forward", "all of it"])
def test_what_was_made_in_inference_mode_can_be_run_out_of_it(inside: bool) -> None:
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        @torch.inference_mode()
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) * torch.tensor(3.0)

    module = Scales()
    with torch.inference_mode(inside):
        result = graphopt.optimize(module, example_inputs=X * 1)
        made = result.model
    expected = module(X)
    for run in (made, result.model, result.lower("onnxruntime", threads=1)):
        torch.testing.assert_close(run(X), expected)


def test_tied_weights_are_not_blamed_for_what_else_torch_refuses(monkeypatch: Any) -> None:
    from graphopt.ir.fx import decompose

    def fails(*_: Any) -> Any:
        raise RuntimeError("another reason")

    monkeypatch.setattr(decompose, "run_decompositions", fails)
    with pytest.raises(ModelError, match="functional: another reason"):
        graphopt.optimize(Layers().eval(), example_inputs=X)


def test_a_parameter_that_the_model_writes_can_be_written_while_gradients_are_recorded() -> None:
    original = nn.Sequential(nn.Embedding(5, 3, max_norm=0.5), nn.Linear(3, 2))
    with torch.no_grad():
        original[0].weight.mul_(4)
    module = graphopt.optimize(copy.deepcopy(original), example_inputs=torch.tensor([0, 2])).model
    for indices in ([1, 4], [0, 2]):
        torch.testing.assert_close(module(torch.tensor(indices)), original(torch.tensor(indices)))
    torch.testing.assert_close(module.get_parameter("0.weight").data, original[0].weight.data)
    module(torch.tensor([0, 2])).sum().backward()
    assert module.get_parameter("1.weight").grad is not None
