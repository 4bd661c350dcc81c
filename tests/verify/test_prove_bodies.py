"""Control flow and integers of whole models: bodies run as often as they do, or both where that is open."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
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


def counted(inside: list[Any], *, weight: float = 2.0, extra: bool = False) -> onnx.ModelProto:
    """A loop that runs as often as an input says."""
    carried = {"i": (TensorProto.INT64, []), "going": (TensorProto.BOOL, []), "v": (TensorProto.FLOAT, [2, 3])}
    said = body(inside, carried, ["on", "next"])
    before = [n("Identity", "x", "z")] if extra else []
    nodes = [*before, helper.make_node("Loop", ["m", "", "z" if extra else "x"], ["y"], body=said)]
    inputs = {"x": (1, [2, 3]), "m": (TensorProto.INT64, [])}
    return model(nodes, inputs=inputs, weights={"w": np.full(3, weight)})


def test_loops_with_the_same_body_are_the_same_however_often_they_run():
    inside = [n("Identity", "going", "on"), n("Mul", "v w", "a"), n("Add", "a x", "next")]
    again = [onnx.NodeProto.FromString(i.SerializeToString()) for i in inside]
    again[1].output[0] = again[2].input[0] = "renamed"
    found = decided(counted(inside), counted(again, extra=True))
    assert found.level == "proof" and not found.proof.sampled, found
    other = [
        counted([inside[0], n("Mul", "x w", "a"), inside[2]]),
        counted([inside[0], inside[1], n("Sub", "a x", "next")]),
        counted([inside[0], inside[1], n("Add", "a v", "next")]),
        counted(inside, weight=3.0),
    ]
    for after in other:
        assert not decided(counted(inside), after).proof.holds


def test_a_split_into_more_parts_is_another_one():
    """Up to version 13 nothing but the number of results says how large they are."""
    halves, thirds = (
        model([n("Split", "x", k)], inputs={"x": (1, [6])}, outputs=["a"], opset=13)
        for k in ("a b", "a b c")
    )
    assert decided(halves, thirds).level == "refuted"


def test_a_sequence_is_its_items():
    inputs = {"x": (1, [4, 3])}
    before = model(
        [n("SplitToSequence", "x two", "s", axis=0), n("SequenceInsert", "s x zero", "t"),
         n("SequenceErase", "t one", "u"), n("SequenceAt", "u last", "v"), n("SequenceConstruct", "v v", "w"),
         n("ConcatFromSequence", "w", "y", axis=1)],
        weights={k: np.asarray(v) for k, v in (("two", 2), ("zero", 0), ("one", 1), ("last", -1))}, inputs=inputs,
    )  # fmt: skip

    def after(start: int) -> onnx.ModelProto:
        ends = {"a": np.asarray([start]), "b": np.asarray([start + 2])}
        return model([n("Slice", "x a b", "v"), n("Concat", "v v", "y", axis=1)], weights=ends, inputs=inputs)

    assert decided(before, after(2)).level == "proof"
    assert not decided(before, after(0)).proof.holds


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_the_last_of_several_greatest_is_the_first_from_the_other_end(op: str):
    """It is not the first one, which is another where some are equal."""
    options: dict[str, Any] = {"inputs": {"x": (1, [5])}}
    last = model([n(op, "x", "y", axis=0, keepdims=0, select_last_index=1)], **options)
    weights = {k: np.asarray([v]) for k, v in (("m", -1), ("e", -(2**62)))} | {"four": np.asarray(4)}
    flipped = model(
        [n("Slice", "x m e m m", "f"), n(op, "f", "i", axis=0, keepdims=0), n("Sub", "four i", "y")],
        weights=weights, **options,
    )  # fmt: skip
    first = model([n(op, "x", "y", axis=0, keepdims=0)], **options)
    for seed in range(8):
        found = decided(last, flipped, seed=seed)
        assert found.level == "proof" and found.proof.sampled, found
        assert not decided(last, first, seed=seed).proof.holds


def test_dropout_without_training_is_its_operand():
    weights = {"r": np.asarray(0.5), "t": np.asarray(True), "none": np.asarray(0.0)}
    plain = model([n("Identity", "x", "y")])
    idle = model([n("Dropout", "x r", "y mask")], weights=weights)
    of_nothing = model([n("Dropout", "x none t", "y mask")], weights=weights)
    trained = model([n("Dropout", "x r t", "y mask")], weights=weights)
    assert decided(idle, plain).level == decided(of_nothing, plain).level == "proof"
    assert not decided(trained, plain).proof.holds


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
