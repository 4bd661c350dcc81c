"""The form in which experts are computed is chosen by what it costs, can be asked for, and is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from dense_checks import WIDE
from dense_checks import exported as exported_sum
from moe_blocks import ANY_LENGTH, mixtral, tokens

import graphopt
from graphopt.errors import PipelineError
from graphopt.passes.lower_moe.forms import choose

CLOSE = 1e-5


def exported(block: Any, count: int = 7) -> onnx.ModelProto:
    program = torch.onnx.export(block, (tokens(count),), dynamo=True, verbose=False, dynamic_shapes=ANY_LENGTH)
    assert program is not None
    return program.model_proto


def lowered(model: onnx.ModelProto, form: str = "auto") -> Any:
    result = graphopt.optimize(model, f"lower-moe{{form={form}}}", target="onnxruntime")
    assert not result.report.undone, [a.reason for a in result.report.undone]
    return result


def agrees(result: Any, block: Any) -> bool:
    run = onnxruntime.InferenceSession(result.model.SerializeToString())
    errors = []
    for count in (1, 7, 64):
        expected = block(tokens(count)).detach().numpy()
        (found,) = run.run(None, {run.get_inputs()[0].name: tokens(count).numpy()})
        errors.append(np.abs(found - expected).max() / np.abs(expected).max())
    return bool(max(errors) < CLOSE)


@pytest.mark.parametrize(
    ("experts", "k", "form"), ((8, 2, "sorted"), (4, 3, "sorted"), (5, 4, "sorted"), (6, 5, "dense"), (4, 4, "dense"))
)
def test_dense_is_chosen_where_it_computes_little_more(experts: int, k: int, form: str) -> None:
    choice = choose("auto", experts, k)
    assert choice.form == form and f"{k} of {experts} experts" in choice.why
    assert choose("sorted", experts, k).form == "sorted" and "asked for" in choose("dense", experts, k).why


@pytest.mark.parametrize(("experts", "k", "form"), ((8, 2, "dense"), (4, 4, "auto")))
def test_all_experts_for_all_tokens_are_as_in_torch(experts: int, k: int, form: str) -> None:
    block = mixtral("batched_mm", experts=experts, k=k)
    result = lowered(exported(block), form)
    assert "all-experts" in {a.rule for a in result.report.kept}
    assert "form dense" in result.report.passes[0].notes[0]
    assert "Expand" not in {n.op_type for n in result.model.graph.node}
    assert agrees(result, block)


def test_sorted_can_be_asked_for_where_dense_is_as_fast() -> None:
    block = mixtral("batched_mm", experts=4, k=4)
    result = lowered(exported(block), "sorted")
    assert "picked-experts" in {a.rule for a in result.report.kept} and agrees(result, block)
    assert "form sorted: asked for" in result.report.passes[0].notes[0]


def test_the_report_says_what_was_chosen_and_what_it_costs() -> None:
    note, _ = lowered(exported(mixtral("batched_mm"))).report.passes[0].notes
    assert "in form sorted: 2 of 8 experts a token, 4 times less work than all" in note


class Sum(torch.nn.Module):
    """All experts for all tokens, weighted by gates that are zero for those not picked."""

    def __init__(self, experts: int, k: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.k, self.router = k, torch.nn.Linear(WIDE, experts)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(WIDE, WIDE) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, ids = torch.topk(torch.softmax(self.router(x), -1), self.k)
        gates = torch.zeros(x.shape[0], len(self.experts)).scatter(1, ids, values)
        return sum(gates[:, e : e + 1] * expert(x) for e, expert in enumerate(self.experts))


@pytest.mark.parametrize(("form", "rules"), (("auto", []), ("dense", []), ("sorted", ["dense-experts"])))
def test_sums_over_all_experts_stay_unless_sorted_is_asked_for(form: str, rules: list[str]) -> None:
    model = exported_sum(Sum(6, 5))
    result = lowered(model, form)
    assert [a.rule for a in result.report.kept] == rules


def test_a_sum_of_few_of_many_stays_dense_on_request() -> None:
    model = exported_sum(Sum(8, 2))
    assert [a.rule for a in lowered(model).report.kept] == ["dense-experts"]
    assert not lowered(model, "dense").report.kept


def test_a_form_that_there_is_not_is_an_error() -> None:
    with pytest.raises(PipelineError, match="form"):
        graphopt.optimize(exported_sum(Sum(8, 2)), "lower-moe{form=best}")
