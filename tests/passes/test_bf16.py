"""Products and what follows them in bfloat16: what torch computes in it, verified op by op, within the budget."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import onnx.helper as helper
import pytest
import torch
from tiny_denoisers import tiny
from torch import nn

import graphopt
from graphopt.errors import PipelineError, UnsupportedError
from graphopt.passes import bf16
from graphopt.passes.bf16 import Bf16

INFINITE = float("inf")


class Net(nn.Module):
    """A convolution with batch norm, a sum of everything, and a linear layer whose weight is read twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        nn.init.uniform_(self.norm.running_mean)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.relu(self.norm(self.conv(x)))
        pooled = y.mean((2, 3))
        return self.linear(self.linear(pooled)) * 0.3, torch.exp(pooled)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def converted(module: nn.Module, spec: str = "bf16", budget: Any = INFINITE, **options: Any) -> Any:
    return graphopt.optimize(
        module.eval(), spec, example_inputs=(X,), budget=budget, calibration=[(X,), (X.flip(0),)], **options
    )


def dtypes(module: torch.fx.GraphModule) -> dict[str, torch.dtype]:
    """The dtype of every op's result, by its short name."""
    values = {n: n.meta.get("val") for n in module.graph.nodes if n.op == "call_function"}
    return {n.name: v.dtype for n, v in values.items() if isinstance(v, torch.Tensor)}


@cache
def denoiser(family: str) -> tuple[nn.Module, dict[str, Any], Any]:
    """A module, its inputs and what the pass makes of it."""
    module, inputs = tiny(family)
    given = tensors(inputs)
    result = graphopt.optimize(module, "bf16", example_inputs=((), inputs), budget=0.02, calibration=[given, given])
    return module, inputs, result


def tensors(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}


def first(result: Any) -> torch.Tensor:
    found: torch.Tensor = torch.utils._pytree.tree_leaves(result)[0]
    return found


@pytest.mark.parametrize("family", ["dit", "pixart"])
def test_denoisers_compute_what_they_do_in_torchs_bfloat16(family: str) -> None:
    module, inputs, result = denoiser(family)
    narrow = {k: v.bfloat16() for k, v in tensors(inputs).items() if k != "timestep" and v.is_floating_point()}
    with torch.no_grad():
        expected, got = first(module(**inputs)), first(result.model(**inputs))
        own = first(copy.deepcopy(module).bfloat16()(**{**inputs, **narrow})).float()
    error = float((got - expected).norm() / expected.norm())
    assert got.dtype == torch.float32
    assert error == pytest.approx(float((own - expected).norm() / expected.norm()), rel=0.02)
    assert result.report.passes[0].spending.after == pytest.approx(error, rel=0.02)


def test_every_conversion_carries_evidence() -> None:
    report = denoiser("dit")[2].report
    assert len(report.kept) > 100 and not report.undone and report.coverage() == 1.0
    assert all(a.evidence.kind == "executed" and a.evidence.twin == 0.0 for a in report.kept)
    assert 0 < max(a.evidence.worst for a in report.kept) < 0.5


def test_timesteps_stay_exact_up_to_the_first_product() -> None:
    found = dtypes(denoiser("dit")[2].model)
    assert {found[name] for name in found if name.startswith(("sin", "cos", "exp"))} == {torch.float32}
    assert {found[name] for name in found if name.startswith(("linear", "layer_norm"))} == {torch.bfloat16}


def test_ops_go_on_until_one_that_needs_more() -> None:
    module = Net()
    result = converted(module)
    found = dtypes(result.model)
    narrow = [name for name, dtype in found.items() if dtype == torch.bfloat16]
    for op in ("conv2d", "relu", "mean", "linear", "mul"):
        assert any(name.startswith(op) for name in narrow), (op, narrow)
    assert found[next(n for n in found if n.startswith("exp"))] == torch.float32
    assert [y.dtype for y in result.model(X)] == [torch.float32, torch.float32]


def test_weights_are_stored_once_and_narrow() -> None:
    result = converted(Net())
    stored = dict(result.model.state_dict())
    assert {x.dtype for x in stored.values() if x.is_floating_point()} == {torch.bfloat16}
    assert sum(tuple(x.shape) == (8, 8) for x in stored.values()) == 1
    record = result.report.passes[0]
    assert record.after.bytes == pytest.approx(record.before.bytes / 2, rel=0.05)


def test_weights_of_experts_are_narrow_though_products_read_them_transposed() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = transformers.MixtralConfig(
        hidden_size=16, intermediate_size=24, num_local_experts=4, num_experts_per_tok=2
    )
    config._experts_implementation = "grouped_mm"
    torch.manual_seed(0)
    block, x = MixtralSparseMoeBlock(config).eval(), torch.randn(1, 6, 16)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2)
    result = graphopt.optimize(
        block, "bf16", example_inputs=(x,), budget=INFINITE, calibration=[(x,), (x.flip(1),)]
    )
    assert not result.report.undone
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        expected, got = first(block(x)), first(result.model(x))
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.02


def test_nodes_that_are_skipped_stay() -> None:
    result = converted(Net(), "bf16{skip=linear*}")
    found = dtypes(result.model)
    assert {dtype for name, dtype in found.items() if name.startswith("linear")} == {torch.float32}
    assert any(dtype == torch.bfloat16 for dtype in found.values())


def test_the_budget_decides() -> None:
    module = Net()
    spent = converted(module).report.passes[0].spending.after
    assert 1e-4 < spent < 0.02
    assert converted(module, budget=1.01 * spent).report.kept
    refused = converted(module, budget=0.5 * spent)
    assert not refused.report.kept and "the model stays as it is" in refused.report.passes[0].notes[0]
    assert all(torch.equal(a, b) for a, b in zip(refused.model(X), module(X), strict=True))


def test_without_a_budget_or_data_it_does_not_run() -> None:
    with pytest.raises(PipelineError, match="bf16 is approximate and never runs without a budget"):
        graphopt.optimize(Net().eval(), "bf16", example_inputs=(X,))
    with pytest.raises(PipelineError, match="calibration data"):
        graphopt.optimize(Net().eval(), "bf16", example_inputs=(X,), budget=0.01)


def test_onnx_models_are_refused() -> None:
    value = [helper.make_tensor_value_info(n, 1, [2]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(UnsupportedError, match="bf16 rewrites torch models"):
        graphopt.optimize(model, "bf16", budget=INFINITE, calibration=[X[0, 0, 0, :2].numpy()] * 2)


def test_the_first_conversions_alone_are_a_model_too() -> None:
    module = Net()
    result = converted(module, limit=2)
    assert len(result.report.kept) == 2
    for got, expected in zip(result.model(X), module(X), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


def test_models_without_products_stay() -> None:
    result = converted(nn.Sequential(nn.ReLU(), nn.Sigmoid()))
    assert not result.report.applications


# ---- planted faults --------------------------------------------------------------------------------------


def undone(monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any) -> list[str]:
    monkeypatch.setattr(bf16.Conversion, name, wrong)
    monkeypatch.setattr(Bf16, "_trial", lambda self, model: model)
    report = converted(Net()).report
    assert not report.kept
    return [a.reason for a in report.undone]


def test_a_weight_that_is_not_the_rounded_one_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = bf16.Conversion._weights

    def halved(self: bf16.Conversion) -> Any:
        return {value: data * 0.998 for value, data in right(self).items()}

    assert all("in float64 the result changes by" in r for r in undone(monkeypatch, "_weights", halved))


def test_an_op_that_is_written_otherwise_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def swapped(self: bf16.Conversion, journal: Any) -> None:
        (old,) = self.call.outputs
        narrow = journal.insert(
            "cast", [self.call.operands[0]], {"dtype": "bfloat16"}, before=self.call.node, types=[None]
        )
        (wide,) = journal.insert(
            "cast", narrow, {"dtype": "float32"}, before=self.call.node, types=[self.graph.type(old)]
        )
        journal.replace(old, wide)
        journal.doom([self.call.node])

    assert any("in float64 the result changes by" in r for r in undone(monkeypatch, "write", swapped))
