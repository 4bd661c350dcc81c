"""fuse-conv-bn on torch modules by way of torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from graphopt.compiler import optimize
from graphopt.passes.fuse_conv_bn import FuseConvBn


def randomised(module: nn.Module) -> nn.Module:
    """`module` in inference mode, with batch norms that do something."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2.0)
            if part.affine:
                nn.init.uniform_(part.weight, 0.5, 2.0)
                nn.init.normal_(part.bias)
    return module.eval()


def fused(module: nn.Module, *inputs: torch.Tensor, **options: Any) -> Any:
    """The record of the pass; the result must compute what the module computes."""
    result = optimize(module, [FuseConvBn()], example_inputs=inputs, **options)
    with torch.no_grad():
        wanted, got = module(*inputs), result.model(*inputs)
    eps = torch.finfo(wanted.dtype).eps
    torch.testing.assert_close(got, wanted, rtol=0, atol=64 * eps * float(wanted.abs().max()))
    return result.report.passes[0]


def kept(record: Any) -> list[str]:
    return [a.rule for a in record.applications if a.status == "kept"]


def refusals(record: Any, rule: str = "conv-batch-norm") -> str:
    return "; ".join(record.rules[rule].refused) if rule in record.rules else ""


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolution_modules(transposed: bool, n: int) -> None:
    conv = getattr(nn, f"Conv{'Transpose' if transposed else ''}{n}d")
    norm = getattr(nn, f"BatchNorm{n}d")
    layers = randomised(
        nn.Sequential(
            conv(4, 6, 3, padding=1, stride=2, groups=2, bias=False),
            norm(6),
            nn.ReLU(),
            conv(6, 6, 3),
            norm(6, affine=False),
        )
    )
    record = fused(layers, torch.randn(2, 4, *[9] * n))
    assert kept(record) == ["conv-batch-norm"] * 2
    assert record.before.nodes - record.after.nodes >= 2


def test_linear_module() -> None:
    record = fused(randomised(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))), torch.randn(32, 4))
    assert kept(record) == ["linear-batch-norm"]


def test_linear_module_in_three_dimensions_is_refused() -> None:
    record = fused(randomised(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5))), torch.randn(3, 5, 4))
    assert kept(record) == []
    assert "features of a linear layer in 3 dimensions" in refusals(record, "linear-batch-norm")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype: torch.dtype) -> None:
    layers = randomised(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).to(dtype)
    assert kept(fused(layers, torch.randn(2, 4, 9, 9, dtype=dtype))) == ["conv-batch-norm"]


def test_a_symbolic_batch_is_kept() -> None:
    layers = randomised(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    inputs = (torch.randn(3, 4, 9, 9),)
    result = optimize(
        layers, [FuseConvBn()], example_inputs=inputs, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    assert kept(result.report.passes[0]) == ["conv-batch-norm"]
    larger = torch.randn(5, 4, 9, 9)
    torch.testing.assert_close(result.model(larger), layers(larger), rtol=0, atol=1e-4)


def test_batch_norm_behind_an_activation_stays() -> None:
    """The order of a CREPE block: convolution, activation, batch norm, pooling."""
    layers = randomised(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.BatchNorm2d(6), nn.MaxPool2d(2)))
    assert kept(fused(layers, torch.randn(2, 4, 9, 9))) == []


def test_training_mode_is_refused() -> None:
    layers = randomised(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))).train()
    record = optimize(layers, [FuseConvBn()], example_inputs=(torch.randn(2, 4, 9, 9),)).report.passes[0]
    assert kept(record) == []


def test_a_batch_norm_without_running_statistics_stays() -> None:
    layers = randomised(nn.Sequential(nn.Conv2d(4, 6, 3)))
    layers.append(nn.BatchNorm2d(6, track_running_stats=False).eval())
    assert kept(fused(layers, torch.randn(2, 4, 9, 9))) == []


class WrittenStatistics(nn.Module):
    """Its running mean is moved by every call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        self.norm.running_mean.add_(1.0)
        return y


def test_statistics_that_are_written_are_no_constants() -> None:
    inputs = (torch.randn(2, 4, 9, 9),)
    record = optimize(randomised(WrittenStatistics()), [FuseConvBn()], example_inputs=inputs).report.passes[0]
    assert kept(record) == []
    assert "mean is not a constant" in refusals(record)


class SharedWeight(nn.Module):
    """One convolution called twice, a batch norm behind each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


def test_a_shared_weight_is_refused() -> None:
    record = fused(randomised(SharedWeight()), torch.randn(2, 4, 9, 9))
    assert kept(record) == []
    assert "is shared with" in refusals(record)


def test_the_module_is_not_modified() -> None:
    layers = randomised(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    before = {name: tensor.clone() for name, tensor in layers.state_dict().items()}
    optimize(layers, [FuseConvBn()], example_inputs=(torch.randn(2, 4, 9, 9),))
    assert all(torch.equal(before[name], tensor) for name, tensor in layers.state_dict().items())
