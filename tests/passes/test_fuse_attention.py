"""fuse-attention finds attention however it is spelt, writes what the target has for it, and computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attention_graphs import SCALES, Spelling, applied, distance, fused, inputs, moves, ops, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.compiler import optimize
from graphopt.errors import PipelineError

LIMIT = 1e-6


def check(spelling: Spelling, rule: str, *, storage: str = "onnx", opset: int = 18, **options: Any) -> Any:
    """Fuse, compare what is computed, and return the model."""
    model = spelling.model(storage, opset)
    feeds = inputs(model, {"batch": 3, "length": 4})
    expected = run(model, feeds)
    target = options.pop("target", None if storage == "fx" else "onnxruntime")
    result, report = fused(model, target, **options)
    assert applied(report) == [rule], report.why_not()
    assert distance(expected, run(result, feeds)) <= LIMIT
    assert report.coverage() == 1.0
    return result


# ---- for a target with MultiHeadAttention --------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_heads_between_tokens_become_one_op_and_no_transpose(scale: str) -> None:
    model = check(Spelling(scale=scale), "heads-of-tokens")
    assert ops(model) == ["multi_head_attention"] and len(list(model.main.nodes())) == 1


@pytest.mark.parametrize("layout", ["heads", "batch", "channels", "einsum"])
@pytest.mark.parametrize("scale", ["both", "scores"])
def test_other_layouts_count_their_heads_as_batch(layout: str, scale: str) -> None:
    rule = "batched-einsums" if layout in ("channels", "einsum") else "batched-matmuls"
    assert ops(check(Spelling(layout=layout, scale=scale), rule)) == ["multi_head_attention"]


@pytest.mark.parametrize(
    "mask", [(2, 3, 5, 7), (2, 1, 5, 7), (1, 3, 5, 7), (1, 1, 5, 7), (3, 5, 7), (5, 7), (2, 1, 1, 7), (1, 7), (7,)]
)
def test_a_mask_that_broadcasts_along_batch_heads_or_queries_is_taken(mask: tuple[int, ...]) -> None:
    model = check(Spelling(mask=mask), "heads-of-tokens")
    assert ops(model) == ["multi_head_attention"]


def test_keys_that_are_transposed_with_their_heads_joined_are_seen() -> None:
    assert ops(check(Spelling(detour=True, scale="both"), "heads-of-tokens")) == ["multi_head_attention"]


@pytest.mark.parametrize("batch, queries, keys", [("batch", 5, 7), (2, "length", 7), ("batch", "length", "length")])
def test_batch_and_positions_may_be_symbolic(batch: Any, queries: Any, keys: Any) -> None:
    spelling = Spelling(batch=batch, queries=queries, keys=keys)
    assert ops(check(spelling, "heads-of-tokens")) == ["multi_head_attention"]


def test_a_symbolic_batch_is_taken_without_heads_to_split() -> None:
    assert ops(check(Spelling(layout="channels", batch="batch"), "batched-einsums")) == ["multi_head_attention"]


def test_the_standards_own_op_becomes_the_targets() -> None:
    standard, _ = fused(Spelling(scale="both").model(opset=23), None)
    assert ops(standard) == ["attention"]
    again, report = fused(standard)
    assert applied(report) == ["heads-of-tokens"] and ops(again) == ["multi_head_attention"] and moves(again) == 0


def test_minus_infinity_in_a_mask_hides_the_same_keys() -> None:
    model = Spelling(mask=(2, 1, 5, 7)).model()
    feeds = inputs(model)
    feeds["mask"] = np.where(np.random.default_rng(1).random((2, 1, 5, 7)) < 0.5, -np.inf, 0.0).astype(np.float32)
    feeds["mask"][..., 0] = 0.0
    feeds["mask"][0, 0, 2] = -np.inf
    expected = run(model, feeds)
    assert np.isnan(expected[0][0, 2]).all() and np.isfinite(expected[0][1]).all()
    result, report = fused(model)
    assert applied(report) == ["heads-of-tokens"]
    assert distance(expected, run(result, feeds)) <= LIMIT


# ---- for any target ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tokens", "heads", "batch"])
@pytest.mark.parametrize("scale", ["both", "scores_over"])
@pytest.mark.parametrize(("storage", "opset"), [("onnx", 23), ("fx", 0)])
def test_matmuls_become_the_standard_op(layout: str, scale: str, storage: str, opset: int) -> None:
    model = check(
        Spelling(layout=layout, scale=scale), "matmuls-to-attention", storage=storage, opset=opset, target=None
    )
    assert ops(model) == ["attention"]


@pytest.mark.parametrize("layout", ["channels", "einsum"])
@pytest.mark.parametrize(("storage", "opset"), [("onnx", 23), ("fx", 0)])
def test_einsums_become_the_standard_op(layout: str, storage: str, opset: int) -> None:
    model = check(Spelling(layout=layout), "einsums-to-attention", storage=storage, opset=opset, target=None)
    assert ops(model) == ["attention"]


@pytest.mark.parametrize("mask", [(2, 3, 5, 7), (5, 7), (2, 1, 1, 7)])
@pytest.mark.parametrize(("storage", "opset"), [("onnx", 23), ("fx", 0)])
def test_the_standard_op_takes_masks_and_their_infinities(mask: tuple[int, ...], storage: str, opset: int) -> None:
    spelling = Spelling(mask=mask)
    result = check(spelling, "matmuls-to-attention", storage=storage, opset=opset, target=None)
    feeds = inputs(result)
    list(feeds.values())[3][..., 3:] = -np.inf
    assert distance(run(spelling.model(storage, opset), feeds), run(result, feeds)) <= LIMIT


@pytest.mark.parametrize("layout, scale", [("channels", "both"), ("channels", "none"), ("einsum", "scores_over")])
def test_einsums_become_matmuls_where_there_is_no_op(layout: str, scale: str) -> None:
    before = Spelling(layout=layout, scale=scale).model(opset=18)
    model = check(Spelling(layout=layout, scale=scale), "einsums-to-matmuls", target=None)
    assert [op for op in ops(model) if op != "mul"] == ["matmul", "softmax", "matmul"]
    assert model.main.opset == before.main.opset == 18


def test_a_mask_stays_where_einsums_become_matmuls() -> None:
    model = check(Spelling(layout="einsum", mask=(1, 3, 5, 7)), "einsums-to-matmuls", target=None)
    assert ops(model) == ["mul", "matmul", "add", "softmax", "matmul"]


def test_the_form_can_be_chosen() -> None:
    spelling = Spelling(layout="channels")
    for form, expected in (("standard", "attention"), ("matmul", "softmax"), ("heads", "multi_head_attention")):
        model, _ = fused(spelling.model(opset=23), form=form)
        assert expected in ops(model) and "einsum" not in ops(model)
    with pytest.raises(PipelineError, match="form=heads needs a target with com.microsoft::MultiHeadAttention"):
        optimize(spelling.model(), "fuse-attention{form=heads}")


@pytest.mark.parametrize("layout", ["tokens", "heads", "batch", "channels"])
def test_what_is_written_has_types(layout: str) -> None:
    """Inference of onnx knows none of an op that is not the standard's; what reads it needs one."""
    graph = fused(Spelling(layout=layout).model())[0].main
    expected = {"multi_head_attention"}
    assert expected <= {graph.key(node) for node in graph.nodes()}
    for node in graph.nodes():
        assert all(graph.type(value).shape is not None for value in graph.results(node))


def test_a_negative_scale_is_taken() -> None:
    check(Spelling(factor=-0.7), "heads-of-tokens")


def test_two_runs_write_the_same() -> None:
    texts = [str(fused(Spelling(detour=True).model())[0].main.fingerprint()) for _ in range(2)]
    assert texts[0] == texts[1]
    model, _ = fused(Spelling().model())
    _, report = fused(model)
    assert applied(report) == []


# ---- at random -----------------------------------------------------------------------------------------------

SPELLINGS = st.builds(
    Spelling,
    layout=st.sampled_from(["tokens", "heads", "batch", "channels", "einsum"]),
    scale=st.sampled_from(SCALES),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 6),
    keys=st.integers(1, 6),
    features=st.integers(1, 9),
    values=st.integers(1, 9),
    factor=st.sampled_from([0.25, 0.7, 3.0]),
)


@pytest.mark.parametrize(
    ("storage", "opset", "target", "examples"),
    [("onnx", 18, "onnxruntime", 25), ("onnx", 23, None, 15), ("fx", 0, None, 3)],
)
def test_whatever_the_spelling_it_is_fused_and_right(storage: str, opset: int, target: Any, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(SPELLINGS)
    def one(spelling: Spelling) -> None:
        model = spelling.model(storage, opset)
        feeds = inputs(model)
        expected = run(model, feeds)
        result, report = fused(model, target)
        assert len(applied(report)) == 1, report.why_not()
        assert {"attention", "multi_head_attention"} & set(ops(result))
        assert distance(expected, run(result, feeds)) <= 10 * LIMIT

    one()
