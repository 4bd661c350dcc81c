"""A module that comes out of `optimize` refuses calls that it was not exported for, instead of computing something."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import graphopt
from graphopt.errors import InputError, UnsupportedError

X = torch.arange(6.0).reshape(2, 3)


class Options(nn.Module):
    def forward(self, x: Any, mask: Any = None, flag: Any = True, kind: Any = "a", times: Any = 3) -> Any:
        y = x if mask is None else x * mask
        return (y + 1 if flag else y) * times


@pytest.fixture(scope="module", params=["itself", "a copy"])
def module(request: pytest.FixtureRequest) -> Any:
    made = graphopt.optimize(Options().eval(), example_inputs=(X, None, True, "a", 3)).model
    return made if request.param == "itself" else copy.deepcopy(made)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, torch.zeros(2, 3), True, "a", 3), {}, r"'mask' was None .* got float32\[2,3\]"),
        ((X, None, False, "a", 3), {}, "'flag' was True .* got False"),
        ((X, None, True, "b", 3), {}, "'kind' was 'a' .* got 'b'"),
        ((X, None, True, "a", 4), {}, "'times' was 3 .* got 4"),
        ((X, None), {}, "missing argument 'flag', 'kind', 'times'; the model takes x, mask, flag, kind, times"),
        ((X, None, True, "a", 3, 5), {}, "takes 5 arguments .* got 6 by position"),
        ((X, None, True, "a"), {"time": 3}, r"without an argument 'time' \(did you mean 'times'\?\)"),
        ((X, None, True, "a", 3), {"x": X}, "'x' is given both by position and by name"),
        ((X.double(), None, True, "a", 3), {}, r"'x' is float32\[2,3\], got float64\[2,3\]"),
        ((X[:1], None, True, "a", 3), {}, r"'x' is float32\[2,3\], got float32\[1,3\]"),
        ((None, None, True, "a", 3), {}, r"'x' is float32\[2,3\], got None; give a torch.Tensor"),
    ],
)
def test_other_calls_than_the_exported_one_are_refused(module: Any, args: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        module(*args, **kwargs)


def test_arguments_may_be_given_by_name_in_any_order(module: Any) -> None:
    assert torch.equal(module(X, times=3, kind="a", flag=True, mask=None), Options()(X))


@pytest.mark.parametrize("lowered", [False, True])
def test_arguments_exported_by_name_are_taken_by_position_where_the_original_has_them(lowered: bool) -> None:
    class Weighs(nn.Module):
        def forward(self, x: Any, a: Any, b: Any = None, c: Any = None) -> Any:
            return x + 2 * a - 3 * b if c is None else c

    def made(kwargs: Any) -> Any:
        result = graphopt.optimize(Weighs(), example_inputs=((X,), kwargs))
        return result.lower("onnxruntime", threads=1) if lowered else result.model

    assert torch.equal(made({"b": X, "a": X})(X, X, X * 5), Weighs()(X, X, X * 5))
    with pytest.raises(InputError, match="got 4 by position, where it takes 2"):
        made({"c": X, "a": X})(X, X, X, X)


def test_the_structure_of_an_argument_is_the_exported_one() -> None:
    class Nested(nn.Module):
        def forward(self, given: Any) -> Any:
            return given["a"] - 2 * given["b"][0]

    module = graphopt.optimize(Nested(), example_inputs=({"a": X, "b": (X, X)},)).model
    assert torch.equal(module({"b": (X, X), "a": X + 1}), Nested()({"a": X + 1, "b": (X, X)}))
    for other in ({"a": X, "b": (X,)}, {"a": X, "c": (X, X)}, {"a": X, "b": [X, X]}, X):
        with pytest.raises(InputError, match="'given' has another structure than when exported"):
            module(other)
    with pytest.raises(InputError, match=r"given\['b'\]\[1\]"):
        module({"a": X, "b": (X, X[0])})


def test_sizes_out_of_range_are_refused() -> None:
    module = graphopt.optimize(nn.ReLU(), example_inputs=X, dynamic_shapes=({0: Dim("n", max=4)},)).model
    assert torch.equal(module(torch.ones(4, 3)), torch.ones(4, 3))
    with pytest.raises(InputError, match="<= 4, which the model was exported for"):
        module(torch.ones(5, 3))


@pytest.mark.parametrize("training", [False, True])
def test_the_mode_is_part_of_the_graph(training: bool) -> None:
    made = graphopt.optimize(nn.Dropout().train(training), example_inputs=X).model
    for module in (made, copy.deepcopy(made)):
        assert nn.Sequential(module).train(training)[0].training is training
        with pytest.raises(UnsupportedError, match="which is part of its graph: to change it call"):
            module.train(not training)


def test_it_can_be_traced_again() -> None:
    module = graphopt.optimize(nn.Linear(3, 2), example_inputs=X, dynamic_shapes=({0: Dim("n")},)).model
    expected = module(X)
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(module))(X), expected)
    assert torch.equal(torch.compile(module, backend="eager")(X), expected)
    for strict in (False, True):
        program = torch.export.export(module, (X,), dynamic_shapes=({0: Dim("n")},), strict=strict)
        assert program.module()(torch.ones(5, 3)).shape == (5, 2)
