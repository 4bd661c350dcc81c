"""Channels that contribute nothing go, all others stay, and the result is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphopt


class Chain(nn.Module):
    """Convolution, activation, convolution; optionally a group norm between them."""

    def __init__(self, activation: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = norm or nn.Identity()
        self.activation = activation
        self.second = nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.activation(self.norm(self.first(x))))


def chain(activation: nn.Module, norm: nn.Module | None = None) -> Chain:
    torch.manual_seed(0)
    return Chain(activation, norm).eval()


def silence_outputs(module: Chain, indices: list[int]) -> None:
    with torch.no_grad():
        module.first.weight[indices] = 0
        module.first.bias[indices] = 0


def dropped(module: nn.Module, storage: str = "fx") -> tuple[Any, Any]:
    """The report's notes, and the model after the pass, checked to compute the same."""
    torch.manual_seed(1)
    image = torch.randn(2, 3, 8, 8)
    model: Any = module
    if storage == "onnx":
        model = torch.onnx.export(module, (image,), dynamo=True, verbose=False).model_proto
        result = graphopt.optimize(model, "drop-zero-channels")
        run = result.lower("onnxruntime")
        got = torch.from_numpy(run(image.numpy())[0])
    else:
        result = graphopt.optimize(module, "drop-zero-channels", example_inputs=(image,))
        got = result.model(image)
    assert torch.allclose(got, module(image), atol=1e-6)
    return result.report.passes[0].notes, result


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_channels_that_are_zero_for_every_input_go(storage: str) -> None:
    module = chain(nn.SiLU())
    silence_outputs(module, [1, 5])
    notes, result = dropped(module, storage)
    assert len(result.report.kept) == 1 and "8 → 6" in notes[0]
    assert result.report.kept[0].evidence.kind == "executed"


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_channels_that_are_multiplied_by_zeros_go(storage: str) -> None:
    module = chain(nn.Sigmoid())
    with torch.no_grad():
        module.second.weight[:, [0, 3, 4]] = 0
    notes, _ = dropped(module, storage)
    assert "8 → 5" in notes[0]


def test_zeros_that_the_activation_makes_something_of_stay() -> None:
    module = chain(nn.Sigmoid())
    silence_outputs(module, [1, 5])
    notes, result = dropped(module)
    assert notes == [] and result.report.kept == []


def test_a_bias_makes_a_channel_count() -> None:
    module = chain(nn.ReLU())
    silence_outputs(module, [1, 5])
    with torch.no_grad():
        module.first.bias[5] = 0.5
    notes, _ = dropped(module)
    assert "8 → 7" in notes[0]


def test_a_channel_that_a_norm_takes_statistics_of_stays() -> None:
    module = chain(nn.ReLU(), nn.GroupNorm(2, 8))
    silence_outputs(module, [1])
    notes, _ = dropped(module)
    assert notes == []


def test_a_whole_silent_group_goes() -> None:
    module = chain(nn.ReLU(), nn.GroupNorm(2, 8))
    silence_outputs(module, [4, 5, 6, 7])
    with torch.no_grad():
        module.norm.bias[4:] = 0
    notes, _ = dropped(module)
    assert len(notes) == 1 and "2 → 1" in notes[0]


def test_one_channel_is_kept_where_none_contributes() -> None:
    module = chain(nn.ReLU())
    silence_outputs(module, list(range(8)))
    notes, _ = dropped(module)
    assert "8 → 1" in notes[0]


def test_a_model_without_zeros_stays_as_it_is() -> None:
    notes, result = dropped(chain(nn.ReLU()))
    assert notes == [] and result.report.kept == []


def test_hidden_units_that_never_leave_zero_go() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 8), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x.flatten(2)[0].mT)[0])

    torch.manual_seed(0)
    module = Tagger().eval()
    gates = module.rnn.weight_ih_l0, module.rnn.weight_hh_l0, module.rnn.bias_ih_l0, module.rnn.bias_hh_l0
    with torch.no_grad():
        for weight in gates:
            weight.unflatten(0, (4, 8))[:, 2:5] = 0
    assert dropped(module)[0] == []  # what the others make of them is not zero
    with torch.no_grad():
        module.rnn.weight_hh_l0[:, 2:5] = 0
    assert "8 → 5" in dropped(module)[0][0]
