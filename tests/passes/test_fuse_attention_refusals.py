"""What is not attention, or not certainly, or not the target's, stays as it is, and the report says why."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from attention_graphs import Spelling, applied, distance, fused, inputs, ops, run

from graphopt.compiler import optimize
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import as_ref
from graphopt.passes.attention_heads import HeadsOfTokens
from graphopt.passes.fuse_attention import FuseAttention
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.rule import rule

UNKNOWN = TensorType("float32", None)


def refused(model: Any, *reasons: str, target: str | None = "onnxruntime", **options: Any) -> None:
    """Check that nothing is fused and that every one of `reasons` is given."""
    before = ops(model)
    result, report = fused(model, target, **options)
    assert applied(report) == [] and ops(result) == before
    why = "\n".join(report.why_not())
    for reason in reasons:
        assert reason in why, why


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"axis": 2}, "softmax is along axis 2 of 4"),
        ({"factor": [0.1, 0.2, 0.3, 0.4], "scale": "q"}, "q is multiplied or divided by 4 numbers, not one"),
        ({"factor": 0.0}, "scores is multiplied or divided by 0.0"),
        ({"factor": float("inf")}, "scores is multiplied or divided by inf"),
        ({"read": "weights"}, "is an output of the graph"),
        ({"read": "product"}, "is an output of the graph"),
        ({"mask": (2, 3, 5, 1)}, "the mask has size 1 for 7 keys"),
        ({"mask": (1, 1, 1, "length"), "queries": "length", "keys": "length"}, "have to be a number to broadcast it"),
        ({"mask": (1, 1, "rows", 7), "queries": "length"}, "the mask has size rows for length queries"),
        ({"dtype": "float16"}, "MultiHeadAttention is for float32, not float16"),
        ({"dtype": "float64"}, "MultiHeadAttention is for float32, not float64"),
    ],
)
def test_a_near_miss_stays(changes: dict[str, Any], reason: str) -> None:
    refused(dataclasses.replace(Spelling(), **changes).model(), reason)


def test_a_mask_per_sample_needs_heads_of_tokens() -> None:
    refused(Spelling(layout="heads", mask=(2, 1, 5, 7)).model(), "the mask has size 2 for 1 batch")
    refused(Spelling(layout="batch", mask=(2, 5, 7)).model(), "the mask is not the same for the whole batch")


def test_keys_of_another_batch_are_refused() -> None:
    graph = ScratchGraph()
    q = graph.add_input(TensorType("float32", (2, 3, 4)), "q")
    k, v = (graph.add_input(TensorType("float32", (1, 5, 4)), name) for name in "kv")
    product = graph.append("matmul", q, graph.append("transpose", k, perm=(0, 2, 1)))
    graph.add_output(graph.append("matmul", graph.append("softmax", product, axis=2), v))
    graph.outputs()[0].type = TensorType("float32", (2, 3, 4))
    refused(from_scratch(graph, "onnx"), "batch and heads of q, k and v are (2,), (1,) and (1,)")


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("bij,bkj->bki", "bki,bij->bkj", None),
        ("bij,bkj->ibk", "ibk,bkj->bij", "is not ordered as batch, queries, keys"),
        ("...ij,...kj->...ik", "...ik,...kj->...ij", "it must name every axis once"),
        ("bij,bkj->bik", "bik,bkj->ij", "is no batched matrix product"),
    ],
)
def test_einsums_that_are_no_product_of_queries_and_keys_are_refused(first: str, second: str, reason: Any) -> None:
    graph = ScratchGraph()
    q, k, v = (graph.add_input(TensorType("float32", (3, 3, 3)), name) for name in "qkv")
    weights = graph.append("softmax", graph.append("einsum", q, k, equation=first), axis=2)
    out = graph.append("einsum", weights, v, equation=second)
    out.type = TensorType("float32", (3, 3) if second.endswith("->ij") else (3, 3, 3))
    graph.add_output(out)
    refused(from_scratch(graph, "onnx"), reason or "is not ordered as batch, queries, keys")


@pytest.mark.parametrize("kind", ["causal", "gqa", "bool mask", "float mask"])
def test_attention_that_the_targets_op_computes_otherwise_is_refused(kind: str) -> None:
    reasons = {
        "causal": "the attention is causal",
        "gqa": "the attention is grouped",
        "bool mask": "the mask is bool, the scores are float32",
        "float mask": "a query whose keys are all masked gives 0, and NaN in MultiHeadAttention",
    }
    graph = ScratchGraph()
    heads = 2 if kind == "gqa" else 4
    q = graph.add_input(TensorType("float32", (2, 4, 5, 8)), "q")
    k, v = (graph.add_input(TensorType("float32", (2, heads, 7, 8)), name) for name in "kv")
    mask = None
    if "mask" in kind:
        mask = graph.add_input(TensorType("bool" if "bool" in kind else "float32", (5, 7)), "mask")
    out = graph.append("attention", q, k, v, mask, scale=0.3, causal=kind == "causal", gqa=kind == "gqa")
    out.type = TensorType("float32", (2, 4, 5, 8))
    graph.add_output(out)
    refused(from_scratch(graph, "onnx", opset=23), reasons[kind])


def test_dropout_is_no_attention() -> None:
    class Dropping(torch.nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            weights = (q @ q.transpose(-1, -2)).softmax(-1)
            return torch.nn.functional.dropout(weights, 0.5, training=True) @ q

    result = optimize(Dropping(), "fuse-attention", example_inputs=torch.ones(2, 3, 4))
    assert not result.report.applications


def test_the_standard_op_is_not_given_a_scale_that_kernels_reject() -> None:
    refused(Spelling(factor=-0.7).model(opset=23), "the scale is -0.69", target=None)


def test_without_a_target_and_below_opset_23_matmuls_stay() -> None:
    refused(Spelling().model(opset=18), "Attention needs opset 23, the model has 18", target=None)


def test_a_transpose_that_is_read_elsewhere_stays_beside_the_op() -> None:
    spelling = Spelling().graph()
    node = next(n for n in spelling.nodes() if n.call.op == "transpose")
    node.call.outputs[0].type = TensorType("float32", (2, 3, 5, 4))
    spelling.add_output(node.call.outputs[0])
    model = from_scratch(spelling, "onnx", opset=18)
    feeds = inputs(model)
    expected = run(model, feeds)
    result, report = fused(model)
    assert applied(report) == ["heads-of-tokens"]
    assert distance(expected, run(result, feeds)) <= 1e-6


# ---- wrong rules ---------------------------------------------------------------------------------------------


class _Wrong:
    """HeadsOfTokens with one thing changed in what it writes."""

    def pattern(self, op, target):
        return HeadsOfTokens.definition.pattern(op, target)

    def check(self, m):
        HeadsOfTokens.definition.check(m)

    def rewrite(self, m, build):
        outer = self

        class Changed:
            def multi_head_attention(self, *operands: Any, **fields: Any) -> Any:
                return build.multi_head_attention(*outer.operands(*operands), **outer.fields(**fields))

            def __getattr__(self, name: str) -> Any:
                return getattr(build, name)

        return HeadsOfTokens.definition.rewrite(m, Changed())

    def operands(self, q, k, v, bias):
        return q, k, v, bias

    def fields(self, **fields):
        return fields


class WrongScale(_Wrong):
    def fields(self, **fields):
        return fields | {"scale": fields["scale"] * 1.001}


class WrongHeads(_Wrong):
    def fields(self, **fields):
        return fields | {"heads": 1}


class KeysForValues(_Wrong):
    def operands(self, q, k, v, bias):
        return q, v, k, bias


class MaskDropped(_Wrong):
    def operands(self, q, k, v, bias):
        return q, k, v, None


@pytest.mark.parametrize("wrong", [WrongScale, WrongHeads, KeysForValues, MaskDropped])
def test_a_wrong_fusion_is_undone(wrong: type, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = rule(contract=Rounding(), keep_shared=True)(wrong)
    monkeypatch.setattr("graphopt.passes.fuse_attention.TOKEN_RULES", (planted,))
    monkeypatch.setattr("graphopt.passes.fuse_attention.BATCH_RULES", ())
    model = Spelling(features=4, values=4, mask=(1, 1, 5, 7)).model()
    result = optimize(model, [FuseAttention()], target="onnxruntime")
    assert [a.status for a in result.report.applications if a.rule == planted.name] == ["undone"]
    assert "softmax" in ops(result._model)


# ---- the guard behind a softmax ------------------------------------------------------------------------------


def guarded(mask: str) -> Any:
    graph = ScratchGraph()
    q, k, v = (graph.add_input(TensorType("float32", (2, 4, 8)), name) for name in "qkv")
    scores = graph.append(
        "matmul", q, graph.append("transpose", k, perm=(0, 2, 1)), types=[TensorType("float32", None)]
    )
    if mask == "input":
        added = graph.add_input(TensorType("float32", (1, 4, 4)), "mask")
    else:
        keep = graph.add_input(TensorType("bool", (1, 4, 4)), "keep")
        hidden = as_ref(-np.inf if mask == "infinite" else -1e30, "float32")
        added = graph.append("where", keep, as_ref(0.0, "float32"), hidden, types=[TensorType("float32", (1, 4, 4))])
    type_ = TensorType("float32", (2, 4, 4))
    weights = graph.append("softmax", graph.append("add", scores, added, types=[type_]), axis=2, types=[type_])
    weights = graph.append("where", graph.append("is_nan", weights), as_ref(0.0, "float32"), weights, types=[type_])
    out = graph.append("matmul", weights, v, types=[TensorType("float32", (2, 4, 8))])
    graph.add_output(out)
    return from_scratch(graph, "onnx", opset=18)


def test_a_guard_goes_where_the_mask_is_finite_and_says_what_it_does_not_promise() -> None:
    result, report = fused(guarded("finite"))
    assert applied(report) == ["guard-of-softmax", "batched-matmuls"]
    guard, fusion = (a.evidence for a in report.applications if a.rule in applied(report))
    assert guard.notes == ("not promised: anything for inputs with NaN or infinities",) and fusion.notes == ()
    assert "multi_head_attention" in ops(result)


@pytest.mark.parametrize("mask", ["input", "infinite"])
def test_a_guard_stays_where_all_keys_may_be_hidden(mask: str) -> None:
    refused(guarded(mask), "the scores may be minus infinity for all keys of a query")
