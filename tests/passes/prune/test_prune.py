"""Pruning to a target, within a budget, by several kinds of importance, on both storages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import graphopt
from graphopt.errors import PipelineError, UnsupportedError
from graphopt.passes.prune import axes
from graphopt.tools.digits.models import load_classifier

INFINITE = float("inf")
BATCHES = [(torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(i)),) for i in range(6)]


def strange_loss(outputs: list[torch.Tensor]) -> Any:
    return 3.0


def weighted_loss(outputs: list[torch.Tensor]) -> torch.Tensor:
    return outputs[0].abs().sum()


def pruned(spec: str, budget: Any, model: Any = None, **options: Any) -> Any:
    module = model or load_classifier()
    return graphopt.optimize(module, [spec], example_inputs=BATCHES[0], budget=budget, calibration=BATCHES, **options)


def as_onnx() -> Any:
    return torch.onnx.export(load_classifier(), BATCHES[0], dynamo=True, verbose=False).model_proto


def pruned_onnx(spec: str, budget: Any) -> Any:
    data = [(x.numpy(),) for (x,) in BATCHES]
    return graphopt.optimize(as_onnx(), [spec], budget=budget, calibration=data)


def record(result: Any) -> Any:
    return result.report.passes[0]


def notes(result: Any) -> str:
    return "\n".join(record(result).notes)


def test_axes_are_listed_for_modules_graphs_and_files() -> None:
    module = load_classifier()
    found = axes(module, example_inputs=BATCHES[0])
    assert [a.size for a in found] == [16, 32, 64, 48] and all(a.exact for a in found)
    assert [a.name for a in axes(graphopt.load(module, example_inputs=BATCHES[0]).main)] == [a.name for a in found]
    assert [a.size for a in axes(as_onnx())] == [16, 32, 64, 48]


@pytest.mark.parametrize("kind", ["magnitude", "activation", "taylor", "random"])
def test_a_target_of_flops_is_met_by_every_importance(kind: str) -> None:
    result = pruned(f"prune{{flops=0.4 importance={kind}}}", INFINITE)
    assert record(result).after.flops <= 0.6 * record(result).before.flops
    assert record(result).after.flops > 0.3 * record(result).before.flops
    assert result.report.coverage() == 1.0 and result.report.undone == []
    assert result.model(*BATCHES[0]).shape == (16, 10)


def test_files_are_pruned_as_modules_are() -> None:
    """By activations: the exporter folds batch norms, so magnitudes are others."""
    spec = "prune{flops=0.4 importance=activation}"
    got = pruned_onnx(spec, INFINITE).lower("onnxruntime")(BATCHES[0][0].numpy())[0]
    assert np.allclose(got, pruned(spec, INFINITE).model(*BATCHES[0]).detach().numpy(), atol=1e-3)


def test_files_are_pruned_by_magnitude() -> None:
    result = pruned_onnx("prune{flops=0.4}", INFINITE)
    assert record(result).after.flops <= 0.6 * record(result).before.flops and result.report.undone == []


def test_a_target_of_parameters_is_met() -> None:
    result = pruned("prune{params=0.5}", INFINITE)
    assert record(result).after.parameters <= 0.5 * record(result).before.parameters


def test_a_ratio_takes_the_same_share_of_every_axis() -> None:
    pruned_sizes = [
        a.size for a in axes(pruned("prune{ratio=0.5 multiple=1}", INFINITE).model, example_inputs=BATCHES[0])
    ]
    assert pruned_sizes == [8, 16, 32, 24]


def test_what_stays_is_a_multiple() -> None:
    sizes = [a.size for a in axes(pruned("prune{ratio=0.4 multiple=8}", INFINITE).model, example_inputs=BATCHES[0])]
    assert all(size % 8 == 0 for size in sizes)


def test_activations_say_more_than_chance() -> None:
    spent = [
        record(pruned(f"prune{{ratio=0.25 multiple=1 importance={kind}}}", INFINITE)).spending.after
        for kind in ("activation", "random")
    ]
    assert spent[0] < 0.8 * spent[1]


def test_a_budget_alone_prunes_as_much_as_it_allows() -> None:
    small = pruned("prune{importance=activation multiple=1}", 0.05)
    large = pruned("prune{importance=activation multiple=1}", 0.3)
    assert record(small).spending.after <= 0.05 and record(large).spending.after <= 0.3
    assert record(large).after.parameters < record(small).after.parameters <= record(small).before.parameters


def test_a_budget_goes_before_a_target() -> None:
    result = pruned("prune{ratio=0.9 importance=activation multiple=1}", 0.1)
    assert record(result).spending.after <= 0.1
    assert "the budget allows" in notes(result)


@pytest.mark.parametrize("budget", [0.0, 1e-9])
def test_a_budget_that_allows_nothing_changes_nothing_and_says_so(budget: float) -> None:
    result = pruned("prune", budget)
    assert result.report.kept == [] and "the model stays as it is" in notes(result)
    assert torch.equal(result.model(*BATCHES[0]), load_classifier()(*BATCHES[0]))


def test_an_explicit_choice_keeps_just_that() -> None:
    result = pruned('prune{axis="body.0.weight:0" keep=0,2,5}', INFINITE)
    weight = dict(result.model.named_parameters())["body.0.weight"]
    assert torch.equal(weight, load_classifier().body[0].weight[[0, 2, 5]])
    assert "body.0.weight:0: 16 → 3 (exact)" in notes(result)


def test_protected_tensors_keep_their_axes() -> None:
    result = pruned("prune{ratio=0.5 protect=body.0.*,project.*}", INFINITE)
    names = [n for n in record(result).notes if "→" in n and "FLOPs" not in n]
    assert [n.split(":")[0] for n in names] == ["body.3.weight"]


def test_axes_can_be_skipped_and_limited_by_id() -> None:
    assert len(pruned("prune{ratio=0.5}", INFINITE, skip=["prune/axis#2"]).report.kept) == 3
    assert len(pruned("prune{ratio=0.5}", INFINITE, limit=2).report.kept) == 2


def test_a_custom_loss_is_found_by_name() -> None:
    result = pruned(f"prune{{ratio=0.3 multiple=1 importance=taylor loss={__name__}:weighted_loss}}", INFINITE)
    assert len(result.report.kept) == 4


@pytest.mark.parametrize(
    ("spec", "budget", "message"),
    [
        ("prune", INFINITE, "sets no limit, so say how much"),
        ("prune{ratio=1.0}", INFINITE, "above 0 and below 1"),
        ("prune{ratio=0.5 flops=0.5}", INFINITE, "give one of"),
        ("prune{keep=1,2}", INFINITE, "belong together"),
        ('prune{axis="body.0.weihgt:0" keep=1}', INFINITE, "body.0.weight:0"),
        ('prune{axis="body.0.weight:0" keep=16}', INFINITE, "0 to 15"),
        ("prune{ratio=0.5 importance=luck}", INFINITE, "one of magnitude"),
        ("prune{ratio=0.5 importance=taylor loss=nowhere:f}", INFINITE, "cannot be found"),
        (f"prune{{ratio=0.5 importance=taylor loss={__name__}:strange_loss}}", INFINITE, "one number that depends"),
    ],
)
def test_bad_requests_say_what_is_wrong(spec: str, budget: float, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        pruned(spec, budget)


def test_it_never_runs_without_a_budget() -> None:
    with pytest.raises(PipelineError, match="never runs without a budget"):
        graphopt.optimize(load_classifier(), ["prune{ratio=0.5}"], example_inputs=BATCHES[0])


def test_files_have_no_gradients() -> None:
    with pytest.raises(UnsupportedError, match="needs gradients"):
        pruned_onnx("prune{ratio=0.5 importance=taylor}", INFINITE)


def test_a_target_out_of_reach_leaves_the_model_and_says_so() -> None:
    result = pruned("prune{flops=0.999}", INFINITE)
    assert result.report.kept == [] and "at most" in notes(result)


def test_the_pruned_module_trains() -> None:
    module = pruned("prune{ratio=0.5}", INFINITE).model
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    assert set(before) == {name for name, _ in load_classifier().named_parameters()}
    module(*BATCHES[0]).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(before[name], p) for name, p in module.named_parameters())
