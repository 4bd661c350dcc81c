"""Convolutions of concatenated channels become sums of convolutions of the parts, and only where that is so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphopt


class Joined(nn.Module):
    """conv(silu(norm(cat(x, y)))), as in a block behind a skip connection."""

    def __init__(self, groups: int = 5, conv_groups: int = 1, *, shown: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, 10)
        self.conv = nn.Conv2d(10, 8, 3, padding=1, groups=conv_groups)
        self.shown = shown

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        h = nn.functional.silu(self.norm(torch.cat([x, y], 1)))
        return (self.conv(h), h) if self.shown else (self.conv(h),)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 7, 5, generator=generator), torch.randn(2, 4, 7, 5, generator=generator)


def test_a_norm_and_an_activation_are_split_with_the_convolution() -> None:
    torch.manual_seed(0)
    module, given = Joined().eval(), inputs()
    result = graphopt.optimize(module, "split-concats", example_inputs=given)
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    got = result.model(*given)
    got = got[0] if isinstance(got, tuple | list) else got
    wanted = module.double()(*(x.double() for x in given))[0]
    assert float((got.double() - wanted).abs().max() / wanted.abs().max()) < 2e-6


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Joined(groups=2), "a group of 5 channels has some of two parts"),
        (Joined(conv_groups=2), "the convolution has 2 groups"),
        (Joined(shown=True), "is read elsewhere too"),
    ],
    ids=["group of two parts", "grouped convolution", "norm read elsewhere"],
)
def test_what_does_not_split_is_refused_by_name(module: nn.Module, reason: str) -> None:
    result = graphopt.optimize(module.eval(), "split-concats", example_inputs=inputs())
    assert not result.report.applications
    assert reason in "\n".join(result.report.why_not())


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_spatial_sizes_may_be_dynamic(storage: str) -> None:
    torch.manual_seed(0)
    given = inputs()
    module = Function(lambda conv, x, y: conv(nn.functional.silu(torch.cat([x, y], 1)))).eval()
    height = torch.export.Dim("height", min=4)
    shapes = {"args": ({2: height}, {2: height})}
    if storage == "fx":
        result = graphopt.optimize(module, "split-concats", example_inputs=given, dynamic_shapes=shapes)
        run = result.model
    else:
        program = torch.onnx.export(module, given, dynamo=True, verbose=False, dynamic_shapes=shapes)
        result = graphopt.optimize(program.model_proto, "split-concats")
        run = lambda *xs: torch.from_numpy(result.lower("onnxruntime")(*(x.numpy() for x in xs))[0])  # noqa: E731
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    other = [x[:, :, :5] for x in given]
    assert torch.allclose(run(*other), module(*other), atol=1e-6)


class Function(nn.Module):
    """A function of a convolution of 10 channels and of the inputs."""

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.conv, self.call = nn.Conv2d(10, 8, 3), call

    def forward(self, *args: torch.Tensor) -> Any:
        return self.call(self.conv, *args)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda conv, x, y: conv(torch.cat([x, y], 1)) + conv(torch.cat([y, x], 1)), "is shared with"),
        (lambda conv, x, y: (conv(torch.cat([x, y], 1)), x.sum() * conv.weight), "is shared with"),
        (lambda conv, x, y: (conv(torch.cat([x, y], 1)), conv.weight), "is an output of the graph"),
        (lambda conv, x, y: conv(torch.cat([torch.cat([x, y], 1)] * 2, 3)), "joins axis 3 of 4"),
    ],
    ids=["shared convolution", "weight read elsewhere", "weight returned", "joined along the width"],
)
@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_weights_of_others_and_other_axes_are_left_alone(call: Any, reason: str, storage: str) -> None:
    module, given = Function(call).eval(), inputs()
    if storage == "onnx":
        model = torch.onnx.export(module, given, dynamo=True, verbose=False).model_proto
        result = graphopt.optimize(model, "split-concats")
    else:
        result = graphopt.optimize(module, "split-concats", example_inputs=given)
    assert not result.report.applications
    assert reason in "\n".join(result.report.why_not())
