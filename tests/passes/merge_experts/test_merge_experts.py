"""Experts that compute the same become one, in whatever order their hidden units stand; others as far as the budget
lets them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from expert_models import FORMS, HIDDEN, batches, block, exported, tokens

import graphopt
from graphopt.errors import PipelineError
from graphopt.passes.merge_experts import MergeExperts
from graphopt.passes.merge_experts.grouping import Hidden, aligned, groups_of, merged, permuted, places
from graphopt.passes.prune_experts import balance
from graphopt.verify.execute import model_runner

TWINS = ((1, 5), (2, 6))


def twins(name: str, kind: str) -> Any:
    """A block in which two pairs of experts are the same but for the order of hidden units, and nearly for scores."""
    module = block(name, kind)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one, other in TWINS:
            order = torch.randperm(HIDDEN, generator=rng)
            gate_up = module.experts.gate_up_proj
            gate_up[other] = gate_up[one].unflatten(0, (2, HIDDEN))[:, order].flatten(0, 1)
            module.experts.down_proj[other] = module.experts.down_proj[one][:, order]
            noise = 0.02 * torch.randn(module.gate.weight.shape[1], generator=rng)
            module.gate.weight[other] = module.gate.weight[one] + noise
    return module


@pytest.mark.parametrize(
    ("name", "form"), [*(("mixtral", form) for form in FORMS), ("deepseek", FORMS[0])]
)
def test_twins_become_one_and_nothing_changes(name: str, form: str) -> None:
    model = exported(twins(name, form.split()[0]), form)
    expected = [model_runner(model)([x])[0] for x in batches()]
    result = graphopt.optimize(model, ["merge-experts"], budget=1e-5, calibration=batches())
    (application,), record = result.report.applications, result.report.passes[0]
    assert (application.status, application.evidence.kind) == ("kept", "executed"), record.notes
    assert record.notes == ["gate.weight: 8 → 6 experts, merged 1 + 5, 2 + 6"]
    assert record.after.parameters < 0.8 * record.before.parameters
    after = model_runner(graphopt.load(result.model)) if form.endswith("onnx") else None
    for x, before in zip(batches(), expected, strict=True):
        found = after([x])[0] if after else result.model(torch.from_numpy(x)).detach().numpy()
        assert np.abs(found - before).max() <= 1e-5 * np.abs(before).max()


def test_merged_experts_are_lowered_as_others_are() -> None:
    module = twins("mixtral", "grouped_mm")
    result = graphopt.optimize(
        module, "merge-experts,lower-moe", example_inputs=(tokens(0),), budget=1e-5, calibration=batches(),
        target="onnxruntime",
    )  # fmt: skip
    assert [a.rule for a in result.report.kept] == ["experts", "grouped-experts"]
    run = result.lower()
    assert any("picked-experts#1 kept" in note for note in run.notes)
    expected = module(tokens(0)).detach()
    assert float((run(tokens(0)) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("form", FORMS)
def test_the_load_of_merged_experts_is_that_of_their_members(form: str) -> None:
    model = exported(twins("mixtral", form.split()[0]), form)
    (before,) = balance(model, batches())
    result = graphopt.optimize(model, ["merge-experts"], budget=1e-5, calibration=batches())
    left = result.model if form.endswith("onnx") else graphopt.load(result.model, example_inputs=(tokens(0),))
    (after,) = balance(left, batches())
    groups = [[0], [1, 5], [2, 6], [3], [4], [7]]
    assert sorted(after.tokens) == sorted(before.tokens[group].sum() for group in groups)
    assert before.gate is not None and after.gate is not None
    assert np.allclose(sorted(after.gate), sorted(before.gate[group].sum() for group in groups))


def test_merged_experts_are_pruned_by_the_routers_numbers() -> None:
    module = twins("mixtral", "grouped_mm")
    with torch.no_grad():
        module.gate.weight[3, 0] = -50.0
    result = graphopt.optimize(
        module, "merge-experts{experts=6},prune-experts{share=0}", example_inputs=(tokens(0),), budget=1e-5,
        calibration=batches(),
    )  # fmt: skip
    assert [note for record in result.report.passes for note in record.notes] == [
        "gate.weight: 8 → 6 experts, merged 1 + 5, 2 + 6", "gate.weight: 8 → 7 experts, without 3",
    ]  # fmt: skip
    expected = module(tokens(0)).detach()
    assert float((result.model(tokens(0)).detach() - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_a_budget_of_nothing_keeps_experts_that_differ() -> None:
    result = graphopt.optimize(
        exported(block("mixtral"), "grouped_mm fx"), ["merge-experts"], budget=1e-6, calibration=batches()
    )
    assert not result.report.applications
    assert result.report.passes[0].notes == ["gate.weight keeps all 8 experts"]


def test_so_many_stay_as_are_asked_for() -> None:
    model = exported(block("mixtral"), "grouped_mm fx")
    result = graphopt.optimize(model, [MergeExperts(experts=3)], budget=float("inf"), calibration=batches())
    assert "8 → 3 experts" in result.report.passes[0].notes[0]
    with pytest.raises(PipelineError, match="experts=4"):
        graphopt.optimize(model, ["merge-experts"], budget=float("inf"), calibration=batches())
    with pytest.raises(PipelineError, match="budget"):
        graphopt.optimize(model, ["merge-experts"])


def test_a_wrong_table_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.passes.merge_experts import pass_

    right = pass_.merge

    def wrong(found: Any, journal: Any, *, arrays: Any, group: Any) -> None:
        right(found, journal, arrays=arrays, group=np.roll(group, 1))

    monkeypatch.setattr(pass_, "merge", wrong)
    model = exported(block("mixtral"), "grouped_mm fx")
    report = graphopt.optimize(model, [MergeExperts(experts=6)], budget=float("inf"), calibration=batches()).report
    assert [a.status for a in report.applications] == ["undone"]


def test_those_that_are_scored_alike_are_one_and_that_with_more_tokens_stays() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(64, 4))
    scores[:, 3] = 2 * scores[:, 0] + 0.01 * rng.normal(size=64)
    assert groups_of(np.array([9, 5, 7, 1]), scores, 3).tolist() == [0, 1, 2, 0]
    assert groups_of(np.array([1, 5, 7, 9]), scores, 3).tolist() == [3, 1, 2, 3]


@pytest.mark.parametrize("turns", (False, True))
def test_hidden_units_are_found_in_another_order(turns: bool) -> None:
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(2, 12, 4)), rng.normal(size=(2, 4, 6))
    hidden = places({"up": up, "down": down}, 4, turns=turns)
    assert hidden == {"up": Hidden(1, 2, turns), "down": Hidden(2, 1, turns)}
    order = rng.permutation(6)
    up[1], down[1] = (permuted(a[0], hidden[n], order) for n, a in (("up", up), ("down", down)))
    found = aligned({"up": up, "down": down}, hidden, 1, 0)
    assert order[found].tolist() == list(range(6))
    means = merged({"up": up, "down": down}, hidden, np.array([0, 0]), np.array([3, 1]))
    assert np.allclose(means["up"], up[:1]) and np.allclose(means["down"], down[:1])


def test_sizes_that_do_not_tell_where_hidden_units_stand_leave_them() -> None:
    assert places({"up": np.zeros((2, 4, 4)), "down": np.zeros((2, 4, 4))}, 4) == {}
