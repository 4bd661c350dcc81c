"""Consecutive linear maps become one where that costs fewer FLOPs, and only there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from conv_graphs import Layers, fuse, kept, reasons
from torch import nn

import graphopt
from graphopt.ir.convert import from_scratch
from graphopt.passes import merge_linear
from graphopt.passes.merge_linear import RULES

SPELLINGS = ["linear", "linear untransposed", "matmul", "matmul and sum", "no bias"]


def then_layer(layers: Layers, out: int, spelling: str) -> None:
    if spelling.startswith("matmul"):
        layers.then("matmul", layers.ref(layers.shape[-1], out), shape=(*layers.shape[:-1], out))
        if spelling == "matmul and sum":
            layers.then("add", layers.ref(out))
    else:
        layers.linear(out, bias=spelling != "no bias", trans_w=spelling != "linear untransposed")


def then_conv(layers: Layers, out: int, kernel: int = 1, pads: int = 0, stride: int = 1, groups: int = 1) -> None:
    batch, into, *sizes = layers.shape
    n = len(sizes)
    sizes = [(s + 2 * pads - kernel) // stride + 1 for s in sizes]
    fields: dict[str, Any] = {"stride": (stride,) * n, "pads": (pads,) * 2 * n, "dilation": (1,) * n, "groups": groups}
    weight = layers.ref(out, into // groups, *[kernel] * n)
    layers.then("conv", weight, layers.ref(out), shape=(batch, out, *sizes), **fields)


def flops(result: Any) -> tuple[int, int]:
    record = result.report.passes[0]
    return record.before.flops, record.after.flops


@pytest.mark.parametrize("rows", [(5,), (2, 5)], ids=str)
@pytest.mark.parametrize("first", SPELLINGS)
@pytest.mark.parametrize("second", SPELLINGS)
def test_two_linear_layers_become_one(first: str, second: str, rows: tuple[int, ...]) -> None:
    layers = Layers((*rows, 6))
    then_layer(layers, 16, first)
    then_layer(layers, 4, second)
    assert len(kept(fuse(layers.done(), RULES))) == 1
    assert Counter(layers.ops) <= Counter({layers.ops[0]: 1, "add": 1})


SAID = [(spelling, (5,), storage) for spelling in SPELLINGS for storage in ("onnx", "fx")]
# In three dimensions ONNX has products only.
SAID += [(spelling, (2, 5), "onnx") for spelling in ("matmul", "matmul and sum")]
SAID += [(spelling, (2, 5), "fx") for spelling in SPELLINGS if spelling != "linear untransposed"]


@pytest.mark.parametrize(("spelling", "rows", "storage"), SAID)
def test_both_storages_are_merged_and_cost_less(spelling: str, rows: tuple[int, ...], storage: str) -> None:
    layers = Layers((*rows, 6))
    for width in (16, 4):
        then_layer(layers, width, spelling)
    result = graphopt.optimize(from_scratch(layers.done(), storage), "merge-linear")
    assert [a.status for a in result.report.applications] == ["kept"], result.report.why_not()
    before, after = flops(result)
    assert after < 0.3 * before


def test_a_chain_is_merged_as_far_as_that_pays() -> None:
    layers = Layers((3, 8))
    for width in (32, 32, 4):
        layers.linear(width)
    assert kept(fuse(layers.done(), RULES)) == ["linear-linear"] * 2
    assert layers.ops == ["linear"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_float_is_merged_within_its_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, 96), nn.Linear(96, 16)).eval().to(dtype)
    x = torch.randn(5, 24).to(dtype)
    result = graphopt.optimize(module, "merge-linear", example_inputs=x)
    assert [a.status for a in result.report.applications] == ["kept"], result.report.applications
    wanted = module.double()(x.double())
    error = (result.model(x).double() - wanted).norm() / wanted.norm()
    assert float(error.detach()) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "pads", "strides"), [(1, 0, (1, 1)), (1, 1, (2, 3)), (3, 1, (1, 1)),
                                                         (3, 0, (2, 2))])  # fmt: skip
def test_a_convolution_and_one_of_kernel_1_become_one(n: int, kernel: int, pads: int, strides: tuple[int, int]) -> None:
    layers = Layers((2, 4, *[9] * n))
    then_conv(layers, 24, kernel, pads, strides[0])
    then_conv(layers, 5, 1, 0, strides[1])
    assert kept(fuse(layers.done(), RULES)) == ["conv-conv"]
    assert layers.ops == ["conv"]


@pytest.mark.parametrize("storage", ["onnx", "fx"])
def test_convolutions_of_both_storages_are_merged(storage: str) -> None:
    layers = Layers((2, 4, 9, 9))
    then_conv(layers, 24, 3, 1, 2)
    then_conv(layers, 5)
    result = graphopt.optimize(from_scratch(layers.done(), storage), "merge-linear")
    assert [a.status for a in result.report.applications] == ["kept"]
    assert flops(result)[1] < flops(result)[0]


@pytest.mark.parametrize(("into", "mid", "out", "pays"), [(6, 3, 6, False), (6, 4, 6, True), (32, 8, 64, False)])
def test_what_does_not_pay_is_refused_with_the_counts(into: int, mid: int, out: int, pays: bool) -> None:
    layers = Layers((3, into))
    layers.linear(mid)
    layers.linear(out)
    ledger = fuse(layers.done(), RULES)
    assert bool(kept(ledger)) == pays
    if not pays:
        said = f"one layer from {into} to {out} costs {into * out} multiply-adds a position, two by way of {mid} cost"
        assert said in reasons(ledger, "linear-linear")


def test_a_kernel_counts_for_what_a_convolution_costs() -> None:
    layers = Layers((1, 4, 9, 9))
    then_conv(layers, 5, 3)  # 5 * (36 + 6) multiply-adds, and 36 * 6 in one
    then_conv(layers, 6)
    assert "multiply-adds" in reasons(fuse(layers.done(), RULES), "conv-conv")


def refused(module: nn.Module, x: torch.Tensor) -> str:
    result = graphopt.optimize(module.eval(), "merge-linear", example_inputs=x)
    assert not result.report.applications
    return "\n".join(result.report.why_not())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.down(self.up(x))


class Between(Two):
    def forward(self, x: torch.Tensor) -> Any:
        return self.down(torch.relu(self.up(x)))


class Read(Two):
    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.up(x)
        return self.down(hidden), hidden.sum()


class Output(Two):
    def forward(self, x: torch.Tensor) -> Any:
        hidden = self.up(x)
        return self.down(hidden), hidden


class Tied(Two):
    def forward(self, x: torch.Tensor) -> Any:
        return self.down(self.up(x)) + self.up(x[:1]).sum()


@pytest.mark.parametrize(("module", "reason"), [(Between, ""), (Read, "other users"), (Output, "output of the graph"),
                                                (Tied, "shared with")])  # fmt: skip
def test_near_misses_are_refused(module: type[Two], reason: str) -> None:
    assert reason in refused(module(), torch.randn(3, 8))


def test_weights_that_are_inputs_are_left_alone() -> None:
    class Given(nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return x @ w @ v

    inputs = torch.randn(2, 4), torch.randn(4, 9), torch.randn(9, 4)
    assert not graphopt.optimize(Given(), "merge-linear", example_inputs=inputs).report.applications


@pytest.mark.parametrize(("fields", "reason"), [({"pads": 1}, "pads what the first makes"), ({"groups": 2}, "groups"),
                                                ({"kernel": 3}, "is not 1")])  # fmt: skip
def test_convolutions_that_are_no_product_of_matrices_are_refused(fields: dict[str, int], reason: str) -> None:
    layers = Layers((1, 4, 7, 7))
    then_conv(layers, 24)
    then_conv(layers, 4, **fields)
    ledger = fuse(layers.done(), RULES)
    assert not kept(ledger) and reason in reasons(ledger, "conv-conv")


@pytest.mark.parametrize(("spec", "module", "shape"), [
    ("low-rank{rank=8}", nn.Linear(32, 64), (40, 32)),
    ("low-rank{rank=8 min-gain=0}", nn.Linear(16, 17), (40, 16)),
    ("low-rank{rank=8 conv=channels}", nn.Conv2d(32, 48, 3), (2, 32, 8, 8)),
    ("low-rank{rank=8}", nn.Conv2d(32, 48, 1, stride=2), (2, 32, 8, 8)),
])  # fmt: skip
def test_what_low_rank_split_stays_split(spec: str, module: nn.Module, shape: tuple[int, ...]) -> None:
    data = [(torch.randn(shape),) for _ in range(4)]
    result = graphopt.optimize(
        module.eval(), [spec, "merge-linear"], example_inputs=data[0], budget=float("inf"), calibration=data
    )
    split, merged = result.report.passes
    assert [a.status for a in split.applications] == ["kept"] and not merged.applications


def no_carried_bias(m: Any, build: Any) -> Any:
    return build.linear(m.x, m.w2 @ m.w1, m.b2, like=m.out, trans_w=True)


def wrong_order(m: Any, build: Any) -> Any:
    second = m.w2 @ m.w1
    return build.linear(m.x, second[::-1], m.b2 + (m.w2 @ m.b1.reshape(-1, 1)).reshape(-1), like=m.out, trans_w=True)


def slightly_off(m: Any, build: Any) -> Any:
    weight = (m.w2 @ m.w1).numpy() * np.float32(1.0001)
    bias = m.w2 @ m.b1.reshape(-1, 1)
    return build.linear(m.x, graphopt.ir.weights.ArrayRef(weight), m.b2 + bias.reshape(-1), like=m.out, trans_w=True)


@pytest.mark.parametrize("wrong", [no_carried_bias, wrong_order, slightly_off])
def test_wrong_products_are_undone(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_linear.LinearLinear.definition, "rewrite", wrong, raising=False)
    module, x = Two().eval(), torch.randn(3, 8)
    result = graphopt.optimize(module, "merge-linear", example_inputs=x)
    assert [a.status for a in result.report.applications] == ["undone"]
    assert torch.equal(result.model(x), module(x))
