"""Nodes that have no meaning, which nothing keeps a file from holding: nothing is known of their axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.axes.analysis import Axes
from graphopt.compiler import optimize
from graphopt.ir.load import load_model

NORM = np.ones(3, np.float32)


def beside_a_layer(op: str, shape: list[int], numbers: list[Any], **attributes: Any) -> onnx.ModelProto:
    """y = op(x, numbers...) and, beside it, a product with a matrix that has a column of zeros."""
    names = [f"n{i}" for i in range(len(numbers))]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["a", "w"], ["b"]),
            helper.make_node("MatMul", ["b", "v"], ["c"]),
            helper.make_node(op, ["x", *names], outputs, **attributes),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [2, 3]),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "c")],
        [
            *(numpy_helper.from_array(np.asarray(n), name) for n, name in zip(numbers, names, strict=True)),
            numpy_helper.from_array(np.asarray([[1, 0], [2, 0], [3, 0]], np.float32), "w"),
            numpy_helper.from_array(np.ones((2, 5), np.float32), "v"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


INVALID = {
    "an axis of a transposition": beside_a_layer("Transpose", [2, 3], [], perm=[0, 5]),
    "an axis of a slice": beside_a_layer("Slice", [2, 3], [[0], [1], [9]]),
    "more ends than axes": beside_a_layer("Slice", [2, 3], [[0, 1], [1], [0]]),
    "an axis of a split": beside_a_layer("Split", [2, 3], [], axis=7),
    "a number that is joined": beside_a_layer("Concat", [], [np.float32(1)], axis=0),
    "a number that is squeezed": beside_a_layer("Squeeze", [], [[7]]),
    "too few repetitions": beside_a_layer("Tile", [2, 3], [[1]]),
    "no groups": beside_a_layer("Conv", [2, 3, 4, 4], [np.ones((4, 3, 1, 1), np.float32)], group=0),
    "a product with a number": beside_a_layer("MatMul", [], [np.ones((3, 4), np.float32)]),
    "a layer of an image": beside_a_layer("Gemm", [2, 3], [np.ones((4, 3, 1, 1), np.float32)]),
    "a norm of numbers": beside_a_layer("BatchNormalization", [2], [NORM] * 4),
    "too many letters": beside_a_layer("Einsum", [2, 3], [np.ones((3, 4), np.float32)], equation="ijk,kl->il"),
}


@pytest.mark.parametrize("model", INVALID.values(), ids=INVALID)
def test_the_axes_of_what_an_invalid_node_reads_stay(model: onnx.ModelProto) -> None:
    graph = load_model(model).main
    axes = Axes(graph)
    value = next(v for v in graph.inputs() if graph.name(v) == "x")
    assert all(axis.frozen for term in axes.dims(value) for axis in axes.space.leaves(term))


@pytest.mark.parametrize("passes", ["drop-zero-channels", "fold-constant-channels", "clean-up"])
@pytest.mark.parametrize("model", INVALID.values(), ids=INVALID)
def test_what_stands_beside_an_invalid_node_is_rewritten_as_ever(model: onnx.ModelProto, passes: str) -> None:
    result = optimize(model, passes)
    stored = {tensor.name: list(tensor.dims) for tensor in result.model.graph.initializer}
    assert ([1, 5] in stored.values()) == (passes == "drop-zero-channels"), result.report
