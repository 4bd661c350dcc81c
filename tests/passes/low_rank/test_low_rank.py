"""Layers become chains of thinner ones: right, worth it, and within the budget."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphopt
from graphopt.errors import PipelineError
from graphopt.passes.low_rank.directions import Inputs, Noise, directions

INFINITE = float("inf")


class FeedForward(nn.Module):
    """Two linear layers; their inputs lie near a few directions, as activations do."""

    def __init__(self, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


def feed_forward() -> FeedForward:
    torch.manual_seed(0)
    return FeedForward().eval()


def batches(count: int = 6, rows: int = 48, width: int = 32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(6, width, generator=generator)
    return [
        torch.randn(rows, 6, generator=generator) @ mixing + 0.05 * torch.randn(rows, width, generator=generator)
        for _ in range(count)
    ]


def low_rank(module: nn.Module, spec: str, budget: Any, data: list[torch.Tensor], **options: Any) -> Any:
    return graphopt.optimize(
        module, [spec], example_inputs=(data[0],), budget=budget, calibration=[(x,) for x in data], **options
    )


def notes(result: Any) -> str:
    return "\n".join(result.report.passes[0].notes)


def errors(result: Any) -> list[tuple[float, float]]:
    """Predicted and measured error of every layer that was split."""
    found = re.findall(r"predicted error(?: of the weight)? ([-\d.e]+), measured ([-\d.e]+)", notes(result))
    return [(float(a), float(b)) for a, b in found]


def exported(module: nn.Module, x: torch.Tensor) -> Any:
    return torch.onnx.export(module, (x,), dynamo=True, verbose=False).model_proto


def test_predicted_errors_are_measured_errors() -> None:
    result = low_rank(feed_forward(), "low-rank{rank=8}", INFINITE, batches())
    assert len(errors(result)) == 2
    for predicted, measured in errors(result):
        assert measured == pytest.approx(predicted, rel=1e-3)


def test_every_substitution_carries_evidence_under_its_contract() -> None:
    result = low_rank(feed_forward(), "low-rank{rank=8}", INFINITE, batches())
    assert len(result.report.kept) == 2 and result.report.coverage() == 1.0
    assert all(a.evidence.twin is not None and a.evidence.twin < 1e-9 for a in result.report.kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_onnx_files_and_torch_modules_get_the_same_chains(dtype: torch.dtype) -> None:
    module = feed_forward().to(dtype)
    data = [x.to(dtype) for x in batches()]
    fx = low_rank(module, "low-rank{rank=8}", INFINITE, data)
    assert sorted(tuple(p.shape) for p in fx.model.parameters() if p.ndim == 2) == [(8, 32), (8, 64), (32, 8), (64, 8)]
    if dtype is torch.float32:
        model = exported(module, data[0])
        onnx = graphopt.optimize(model, ["low-rank{rank=8}"], budget=INFINITE, calibration=[(x.numpy(),) for x in data])
        assert np.allclose(errors(onnx), errors(fx), rtol=1e-3)
        got = onnx.lower("onnxruntime")(data[0].numpy())[0]
        assert np.allclose(got, fx.model(data[0]).detach().numpy(), atol=1e-4)


def test_whitening_beats_the_plain_decomposition_on_data_that_was_not_tuned_on() -> None:
    spent = [
        low_rank(feed_forward(), spec, INFINITE, batches()).report.passes[0].spending.after
        for spec in ("low-rank{rank=8}", "low-rank{rank=8 whiten=false}")
    ]
    assert spent[0] < 0.7 * spent[1]


def test_a_rank_that_saves_nothing_is_refused_with_its_reason() -> None:
    result = low_rank(feed_forward(), "low-rank{rank=24}", INFINITE, batches())
    assert result.report.kept == []
    assert "rank 24 is not up to 0.9 r* = 19.2 (r* = 21.3 is the break-even): linear, linear_1" in notes(result)


@pytest.mark.parametrize("whiten", ["true", "false"])
def test_the_full_rank_is_the_layer_itself(whiten: str) -> None:
    torch.manual_seed(0)
    module, data = nn.Linear(48, 8).eval(), [torch.randn(64, 48) for _ in range(4)]
    weight = module.weight.detach().numpy().astype(np.float64).T
    inputs = None
    if whiten == "true":
        fed = np.concatenate([x.numpy().astype(np.float64) for x in data])
        inputs = Inputs(fed.T @ fed, fed.T @ fed)
    first, second = directions(weight, inputs, whiten=whiten == "true").factors(weight, 8)
    assert np.abs(first @ second - weight).max() < 1e-5 * np.abs(weight).max()


def test_weights_of_low_rank_are_recognised_and_spend_nothing() -> None:
    module = feed_forward()
    with torch.no_grad():
        module.up.weight.copy_(torch.randn(64, 5) @ torch.randn(5, 32))
    data = batches()
    result = low_rank(module, "low-rank", 0.0, data)
    assert "linear (32x64) is of low rank: split-linear of rank 8 under rounding, spends no budget" in notes(result)
    assert len(result.report.kept) == 1
    got, wanted = result.model(data[0]), module(data[0])
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5


def test_a_weight_declared_beyond_rounding_is_no_weight_of_low_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    module = feed_forward()
    with torch.no_grad():
        module.up.weight.copy_(torch.randn(64, 5) @ torch.randn(5, 32) + 1e-3 * torch.randn(64, 32))
    monkeypatch.setattr(Noise, "rank", 5)
    result = low_rank(module, "low-rank", 0.0, batches())
    reasons = [a.reason for record in result.report.passes for a in record.applications]
    assert result.report.kept == [] and any("more than rounding" in reason for reason in reasons)


@pytest.mark.parametrize("limit", [0.3, 0.1, 0.03])
def test_a_budget_is_met_on_held_out_data(limit: float) -> None:
    result = low_rank(feed_forward(), "low-rank", limit, batches())
    spending = result.report.passes[0].spending
    assert spending.after <= limit
    sizes = [record.after.parameters for record in result.report.passes]
    assert (sizes[0] < result.report.passes[0].before.parameters) == bool(result.report.kept)


def test_a_larger_budget_saves_more() -> None:
    flops = [low_rank(feed_forward(), "low-rank", b, batches()).report.passes[0].after.flops for b in (0.02, 0.1, 0.5)]
    assert flops[0] >= flops[1] >= flops[2] and flops[2] < flops[0]


def test_an_impossible_budget_leaves_the_model_and_says_so() -> None:
    module, data = feed_forward(), batches()
    result = low_rank(module, "low-rank", 1e-12, data)
    assert result.report.kept == []
    assert "nothing approximate keeps relative-error within 1e-12 on held-out data" in notes(result)
    assert torch.equal(result.model(data[0]), module(data[0]))


def test_it_never_runs_without_a_budget() -> None:
    with pytest.raises(PipelineError, match="never runs without a budget"):
        graphopt.optimize(feed_forward(), ["low-rank"], example_inputs=(batches()[0],))


def test_an_infinite_budget_needs_ranks() -> None:
    with pytest.raises(PipelineError, match="give rank, energy or ratio"):
        low_rank(feed_forward(), "low-rank", INFINITE, batches())


@pytest.mark.parametrize("spec", ["low-rank{rank=0}", "low-rank{energy=1.5}", "low-rank{ratio=1.0}",
                                  "low-rank{rank=4 energy=0.9}", "low-rank{multiple=0}"])  # fmt: skip
def test_bad_options_are_refused(spec: str) -> None:
    with pytest.raises(PipelineError, match="low-rank"):
        low_rank(feed_forward(), spec, INFINITE, batches())


def test_shared_weights_are_left_alone_with_the_reason() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(torch.relu(self.layer(x)))

    torch.manual_seed(0)
    result = low_rank(Tied().eval(), "low-rank{rank=8}", INFINITE, batches())
    assert result.report.kept == [] and "shared" in notes(result)


def test_layers_named_in_skip_are_left_alone() -> None:
    result = low_rank(feed_forward(), "low-rank{rank=8 skip=up.*}", INFINITE, batches())
    assert len(result.report.kept) == 1 and "linear_1" in result.report.kept[0].nodes


@pytest.mark.parametrize("conv", ["channels", "spatial", "tucker"])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 0, 1), ((1, 2), (2, 1), (2, 1))])
def test_convolutions_keep_stride_padding_and_dilation(conv: str, stride: Any, padding: Any, dilation: Any) -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(32, 48, 3, stride=stride, padding=padding, dilation=dilation).eval()
    data = [torch.randn(2, 32, 12, 12) for _ in range(4)]
    result = low_rank(module, f"low-rank{{rank=8 conv={conv}}}", INFINITE, data)
    assert len(result.report.kept) == 1
    ((predicted, measured),) = errors(result)
    assert measured == pytest.approx(predicted, rel=1e-3)
    assert result.model(data[0]).shape == module(data[0]).shape


def test_grouped_convolutions_are_left_alone_with_the_reason() -> None:
    module = nn.Conv2d(32, 32, 3, groups=4).eval()
    result = low_rank(module, "low-rank{rank=8}", INFINITE, [torch.randn(1, 32, 8, 8) for _ in range(4)])
    assert result.report.kept == [] and "group" in notes(result)


def test_it_works_on_a_sampling_program() -> None:
    from diffusers import DDIMScheduler

    from graphopt.tools.digits.models import load_dit, scheduler

    example = {"sample": torch.randn(1, 1, 16, 16), "timestep": torch.tensor([1]), "class_labels": torch.tensor([3])}
    program = graphopt.Sampler(load_dit(), DDIMScheduler.from_config(scheduler().config), 3, example_inputs=example)
    result = graphopt.optimize(program, ["low-rank{ratio=0.6 skip=*norm1*}"], budget=INFINITE)
    spending = result.report.passes[0].spending
    assert len(result.report.kept) > 5 and math.isfinite(spending.after) and spending.metric == "trajectory-mse"
