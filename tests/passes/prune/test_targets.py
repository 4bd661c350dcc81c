"""How much goes: targets, budgets, limits, applications that are left out, and what is reported of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from classifiers import SIZES, classifier, exported, images, left, notes, prune

import graphopt
from graphopt import Budget
from graphopt.errors import PipelineError
from graphopt.ir.graph import CannotEmit
from graphopt.passes.prune import prune as module_of_the_pass
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.tools.digits.models import parameter_count


def test_there_is_no_pruning_without_data() -> None:
    with pytest.raises(PipelineError, match="needs calibration data"):
        graphopt.optimize(exported(), ["prune{ratio=0.5}"], budget=1)


def test_a_budget_without_limit_needs_a_target() -> None:
    with pytest.raises(PipelineError, match="an infinite budget sets no limit, so say how much"):
        prune("")


@pytest.mark.parametrize("budget", [0, 1e-9])
@pytest.mark.parametrize("options", ["", "ratio=0.5", 'axis="body.0.weight:0" keep=0,1'])
def test_a_budget_that_allows_nothing_leaves_the_model_as_it_is(options: str, budget: float) -> None:
    result = prune(options, budget)
    assert left(result) == SIZES and result.report.kept == []
    assert f"relative-error above {budget:.3g}: the model stays as it is" in notes(result)
    assert torch.allclose(result.model(images()), classifier()(images()), atol=1e-5)


def test_without_a_target_as_much_goes_as_the_budget_allows() -> None:
    little, much = (prune("", budget) for budget in (0.3, 0.8))
    for result, budget in ((little, 0.3), (much, 0.8)):
        assert 0 < result.report.passes[0].spending.after <= budget
    assert sum(left(much).values()) < sum(left(little).values()) < sum(SIZES.values())


@pytest.mark.parametrize("storage", ["fx", "onnx"])
def test_a_flops_target_is_met_and_reported_as_measured(storage: str) -> None:
    result = prune("flops=0.5 multiple=1", storage=storage)
    record = result.report.passes[0]
    share = 1 - record.after.flops / record.before.flops
    assert 0.5 <= share < 0.53
    assert f"(-{share:.1%})" in notes(result)


@pytest.mark.parametrize(("options", "what"), [("flops=0.9999", "FLOPs"), ("params=0.9999", "parameters")])
def test_targets_out_of_reach_leave_the_model_as_it_is(options: str, what: str) -> None:
    result = prune(options)
    assert left(result) == SIZES
    assert re.search(rf"{what} can go down by \d+\.\d% at most, not by 100.0%: the model stays as it is", notes(result))


def test_a_latency_target_out_of_reach_leaves_the_model_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_of_the_pass, "time_ratio", lambda candidate, original, feed: 0.9)
    result = prune("latency=0.5")
    assert left(result) == SIZES and "the measured time cannot go down by 50%" in notes(result)


def test_a_latency_target_takes_the_least_that_is_fast_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def ratio(candidate: Any, original: Any, feed: Any) -> float:
        first, second = (sum(size for _, size, _ in m.weights()) for m in (candidate, original))
        return first / second

    monkeypatch.setattr(module_of_the_pass, "time_ratio", ratio)
    result = prune("latency=0.5 multiple=1")
    assert 0.45 < parameter_count(result.model) / parameter_count(classifier()) <= 0.5


def test_flops_of_symbolic_sizes_are_those_of_the_calibration_inputs() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    result = prune("flops=0.5 multiple=1", dynamic_shapes={"images": {0: batch}})
    static = prune("flops=0.5 multiple=1")
    assert left(result) == left(static) and notes(result) == notes(static)
    assert result.model(images(count=3)).shape == (3, 10)


# ---- applications that are left out ------------------------------------------------------------------


def test_a_limit_keeps_so_many_axes() -> None:
    result = prune("ratio=0.5", limit=1)
    assert left(result) == SIZES | {"body.0.weight:0": 8} and len(result.report.kept) == 1


def test_a_skipped_axis_keeps_its_size_and_the_others_keep_their_ids() -> None:
    result = prune("ratio=0.5", skip=["prune/axis#2"])
    assert left(result)["body.3.weight:0"] == 32
    assert [a.id for a in result.report.kept] == ["prune/axis#1", "prune/axis#3", "prune/axis#4"]


@pytest.mark.parametrize("options", [{"limit": 1}, {"skip": ["prune/axis#1"]}])
def test_the_report_says_the_flops_of_what_was_done(options: dict[str, Any]) -> None:
    result = prune("ratio=0.5", **options)
    record = result.report.passes[0]
    assert f"({record.after.flops / record.before.flops - 1:+.1%})" in notes(result)


def test_an_axis_that_cannot_be_written_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module_of_the_pass.shorten_checked

    def refusing(axes: Any, axis: Any, keep: Any, journal: Any, **options: Any) -> Any:
        if axis.name == "body.3.weight:0":
            raise CannotEmit("the storage cannot say it")
        return real(axes, axis, keep, journal, **options)

    monkeypatch.setattr(module_of_the_pass, "shorten_checked", refusing)
    result = prune("ratio=0.5", 2.0)
    assert left(result)["body.3.weight:0"] == 32 and left(result)["body.6.weight:0"] == 32
    (undone,) = result.report.undone
    assert "the storage cannot say it" in undone.reason


class MindsTwoLogits:
    """A metric by which an image's first two logits may both be as they were or both be others, but not one of them."""

    def __call__(self, reference: Any, candidate: Any) -> float:
        moved = [bool((reference[0][0][:, i] != candidate[0][0][:, i]).any()) for i in (0, 1)]
        return float(moved[0] != moved[1])


class TwoHeads(torch.nn.Module):
    """Two logits, each from hidden units of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x) for part in self.parts], 1)


@pytest.mark.parametrize("options", [{"skip": ["prune/axis#1"]}, {"limit": 1}])
def test_what_is_left_out_does_not_take_the_rest_beyond_the_budget_in_silence(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    data = [torch.randn(6, 4) for _ in range(4)]
    others: dict[str, Any] = {
        "budget": Budget(MindsTwoLogits(), 0.5),
        "calibration": data,
        "example_inputs": (data[0],),
    }
    module = TwoHeads()
    assert len(graphopt.optimize(module, ["prune{ratio=0.5}"], **others).report.kept) == 2
    result = graphopt.optimize(module, ["prune{ratio=0.5}"], **others, **options)
    assert result.report.passes[0].spending.after == 0.0 and result.report.kept == []
    assert "without parts.0.0.weight:0" in notes(result) or "without parts.1.0.weight:0" in notes(result)
    assert "above 0.5: the model stays as it is" in notes(result)
    x = data[0]
    assert torch.allclose(result.model(x), module(x), atol=1e-6)


def test_an_axis_that_fails_its_check_does_not_take_the_rest_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module_of_the_pass.shorten_checked

    def refusing(axes: Any, axis: Any, keep: Any, journal: Any, *, check: bool = True) -> Any:
        if check and axis.name == "parts.1.0.weight:0":
            raise Rejected("a fault was found", Evidence("none"))
        return real(axes, axis, keep, journal, check=check)

    monkeypatch.setattr(module_of_the_pass, "shorten_checked", refusing)
    torch.manual_seed(0)
    data = [torch.randn(6, 4) for _ in range(4)]
    result = graphopt.optimize(
        TwoHeads(), ["prune{ratio=0.5}"], example_inputs=(data[0],), calibration=data,
        budget=Budget(MindsTwoLogits(), 0.5),
    )  # fmt: skip
    assert result.report.kept == [] and result.report.passes[0].spending.after == 0.0
    assert "without parts.1.0.weight:0" in notes(result)


def test_what_is_left_out_does_not_change_what_becomes_of_the_rest() -> None:
    whole, skipped = prune("ratio=0.5", 2.0), prune("ratio=0.5", 2.0, skip=["prune/axis#2"])
    assert left(skipped) == left(whole) | {"body.3.weight:0": 32}
    record = skipped.report.passes[0]
    assert 0 < record.spending.after <= 2.0 and [a.id for a in skipped.report.kept][1] == "prune/axis#3"
