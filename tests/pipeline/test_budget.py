"""Approximate passes spend one budget, measured on data that they do not see; nothing leaves it."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
from approximate_passes import Reckless, RoundWeights, Unasked
from onnx import TensorProto, helper, numpy_helper

import graphopt
from graphopt import Budget, Calibration, Report
from graphopt.errors import ModelError, PipelineError, RuleError, VerificationError
from graphopt.verify.verifier import Structural


def network():
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def inputs(count, seed=1):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))


EXAMPLE = {"example_inputs": inputs(4), "dynamic_shapes": {"input": {0: torch.export.Dim("batch")}}}
OPTIONS = {**EXAMPLE, "verify": "structure", "calibration": [inputs(4, seed) for seed in range(2, 8)]}


def onnx_network():
    module = network()
    weights, nodes, x = [], [], "x"
    for i in (0, 2, 4):
        layer = module[i]
        weights += [
            numpy_helper.from_array(layer.weight.detach().numpy().T.copy(), f"w{i}"),
            numpy_helper.from_array(layer.bias.detach().numpy(), f"b{i}"),
        ]
        nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]))
        x = f"a{i}"
        if i < 4:
            nodes.append(helper.make_node("Tanh", [x], [f"t{i}"]))
            x = f"t{i}"
    nodes[-1].output[0] = "y"
    graph = helper.make_graph(
        nodes, "mlp", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def error_on(batches, before, after):
    """The relative error, computed by hand."""
    with torch.no_grad():
        a, b = (torch.cat([model(x) for x in batches]).double() for model in (before, after))
    return float((a - b).norm() / a.norm())


# ---- what is spent -------------------------------------------------------------------------------


def test_two_passes_spend_one_budget_and_the_report_says_what_each_spent():
    module = network()
    result = graphopt.optimize(module, [RoundWeights(0.01), RoundWeights(0.1)], budget=0.09, **OPTIONS)
    first, second = (record.spending for record in result.report.passes)
    assert first.metric == second.metric == "relative-error" and first.limit == second.limit == 0.09
    assert first.before == 0.0 < first.after == second.before < second.after <= 0.09
    assert second.after == pytest.approx(error_on(OPTIONS["calibration"][1::2], module, result.model), rel=1e-9)


def test_a_smaller_budget_keeps_less():
    kept = [
        len(graphopt.optimize(network(), [RoundWeights(0.1)], budget=limit, **OPTIONS).report.kept)
        for limit in (0, 0.09, 0.12, math.inf)
    ]
    assert kept[0] == 0 and kept == sorted(kept) and kept[-1] == 3 and len(set(kept)) > 2


def test_a_budget_of_infinity_measures_and_reports():
    module = network()
    result = graphopt.optimize(module, [Reckless(2.0)], budget=math.inf, **OPTIONS)
    (record,) = result.report.passes
    assert record.spending.limit == math.inf
    error = error_on(OPTIONS["calibration"][1::2], module, result.model)
    assert record.spending.after == pytest.approx(error, rel=1e-9)
    again = Report.from_dict(json.loads(result.report.to_json(times=True)))
    assert again.passes[0].spending == record.spending and again.to_json() == result.report.to_json()


def test_an_onnx_model_is_measured_alike():
    data = [batch.numpy() for batch in OPTIONS["calibration"]]
    options = {"verify": "structure", "calibration": data, "budget": 0.09}
    result = graphopt.optimize(onnx_network(), [RoundWeights(0.1)], **options)
    torch_result = graphopt.optimize(network(), [RoundWeights(0.1)], budget=0.09, **OPTIONS)
    spent, torch_spent = (r.report.passes[0].spending.after for r in (result, torch_result))
    assert 0 < spent <= 0.09 and spent == pytest.approx(torch_spent, rel=1e-4)


def test_rounding_of_exact_passes_counts_before_an_approximate_pass_begins():
    module = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 1), torch.nn.BatchNorm1d(4)).eval()
    with torch.no_grad():
        module[1].running_var.fill_(3.0)
    data = [torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    options = {"example_inputs": data[0], "calibration": data, "verify": "structure"}
    result = graphopt.optimize(module, ["fuse-conv-bn", RoundWeights(0.1)], budget=0, **options)
    assert [len(record.applications) for record in result.report.passes] == [1, 0]
    assert 0 < result.report.passes[1].spending.before == result.report.passes[1].spending.after < 1e-6


def test_the_report_shows_the_budget():
    budget = Budget("cosine", 0.5)
    report = graphopt.optimize(network(), [RoundWeights(0.1), "clean-up"], budget=budget, **OPTIONS).report
    lines = [line.split() for line in str(report).splitlines()]
    at = lines.index(["budget", "metric", "before", "after", "limit"])
    assert lines[at + 1][:3] == ["round-weights", "cosine", "0"] and lines[at + 1][-1] == "0.5"
    assert report.passes[1].spending is None and report.to_dict()["passes"][1]["spending"] is None
    assert "budget" not in str(graphopt.optimize(network(), "clean-up", **EXAMPLE).report)


def test_a_callable_metric_decides_and_is_named_in_the_report():
    calls = []

    def largest(reference, candidate):
        calls.append(len(reference))
        return max(float(np.abs(a[0] - b[0]).max()) for a, b in zip(reference, candidate, strict=True))

    report = graphopt.optimize(network(), [RoundWeights(0.1)], budget=Budget(largest, 0.01), **OPTIONS).report
    assert report.passes[0].spending.metric == "largest" and report.passes[0].spending.after <= 0.01
    assert set(calls) == {3}


def test_a_pass_sees_the_tuning_part_only():
    seen = {}

    @dataclass(frozen=True)
    class Look(graphopt.GraphPass):
        name: ClassVar[str] = "look"

        def run(self, context):
            approximation = context.approximation(self)
            assert context.approximation(self) is approximation
            seen.update(feeds=approximation.feeds, weights=approximation.weights, limit=approximation.limit)
            assert approximation.measure(context.model) == approximation.spent == 0.0

    graphopt.optimize(network(), [Look()], budget=0.25, **OPTIONS)
    expected = OPTIONS["calibration"][0::2]
    assert all(np.array_equal(feed[0], x.numpy()) for feed, x in zip(seen["feeds"], expected, strict=True))
    assert seen["weights"] == [1.0] * 3 and seen["limit"] == 0.25


def test_a_pass_may_measure_on_the_tuning_part_too_against_the_model_that_the_run_started_from():
    judged = []

    def metric(reference, candidate):
        judged.append([outputs[0] for outputs in reference])
        return abs(sum(float(np.sum(a[0] - b[0])) for a, b in zip(reference, candidate, strict=True)))

    @dataclass(frozen=True)
    class Measures(graphopt.GraphPass):
        name: ClassVar[str] = "measures"

        def run(self, context):
            approximation = context.approximation(self)
            judged.clear()
            assert approximation.measure_tuning(context.model) > 0.0

    module = network()
    graphopt.optimize(module, [Reckless(0.2), Measures()], budget=Budget(metric, math.inf), **OPTIONS)
    expected = [module(x).detach().numpy() for x in OPTIONS["calibration"][0::2]]
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(judged[0], expected, strict=True))


# ---- what is refused -----------------------------------------------------------------------------


def test_a_pass_that_leaves_the_budget_is_at_fault():
    with pytest.raises(RuleError, match="reckless leaves relative-error at .* above the limit of 0.001"):
        graphopt.optimize(network(), [Reckless(0.5)], budget=0.001, **OPTIONS)


def test_a_result_of_nan_is_beyond_every_budget():
    @dataclass(frozen=True)
    class Spoil(Reckless):
        """Rounds to multiples of NaN."""

        name: ClassVar[str] = "spoil"

        def run(self, context):
            context.approximation(self)
            self.round_all(context, math.nan)

    with pytest.raises(RuleError, match="spoil leaves relative-error at nan .* above the limit of inf"):
        graphopt.optimize(network(), [Spoil()], budget=math.inf, **OPTIONS)


def test_an_approximate_change_without_having_asked_is_refused():
    report = graphopt.optimize(network(), [Unasked()], budget=math.inf, **OPTIONS).report
    assert not report.kept and len(report.undone) == 3
    assert "context.approximation(self)" in report.undone[0].reason


def test_an_approximate_pass_never_runs_without_a_budget():
    with pytest.raises(PipelineError, match=r"round-weights is approximate .*budget=0.01"):
        graphopt.optimize(network(), [RoundWeights()], **OPTIONS)


def test_an_approximate_pass_never_runs_without_calibration():
    with pytest.raises(PipelineError, match=r"round-weights is approximate .*calibration=\[batch"):
        graphopt.optimize(network(), [RoundWeights()], budget=0.1, **EXAMPLE)


@pytest.mark.parametrize("passes", [["clean-up"], [RoundWeights()]])
def test_bad_budgets_and_bad_data_are_refused_before_any_pass(passes):
    with pytest.raises(PipelineError, match="not negative"):
        graphopt.optimize(network(), passes, budget=-1, **OPTIONS)
    bad = {**OPTIONS, "calibration": [inputs(4).double()]}
    with pytest.raises(ModelError, match=r"batch 0, input .*expected float32\[.*,8\], got float64\[4,8\]"):
        graphopt.optimize(network(), passes, budget=1, **bad)


def test_a_metric_that_is_not_zero_for_equal_outputs_is_refused():
    def similarity(reference, candidate):
        return 1.0

    with pytest.raises(PipelineError, match="'similarity' of the original's outputs against themselves is 1"):
        graphopt.optimize(network(), [RoundWeights()], budget=Budget(similarity, 0.5), **OPTIONS)


def test_data_that_the_model_does_not_run_on_is_refused():
    class Lookup(torch.nn.Module):
        def forward(self, index):
            return torch.arange(4.0)[index]

    with pytest.raises(ModelError, match="cannot be run on the calibration data"):
        graphopt.optimize(
            Lookup(), "clean-up", example_inputs=torch.tensor([1]), calibration=torch.tensor([1, 9]), budget=0.1
        )


# ---- end to end ----------------------------------------------------------------------------------


def test_end_to_end_an_approximate_result_is_judged_by_its_budget(monkeypatch):
    monkeypatch.setattr("graphopt.job.make_verifier", lambda *_: Structural("types"))
    options = {**OPTIONS, "verify": "model", "budget": 0.1}
    report = graphopt.optimize(network(), [RoundWeights(0.1), "clean-up"], **options).report
    assert report.kept and report.notes[-1].startswith("end to end: relative-error 0.0")

    @dataclass(frozen=True)
    class Later(Unasked):
        """Rounds coarsely and calls it exact."""

        name: ClassVar[str] = "later"

        def run(self, context):
            monkeypatch.setattr("graphopt.pipeline.context.Approximate", type(None))
            self.round_all(context, self.grid)

    with pytest.raises(VerificationError, match=r"end to end: relative-error .*found later/round-layer#"):
        graphopt.optimize(network(), [RoundWeights(0.1), Later(0.9)], **options)


def test_end_to_end_without_approximation_the_first_batch_is_run(monkeypatch):
    from graphopt.verify.whole import WholeCheck

    fed = []
    made = WholeCheck.__init__

    def watch(self, original, examples=None, feeds=None):
        made(self, original, examples, feeds)
        fed.append(self.feeds)

    monkeypatch.setattr(WholeCheck, "__init__", watch)
    data = [batch.numpy() for batch in OPTIONS["calibration"]]
    given = ((network(), data), (onnx_network(), {"x": data[0]}), (onnx_network(), Calibration(data)))
    for model, calibration in given:
        options = EXAMPLE if isinstance(model, torch.nn.Module) else {}
        report = graphopt.optimize(model, "clean-up", verify="model", calibration=calibration, **options).report
        assert report.notes[-1].startswith("end to end: largest error")
        assert np.array_equal(fed.pop()[0], data[0])
