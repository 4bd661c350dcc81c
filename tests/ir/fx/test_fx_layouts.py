"""A write to what is a view or a copy, depending on how an input lies in memory, holds for inputs that lie alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

import graphopt
from graphopt.errors import InputError, UnsupportedError

X = torch.arange(1.0, 13.0).reshape(3, 4)
TRANSPOSED = torch.arange(1.0, 13.0).reshape(4, 3).t()


class Writes(nn.Module):
    def __init__(self, write: Any, returns: bool) -> None:
        super().__init__()
        self.write, self.returns = write, returns

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        result: torch.Tensor = self.write(y)
        return result if self.returns else y


def overwrite(y: torch.Tensor) -> torch.Tensor:
    flat = y.ravel()
    y.zero_()
    return flat


def write_at_indices(y: torch.Tensor) -> None:
    y.reshape(4, 3)[torch.tensor([0, 1])] = 0


# Each with whether the model returns what it returns, and not y.
FLAT = Writes(lambda y: y.flatten().zero_(), False)
DEPENDING = [
    FLAT,
    Writes(lambda y: y.reshape(2, 6).t()[1:].zero_(), False),
    Writes(lambda y: y.contiguous().zero_(), False),
    Writes(lambda y: y.t().contiguous().zero_(), False),
    Writes(overwrite, True),
    Writes(write_at_indices, False),
]
INDEPENDENT = [
    Writes(lambda y: y.relu_().flatten(), True),
    Writes(lambda y: y.reshape(3, 4).zero_(), False),
    Writes(lambda y: y.flatten().zero_(), True),
    Writes(lambda y: y.t().zero_(), False),
]


@pytest.mark.parametrize("lowered", [False, True], ids=["torch", "onnxruntime"])
@pytest.mark.parametrize("module", DEPENDING)
@pytest.mark.parametrize(("example", "other"), [(X, TRANSPOSED), (TRANSPOSED, X)], ids=["contiguous", "transposed"])
def test_inputs_that_lie_otherwise_are_refused_where_that_matters(
    module: Writes, example: torch.Tensor, other: torch.Tensor, lowered: bool
) -> None:
    result = graphopt.optimize(module, example_inputs=example)
    run = result.lower("onnxruntime", threads=1) if lowered else result.model
    assert torch.equal(run(example), module(example))
    with pytest.raises(InputError, match="is_contiguous"):
        run(other)


@pytest.mark.parametrize("module", INDEPENDENT)
@pytest.mark.parametrize(("example", "other"), [(X, TRANSPOSED), (TRANSPOSED, X)], ids=["contiguous", "transposed"])
def test_inputs_may_lie_in_any_way_where_it_does_not_matter(
    module: Writes, example: torch.Tensor, other: torch.Tensor
) -> None:
    run = graphopt.optimize(module, example_inputs=example).model
    assert torch.equal(run(other), module(other))


def test_the_condition_is_kept_by_files_and_by_what_is_taken_again(tmp_path: Any) -> None:
    result = graphopt.optimize(FLAT, example_inputs=X)
    result.save(tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2")
    with pytest.raises(AssertionError, match="is_contiguous"):
        program.module()(TRANSPOSED)
    for again in (graphopt.lower(program, threads=1), graphopt.optimize(result.model, example_inputs=X).model):
        with pytest.raises(InputError, match="is_contiguous"):
            again(TRANSPOSED)


def test_sizes_may_be_open() -> None:
    run = graphopt.optimize(FLAT, example_inputs=X, dynamic_shapes=({0: Dim("n")},)).model
    assert not run(torch.ones(5, 4)).any()
    with pytest.raises(InputError, match="is_contiguous"):
        run(torch.ones(4, 5).t())


def test_an_example_with_gaps_in_memory_is_refused_where_it_matters() -> None:
    class Input(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x.reshape(-1).zero_()
            return x + 1

    with pytest.raises(UnsupportedError, match=r"has gaps \(strides \(8, 2\)\)"):
        graphopt.optimize(Input(), example_inputs=torch.ones(3, 8)[:, ::2])
