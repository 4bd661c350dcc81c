"""Experts without a token go, and the block computes what it computed."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from expert_models import BLOCKS, FORMS, batches, block, exported

import graphopt
from graphopt.errors import PipelineError
from graphopt.verify.execute import model_runner

DEAD = (1, 5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", BLOCKS)
def test_dead_experts_go_and_nothing_changes(name: str, form: str) -> None:
    model = exported(block(name, form.split()[0], dead=DEAD), form)
    expected = [model_runner(model)([x]) for x in batches()]
    result = graphopt.optimize(model, ["prune-experts{share=0}"], budget=1e-5, calibration=batches())
    assert [a.status for a in result.report.applications] == ["kept"], result.report.passes[0].notes
    assert result.report.applications[0].evidence.kind == "executed"
    assert result.report.passes[0].notes == ["gate.weight: 8 → 6 experts, without 1, 5"]
    pruned = graphopt.load(result.model, example_inputs=None) if form.endswith("onnx") else None
    record = result.report.passes[0]
    assert record.after.parameters < 0.8 * record.before.parameters
    for x, before in zip(batches(), expected, strict=True):
        after = model_runner(pruned)([x]) if pruned is not None else [result.model(_torch(x)).detach().numpy()]
        assert np.abs(after[0] - before[0]).max() <= 1e-5 * np.abs(before[0]).max()


def test_a_budget_of_nothing_keeps_experts_that_are_used() -> None:
    model = exported(block("mixtral"), "grouped_mm fx")
    result = graphopt.optimize(model, ["prune-experts"], budget=1e-6, calibration=batches())
    assert not result.report.applications
    assert result.report.passes[0].notes == ["gate.weight keeps all 8 experts"]


@pytest.mark.parametrize("form", FORMS)
def test_groups_stay_equally_large(form: str) -> None:
    dead = (0, 6, 8, 15)
    model = exported(block("deepseek", form.split()[0], dead=dead, experts=16, groups=4), form)
    expected = [model_runner(model)([x]) for x in batches()]
    result = graphopt.optimize(model, ["prune-experts{share=0}"], budget=1e-5, calibration=batches())
    assert result.report.passes[0].notes == ["gate.weight: 16 → 12 experts, without 0, 6, 8, 15"]
    run = model_runner(graphopt.load(result.model)) if form.endswith("onnx") else None
    for x, before in zip(batches(), expected, strict=True):
        after = run([x])[0] if run else result.model(_torch(x)).detach().numpy()
        assert np.abs(after - before[0]).max() <= 1e-5 * np.abs(before[0]).max()


def test_a_group_without_a_dead_expert_keeps_all_groups_whole() -> None:
    model = exported(block("deepseek", dead=(0, 6, 8), experts=16, groups=4), "grouped_mm fx")
    result = graphopt.optimize(model, ["prune-experts{share=0}"], budget=1e-5, calibration=batches())
    assert result.report.passes[0].notes == ["gate.weight keeps all 16 experts"]


def test_as_many_experts_stay_as_are_selected() -> None:
    model = exported(block("mixtral"), "grouped_mm fx")
    result = graphopt.optimize(model, ["prune-experts"], budget=1e9, calibration=batches())
    assert "8 → 2 experts" in result.report.passes[0].notes[0]


def test_weights_of_the_wrong_expert_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.passes.prune_experts import removal

    right = removal.SlicedRef

    def wrong(data, kept):  # type: ignore[no-untyped-def]
        return right(data, [None if k is None else np.roll(k, 1) for k in kept] if data.ndim == 3 else kept)

    monkeypatch.setattr(removal, "SlicedRef", wrong)
    model = exported(block("mixtral", dead=DEAD), "grouped_mm fx")
    report = graphopt.optimize(model, ["prune-experts{share=0}"], budget=1e9, calibration=batches()).report
    assert [a.status for a in report.applications] == ["undone"]


def test_it_never_runs_without_a_budget() -> None:
    with pytest.raises(PipelineError, match="budget"):
        graphopt.optimize(exported(block("mixtral"), "grouped_mm fx"), ["prune-experts"])


def _torch(x):  # type: ignore[no-untyped-def]
    import torch

    return torch.from_numpy(x)


@pytest.mark.parametrize("name", ["prune-experts", "merge-experts"])
def test_a_model_without_experts_is_left_as_it_is(name: str) -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        agraph (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }
    """)
    data = [np.ones((2, 3), np.float32)] * 2
    result = graphopt.optimize(model, name, budget=0.01, calibration=data)
    assert result.report.passes[0].notes == ["the main graph has no mixture of experts"]
    assert not result.report.applications
