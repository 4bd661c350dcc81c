"""What is the same for every input moves into biases, so that it can be dropped; nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import graphopt
from graphopt.passes import fold_constant_channels

PASSES = "fold-constant-channels,drop-zero-channels"


class Chain(nn.Module):
    """Two layers and something between them."""

    def __init__(self, first: nn.Module, between: Callable[[torch.Tensor], torch.Tensor], second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        if isinstance(between, nn.Module):
            self.between = between
        else:
            self.call = between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second((self.between if hasattr(self, "between") else self.call)(self.first(x)))


def linear(between: Any, bias: bool = True) -> Chain:
    torch.manual_seed(0)
    return Chain(nn.Linear(5, 8), between, nn.Linear(8, 3, bias=bias)).eval()


def convolutions(between: Any, **options: Any) -> Chain:
    torch.manual_seed(0)
    return Chain(nn.Conv2d(3, 8, 3, padding=1), between, nn.Conv2d(8, 4, 3, **options)).eval()


def silenced(module: Chain, *indices: int) -> Chain:
    """These filters are zero; their biases are not."""
    with torch.no_grad():
        module.first.weight[list(indices)] = 0
    return module


def optimised(module: nn.Module, storage: str = "fx", passes: str = PASSES) -> tuple[Any, list[str]]:
    """The result, checked to compute the same on other inputs than the example's, and the last pass's notes."""
    torch.manual_seed(1)
    shape = (2, 3, 8, 8) if any(isinstance(m, nn.Conv2d) for m in module.modules()) else (4, 5)
    x = torch.randn(shape)
    if storage == "onnx":
        model = torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto
        result = graphopt.optimize(model, passes)
        got = torch.from_numpy(result.lower("onnxruntime")(x.numpy())[0])
    else:
        result = graphopt.optimize(module, passes, example_inputs=(torch.randn(shape),))
        got = result.model(x)
    assert torch.allclose(got, module(x), atol=1e-5)
    return result, result.report.passes[-1].notes


BETWEEN: dict[str, Any] = {
    "sigmoid": nn.Sigmoid(),
    "gelu, scaled": lambda x: functional.gelu(x) * 2 + 1,
    "softplus of a difference": lambda x: functional.softplus(x - 3),
    "a gate of itself": lambda x: x * torch.sigmoid(x),
    "negative behind a relu": lambda x: functional.relu(-x.abs()) + x.cos(),
}


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@pytest.mark.parametrize("between", BETWEEN.values(), ids=list(BETWEEN))
@pytest.mark.parametrize("make", [linear, convolutions])
def test_channels_whose_filters_are_zero_go(make: Any, between: Any, storage: str) -> None:
    result, notes = optimised(silenced(make(between), 1, 5), storage)
    assert "8 → 6" in notes[0]
    assert [kept.evidence.kind for kept in result.report.kept] == ["executed"] * 2


def test_what_contributes_is_added_to_the_bias() -> None:
    module = silenced(linear(nn.Sigmoid()), 2)
    result, _ = optimised(module, passes="fold-constant-channels")
    constant = torch.sigmoid(module.first.bias[2])
    with torch.no_grad():
        expected = module.second.bias + constant * module.second.weight[:, 2]
        assert torch.allclose(result.model.get_parameter("second.bias"), expected, atol=1e-6)
        assert not result.model.get_parameter("second.weight")[:, 2].any()


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@pytest.mark.parametrize("module", [linear(torch.sigmoid, bias=False), convolutions(torch.sigmoid, bias=False)])
def test_a_layer_without_a_bias_is_given_one(module: Chain, storage: str) -> None:
    _, notes = optimised(silenced(module, 0, 7), storage)
    assert "8 → 6" in notes[0]


def test_a_matrix_without_a_bias_is_given_a_sum() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)
            self.second = nn.Parameter(torch.randn(8, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.sigmoid(self.first(x)) @ self.second).sin()

    torch.manual_seed(0)
    module = Product().eval()
    with torch.no_grad():
        module.first.weight[3] = 0
    _, notes = optimised(module)
    assert "8 → 7" in notes[0]


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_a_scale_of_zero_leaves_the_shift(storage: str) -> None:
    norm = nn.Sequential(nn.BatchNorm2d(8), nn.SiLU())
    module = convolutions(norm)
    with torch.no_grad():
        norm[0].weight[[1, 2, 6]] = 0
        norm[0].bias.copy_(torch.randn(8))
        norm[0].running_var.uniform_(0.5, 2)
    _, notes = optimised(module, storage)
    assert any("8 → 5" in note for note in notes)


def test_channels_of_groups_go_together() -> None:
    module = convolutions(nn.Sigmoid(), groups=2)
    _, notes = optimised(silenced(module, 1, 5))  # the second channel of both groups; their biases differ
    assert notes == []
    with torch.no_grad():
        module.first.bias[5] = module.first.bias[1]
    _, notes = optimised(module)
    assert "4 → 3" in notes[0]


@pytest.mark.parametrize(
    "module",
    [
        silenced(convolutions(nn.Sigmoid(), padding=1), 1),
        silenced(linear(nn.Softmax(-1)), 1),
        silenced(linear(nn.LayerNorm(8)), 1),
        linear(nn.Sigmoid()),
    ],
    ids=["a border of zeros", "softmax", "statistics", "nothing constant"],
)
def test_what_depends_on_more_stays(module: Chain) -> None:
    result, notes = optimised(module)
    assert notes == [] and result.report.kept == []


def test_a_weight_that_another_reads_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.sigmoid(self.first(x))) + self.second(x)

    torch.manual_seed(0)
    module = Shared().eval()
    with torch.no_grad():
        module.first.weight[1] = 0
    result, _ = optimised(module)
    assert result.report.kept == []


@pytest.mark.parametrize("storage", ["fx", "onnx"])
@pytest.mark.parametrize(("bias", "expected"), [(12.5, []), (9.0, ["undone"])], ids=["constant", "sum"])
def test_what_is_infinite_in_its_own_dtype_stays(bias: float, expected: list[str], storage: str) -> None:
    """exp(12.5) is no float16; exp(9) is, but not 32 times that."""
    module = silenced(linear(torch.exp), 1)
    with torch.no_grad():
        module.first.bias[1] = bias
        module.second.weight[:, 1] = 32
    module = module.half()
    x = torch.zeros(4, 5, dtype=torch.float16)
    if storage == "onnx":
        model = torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto
        result = graphopt.optimize(model, PASSES)
    else:
        result = graphopt.optimize(module, PASSES, example_inputs=(x,))
    applied = [a for a in result.report.applications if a.rule == "constant-channels"]
    assert [a.status for a in applied] == expected
    assert all("larger than any float16" in a.reason for a in applied)


class Downsampled(nn.Module):
    """Both ways have the same channels, and images of different sizes come in."""

    def __init__(self) -> None:
        super().__init__()
        self.strided, self.pooled = nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.sigmoid(self.strided(x) + self.pooled(functional.max_pool2d(x, 2))))


def test_images_of_different_sizes_come_together() -> None:
    torch.manual_seed(0)
    module = Downsampled().eval()
    with torch.no_grad():
        module.strided.weight[[1, 4]] = 0
        module.pooled.weight[[1, 4]] = 0
    x = torch.randn(2, 3, 32, 32)
    result = graphopt.optimize(module, PASSES, example_inputs=(x,))
    assert result.report.undone == []
    assert result.model.get_parameter("head.weight").shape[1] == 6
    assert torch.allclose(result.model(x), module(x), atol=1e-5)


def test_a_wrong_contribution_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fold_constant_channels.Constants.numbers

    def wrong(self: Any, value: Any, node: Any) -> np.ndarray:
        found = right(self, value, node)
        return found * 1.001 if self._axes.graph.constant(value) is None else found

    monkeypatch.setattr(fold_constant_channels.Constants, "numbers", wrong)
    module = silenced(linear(nn.Sigmoid()), 1, 5)
    before = {name: weight.clone() for name, weight in module.named_parameters()}
    result, _ = optimised(module)
    assert result.report.kept == []
    assert "differ" in result.report.undone[0].reason
    assert all(torch.equal(before[name], weight) for name, weight in result.model.named_parameters())
