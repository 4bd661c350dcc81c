"""Control flow and integers of whole models: bodies run as often as they do, or both where that is open."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from test_prove_models import decided, model, n


def body(nodes: list[Any], inputs: dict[str, tuple[int, Any]], outputs: list[str]) -> onnx.GraphProto:
    return helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(k, t, s) for k, (t, s) in inputs.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
    )


def branch(condition: list[Any], **options: Any) -> onnx.ModelProto:
    bodies = {
        "then_branch": body([n("Neg", "x", "t")], {}, ["t"]),
        "else_branch": body([n("Relu", "x", "e")], {}, ["e"]),
    }
    return model([*condition, helper.make_node("If", ["c"], ["y"], **bodies)], **options)


def test_a_branch_on_a_rank_is_the_body_that_runs():
    weights = {"three": np.asarray([3])}
    rank = [n("Shape", "x", "s"), n("Shape", "s", "r"), n("Equal", "r three", "c")]
    before = branch(rank, weights=weights)
    assert decided(before, model([n("Neg", "x", "y")])).level == "proof"
    assert decided(before, model([n("Relu", "x", "y")])).level == "refuted"


def test_a_branch_on_data_is_a_choice_between_both():
    inputs = {"x": (TensorProto.FLOAT, [2, 3]), "k": (TensorProto.BOOL, [])}
    before = branch([n("Identity", "k", "c")], inputs=inputs)
    after = model([n("Neg", "x", "t"), n("Relu", "x", "e"), n("Where", "k t e", "y")], inputs=inputs)
    found = decided(before, after)
    assert found.level == "proof" and not found.proof.sampled, found
    swapped = model([n("Neg", "x", "t"), n("Relu", "x", "e"), n("Where", "k e t", "y")], inputs=inputs)
    assert not decided(before, swapped).proof.holds


def loop(rounds: int) -> onnx.ModelProto:
    inside = body(
        [n("Identity", "going", "on"), n("Mul", "v x", "w"), n("Identity", "w", "row")],
        {"i": (TensorProto.INT64, []), "going": (TensorProto.BOOL, []), "v": (TensorProto.FLOAT, [2, 3])},
        ["on", "w", "row"],
    )
    nodes = [helper.make_node("Loop", ["m", "", "x"], ["y", "rows"], body=inside)]
    return model(nodes, weights={"m": np.asarray(rounds)}, inputs={"x": (1, [2, 3])}, outputs=["y", "rows"])


def test_a_loop_runs_as_often_as_it_says():
    unrolled = model(
        [n("Mul", "x x", "a"), n("Mul", "a x", "y"), n("Unsqueeze", "a zero", "r1"), n("Unsqueeze", "y zero", "r2"),
         n("Concat", "r1 r2", "rows", axis=0)],
        weights={"zero": np.asarray([0])}, inputs={"x": (1, [2, 3])}, outputs=["y", "rows"],
    )  # fmt: skip
    assert decided(loop(2), unrolled).level == "proof"
    assert not decided(loop(3), unrolled).proof.holds


def scan(op: str) -> onnx.ModelProto:
    inside = body(
        [n(op, "state slice", "next"), n("Identity", "next", "row")],
        {"state": (TensorProto.FLOAT, [3]), "slice": (TensorProto.FLOAT, [3])},
        ["next", "row"],
    )
    nodes = [helper.make_node("Scan", ["s", "x"], ["last", "y"], body=inside, num_scan_inputs=1)]
    return model(nodes, weights={"s": np.zeros(3)}, inputs={"x": (1, [4, 3])}, outputs=["y"])


def test_a_scan_is_a_cumulative_sum():
    after = model([n("CumSum", "x zero", "y")], weights={"zero": np.asarray(0)}, inputs={"x": (1, [4, 3])})
    assert decided(scan("Add"), after).level == "proof"
    assert not decided(scan("Mul"), after).proof.holds


def test_sums_of_open_integers_are_not_taken_for_exact():
    """k + 1 > k does not hold where it overflows."""
    inputs = {"k": (TensorProto.INT64, [4])}
    weights = {"one": np.asarray([1])}
    before = model([n("Add", "k one", "m"), n("Greater", "m k", "y")], weights=weights, inputs=inputs)
    after = model([n("Sub", "k k", "z"), n("Less", "z one", "y")], weights=weights, inputs=inputs)
    found = decided(before, after)
    assert not found.proof.holds


def test_a_cast_to_fewer_bits_is_not_taken_back():
    inputs = {"k": (TensorProto.INT64, [4])}
    casts = [n("Cast", "k", "m", to=TensorProto.INT32), n("Cast", "m", "y", to=TensorProto.INT64)]
    before, after = model(casts, inputs=inputs), model([n("Identity", "k", "y")], inputs=inputs)
    assert not decided(before, after).proof.holds
    wider = [n("Cast", "k", "m", to=TensorProto.INT64), n("Cast", "m", "y", to=TensorProto.INT64)]
    assert decided(model(wider, inputs=inputs), after).level == "proof"


def test_an_attribute_without_a_meaning_is_not_guessed():
    weights = {"a": np.asarray([1])}
    before, after = (
        model([n("ReduceMean", "x a", "y", keepdims=k)], weights=weights, inputs={"x": (1, [2, 3, 4])}) for k in (1, 2)
    )
    assert not decided(before, after).proof.holds
