"""Mixtures whose router and experts com.microsoft::MoE can say become that node on request; others do not, with the
reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from moe_blocks import ANY_LENGTH, HIDDEN, WIDTH, deepseek, mixtral, qwen3, tokens

import graphopt

CLOSE = 1e-5


class Plain(torch.nn.Module):
    """Two products with biases and any activation, each row with the weights that it picks."""

    def __init__(self, activation: Any, *, k: int = 2, normalized: bool = False, gated: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.activation, self.k, self.normalized, self.gated = activation, k, normalized, gated
        self.router = torch.nn.Parameter(torch.randn(8, WIDTH))
        self.w1, self.b1 = (torch.nn.Parameter(torch.randn(8, HIDDEN, *s) * 0.2) for s in ((WIDTH,), ()))
        self.w2, self.b2 = (torch.nn.Parameter(torch.randn(8, WIDTH, *s) * 0.2) for s in ((HIDDEN,), ()))
        self.w3, self.b3 = (torch.nn.Parameter(torch.randn(8, HIDDEN, *s) * 0.2) for s in ((WIDTH,), ()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        gates, ids = torch.topk(torch.softmax(rows @ self.router.T, -1), self.k)
        gates = gates / gates.sum(-1, keepdim=True) if self.normalized else gates
        flat, repeated = ids.reshape(-1), rows.repeat_interleave(self.k, 0).unsqueeze(2)
        hidden = self.activation(torch.bmm(self.w1[flat], repeated).squeeze(2) + self.b1[flat])
        if self.gated:
            hidden = hidden * (torch.bmm(self.w3[flat], repeated).squeeze(2) + self.b3[flat])
        made = torch.bmm(self.w2[flat], hidden.unsqueeze(2)).squeeze(2) + self.b2[flat]
        return (made * gates.reshape(-1, 1)).reshape(-1, self.k, WIDTH).sum(1).reshape(x.shape)


def unnormalized(kind: str) -> Any:
    block = qwen3(kind)
    block.gate.norm_topk_prob = False
    return block


def tanh_gelu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def exported(block: Any, count: int = 7) -> onnx.ModelProto:
    program = torch.onnx.export(
        block, (tokens(count),), dynamo=True, verbose=False, dynamic_shapes=ANY_LENGTH, opset_version=20
    )
    assert program is not None
    return program.model_proto


def joined(model: onnx.ModelProto) -> Any:
    return graphopt.optimize(model, "lower-moe{form=contrib}", target="onnxruntime")


SAYABLE = {
    "mixtral": lambda: mixtral("batched_mm"),
    "qwen3": lambda: qwen3("batched_mm"),
    "not normalized": lambda: unnormalized("batched_mm"),
    "relu": lambda: Plain(torch.relu),
    "gelu": lambda: Plain(tanh_gelu, k=1, normalized=True),
    "silu": lambda: Plain(torch.nn.functional.silu, k=3),
    "identity": lambda: Plain(lambda x: x),
    "two products in front": lambda: Plain(torch.nn.functional.silu, gated=True, normalized=True),
}


@pytest.mark.parametrize("name", SAYABLE)
def test_a_mixture_is_one_node_and_computes_what_torch_does(name: str) -> None:
    block = SAYABLE[name]().eval()
    result = joined(exported(block))
    assert not result.report.undone, [a.reason for a in result.report.undone]
    nodes = [n.op_type for n in result.model.graph.node]
    assert nodes.count("MoE") == 1 and not {"TopK", "Split", "Softmax"} & {*nodes}
    session = onnxruntime.InferenceSession(result.model.SerializeToString())
    for count in (1, 7, 64):
        x = tokens(count)
        expected = block(x).detach().numpy()
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert np.abs(found - expected).max() < CLOSE * np.abs(expected).max()


def test_of_equal_scores_the_same_are_chosen_as_by_topk() -> None:
    block = Plain(torch.relu, k=1)
    with torch.no_grad():
        block.router[1::2] = block.router[::2]
    model = exported(block)
    runs = [onnxruntime.InferenceSession(m.SerializeToString()) for m in (model, joined(model).model)]
    x = {runs[0].get_inputs()[0].name: tokens(64).numpy()}
    first, second = (run.run(None, x)[0] for run in runs)
    assert np.abs(first - second).max() < CLOSE * np.abs(first).max()


def test_and_back_again() -> None:
    block = mixtral("batched_mm")
    apart = graphopt.optimize(joined(exported(block)).model, "lower-moe", target="onnxruntime")
    assert [a.rule for a in apart.report.kept] == ["contrib-experts"]
    session = onnxruntime.InferenceSession(apart.model.SerializeToString())
    expected = block(tokens(64)).detach().numpy()
    (found,) = session.run(None, {session.get_inputs()[0].name: tokens(64).numpy()})
    assert np.abs(found - expected).max() < CLOSE * np.abs(expected).max()


REFUSED = {
    "sigmoid scores": (lambda: deepseek("batched_mm"), "the experts are not chosen by topk"),
    "gelu without tanh": (lambda: Plain(torch.nn.functional.gelu), "is no part of two products"),
    "another activation": (lambda: Plain(torch.sigmoid), "an activation sigmoid"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_node_cannot_say_is_sorted_and_the_reason_is_told(name: str) -> None:
    build, reason = REFUSED[name]
    report = joined(exported(build().eval())).report
    assert any("not in form contrib" in n and reason in n for n in report.passes[0].notes), report.passes[0].notes
    assert "picked-experts" in {a.rule for a in report.kept}


def test_a_target_without_the_node_gets_none() -> None:
    report = graphopt.optimize(exported(mixtral("batched_mm")), "lower-moe{form=contrib}").report
    assert any("has no com.microsoft::MoE" in n for n in report.passes[0].notes)
    assert "contrib-node" not in {a.rule for a in report.applications}


@pytest.mark.parametrize("fault", ("order of experts", "order of halves", "weight of one expert"))
def test_wrong_weights_are_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.passes.lower_moe import one_node

    right, turns = one_node.SlicedRef, one_node.TurnsRef

    def sliced(data: Any, kept: Any) -> Any:
        order = np.sort(kept[0]) if fault == "order of experts" else np.where(kept[0] == 5, 4, kept[0])
        return right(data, [order, *kept[1:]])

    if fault == "order of halves":
        monkeypatch.setattr(one_node, "TurnsRef", lambda a, b: turns(b, a))
    else:
        monkeypatch.setattr(one_node, "SlicedRef", sliced)
    report = joined(exported(mixtral("batched_mm"))).report
    assert {a.rule: a.status for a in report.applications}["contrib-node"] == "undone"
