"""Folding: computed by the runtime that would have computed it, never at the price of a larger model."""

from __future__ import annotations

import numpy as np
import onnx
from clean_up_graphs import (
    applications,
    assert_same_results,
    clean,
    kept_rules,
    onnx_model,
    op_types,
    run_onnx,
)
from onnx import TensorProto, helper, numpy_helper

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


def weighted_model(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], opset: int = 18
) -> onnx.ModelProto:
    """A model from x float[3, 4] to y with initialisers of any size."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["A", "B"])],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def test_a_region_is_folded_as_one_application_to_the_bits_of_the_runtime() -> None:
    model = onnx_model("""
        agraph (float[3, 4] x) => (float[3, 4] y)
        <float[4] w = {0.1, 0.7, 1.3, 9.0}> {
            a = Exp(w)
            b = Erf(a)
            c = Add(a, b)
            y = Mul(x, c)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Mul"]
    assert kept_rules(result)["fold-constants"] == 1
    assert all(a.evidence.kind == "bit-equal" for a in applications(result))
    assert_same_results(model, result.model, {"x": X})


def test_constant_nodes_become_initialisers_in_one_application() -> None:
    model = onnx_model("""
        agraph (float[3, 4] x) => (float[3, 4] y) {
            one = Constant <value = float[4] {1, 2, 3, 4}> ()
            two = Constant <value_float = 2.5> ()
            a = Mul(x, one)
            y = Add(a, two)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Mul", "Add"]
    assert kept_rules(result)["store-constant-nodes"] == 1
    assert_same_results(model, result.model, {"x": X})


def test_a_constant_node_that_is_an_output_stays() -> None:
    model = onnx_model("""
        agraph (float[3, 4] x) => (float[3, 4] y, float[2] z) {
            z = Constant <value = float[2] {1, 2}> ()
            y = Relu(x)
        }
    """)
    result = clean(model)
    assert sorted(op_types(result.model)) == ["Constant", "Relu"]
    assert_same_results(model, result.model, {"x": X})


def test_an_inflated_constant_is_not_stored() -> None:
    model = onnx_model("""
        agraph (float[1, 1] x) => (float[1024, 4096] y)
        <int64[2] shape = {1024, 4096}> {
            a = ConstantOfShape(shape)
            y = Add(a, x)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["ConstantOfShape", "Add"]
    assert result.model.ByteSize() <= model.ByteSize() * 1.01


def test_a_weight_that_is_read_twice_is_not_stored_twice() -> None:
    weight = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    result = clean(weighted_model(nodes, {"w": np.tile(weight, (10, 1))}))
    assert op_types(result.model) == ["Transpose", "MatMul", "MatMul"]


def test_a_weight_that_is_read_once_is_stored_transposed() -> None:
    weight = np.random.default_rng(0).standard_normal((2000, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["y"]),
    ]
    model = weighted_model(nodes, {"w": weight})
    result = clean(model)
    assert op_types(result.model) == ["MatMul"]
    np.testing.assert_array_equal(numpy_helper.to_array(result.model.graph.initializer[0]), weight.T)
    assert result.model.ByteSize() <= model.ByteSize()


def test_equal_regions_are_stored_once() -> None:
    weight = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    nodes = [
        helper.make_node("Exp", ["w"], ["a"]),
        helper.make_node("Exp", ["w"], ["b"]),
        helper.make_node("MatMul", ["x", "a"], ["c"]),
        helper.make_node("MatMul", ["x", "b"], ["d"]),
        helper.make_node("Sub", ["c", "d"], ["y"]),
    ]
    result = clean(weighted_model(nodes, {"w": weight}))
    assert op_types(result.model) == ["MatMul", "Sub"]
    assert len(result.model.graph.initializer) == 1


def test_weights_stored_in_few_bits_stay_so() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    quantised = rng.integers(-128, 128, (4, 4096)).astype(np.int8)
    model = weighted_model(nodes, {"q": quantised, "s": rng.random((1, 4096)).astype(np.float32)})
    assert op_types(clean(model).model) == ["Cast", "Mul", "MatMul"]


def test_dequantisation_stays_however_small() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("Add", ["x", "w"], ["y"]),
    ]
    model = weighted_model(nodes, {"q": np.int8([1, 2, 3, 4]), "s": np.float32(0.5)})
    assert op_types(clean(model).model) == ["DequantizeLinear", "Add"]


def test_random_constants_are_not_folded() -> None:
    model = onnx_model("""
        agraph (float[3, 4] x) => (float[3, 4] y)
        <float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
            r = RandomNormalLike(w)
            y = Add(x, r)
        }
    """)
    assert op_types(clean(model).model) == ["RandomNormalLike", "Add"]


def test_an_initialiser_that_the_caller_may_override_is_no_constant() -> None:
    model = onnx_model("""
        agraph (float[3, 4] x, float[4] w = {1, 2, 3, 4}) => (float[3, 4] y) {
            a = Exp(w)
            y = Add(x, a)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Exp", "Add"]
    feeds = {"x": X, "w": np.float32([4, 3, 2, 1])}
    np.testing.assert_array_equal(run_onnx(model, feeds)[0], run_onnx(result.model, feeds)[0])
