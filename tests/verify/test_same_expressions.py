"""Models that are the same expressions are proved without arithmetic, others are never taken for the same."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from test_prove_models import WEIGHTS, decided, model, n

IMAGE = {"x": (TensorProto.FLOAT, [2, 3, 224, 224])}


def network(*, merged: bool, value: float = 0.02) -> onnx.ModelProto:
    """Convolutions on an image too large to be computed with in a test; one of them occurs twice."""
    if merged:
        weights = {"w": np.full((64, 3, 7, 7), value)}
        nodes = [n("Conv", "x w", "a", strides=[2, 2]), n("Relu", "a", "r"), n("Add", "r r", "y")]
        return model(nodes, weights=weights, inputs=IMAGE)
    fill = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
    nodes = [
        n("ConstantOfShape", "shape", "w", value=fill),
        n("Identity", "x", "i"),
        n("Conv", "i w", "a", strides=[2, 2]), n("Relu", "a", "r"),
        n("Conv", "x w", "b", strides=[2, 2]), n("Relu", "b", "s"),
        n("Add", "r s", "y"),
    ]  # fmt: skip
    return model(nodes, weights={"shape": np.asarray([64, 3, 7, 7])}, inputs=IMAGE)


def test_a_network_whose_constants_were_folded_and_whose_twins_were_merged_is_proved():
    found = decided(network(merged=False), network(merged=True))
    assert found.level == "proof" and found.proof.reason == "both are the same expression"
    assert not found.computed


def test_another_constant_is_another_expression():
    small = {"x": (TensorProto.FLOAT, [1, 3, 21, 21])}
    before, after = network(merged=False), network(merged=True, value=0.0202)
    for proto in (before, after):
        proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", *small["x"]))
        proto.graph.ClearField("value_info")
        proto.graph.output[0].type.tensor_type.ClearField("shape")
    assert decided(before, after).level == "refuted"


def test_what_onnxruntime_rounds_is_named():
    before = model([n("Exp", "c", "e"), n("Mul", "x e", "y")], weights={"c": WEIGHTS["gain"]})
    folded = np.exp(WEIGHTS["gain"].astype(np.float32))
    found = decided(before, model([n("Mul", "x e", "y")], weights={"e": folded}))
    assert found.level == "proof~const" and found.computed == ("ai.onnx::Exp",)


def test_strings_of_the_same_name_are_not_the_same():
    def labels(*keys: str) -> onnx.ModelProto:
        proto = model([n("StringConcat", "s t", "y")], inputs={"s": (TensorProto.STRING, [2])}, opset=20)
        proto.graph.initializer.append(helper.make_tensor("t", TensorProto.STRING, [2], [k.encode() for k in keys]))
        proto.graph.input.pop()
        proto.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"b"]))
        return proto

    assert not decided(labels("c", "d"), labels("c", "e")).proof.holds


def test_floats_of_eight_bits_are_compared_as_bytes():
    nodes = [n("Cast", "c", "y", to=TensorProto.FLOAT8E4M3FN)]
    before, after = (model(nodes, weights={"c": c}, opset=19) for c in (np.ones(3), np.asarray([1.0, 1.0, 2.0])))
    assert decided(before, before).level == "executed"
    assert not decided(before, after).proof.holds and decided(before, after).level != "executed"
