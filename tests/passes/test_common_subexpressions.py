"""Merging: equal nodes and equal constants become one, anything that differs in one respect stays two."""

from __future__ import annotations

import numpy as np
import onnx.parser
import pytest
from clean_up_graphs import assert_same_results, clean, kept_rules, onnx_model, op_types

import graphopt
from graphopt.ir.weights import ArrayRef
from graphopt.passes.common_subexpressions import attribute_key, constant_key

X = np.arange(-6, 6, dtype=np.float32).reshape(4, 3)


def test_equal_chains_become_one() -> None:
    model = onnx_model("""
        agraph (float[N, 3] x) => (float[N, 3] y) {
            a = Sigmoid(x)
            b = LeakyRelu <alpha = 0.5> (a)
            c = Sigmoid(x)
            d = LeakyRelu <alpha = 0.5> (c)
            y = Add(b, d)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Sigmoid", "LeakyRelu", "Add"]
    assert kept_rules(result)["merge-equal-nodes"] == 2
    assert_same_results(model, result.model, {"x": X})


@pytest.mark.parametrize(
    "second",
    [
        "b = LeakyRelu <alpha = 0.25> (x)",
        "b = LeakyRelu <alpha = 0.5> (z)",
        "b = ThresholdedRelu <alpha = 0.5> (x)",
    ],
)
def test_what_differs_stays(second: str) -> None:
    model = onnx_model(f"""
        agraph (float[N, 3] x, float[N, 3] z) => (float[N, 3] y) {{
            a = LeakyRelu <alpha = 0.5> (x)
            {second}
            y = Add(a, b)
        }}
    """)
    assert len(op_types(clean(model).model)) == 3


def test_calls_of_functions_that_only_overloads_tell_apart_stay() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        agraph (float[N, 3] x) => (float[N, 3] y) { a = local.F:one (x) b = local.F:two (x) y = Add(a, b) }
        <domain: "local", overload: "one", opset_import: ["" : 18]> F (x) => (y) { y = Relu(x) }
        <domain: "local", overload: "two", opset_import: ["" : 18]> F (x) => (y) { y = Neg(x) }
    """)
    assert graphopt.optimize(model, "clean-up").report.applications == []


def test_attributes_that_different_parameters_of_a_function_give_stay() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        agraph (float[N, 3] x) => (float[N, 3] y) { y = local.F <first = 0.1, second = 0.2> (x) }
        <domain: "local", opset_import: ["" : 18]>
        F <first, second> (x) => (y) {
            a = LeakyRelu <alpha: float = @first> (x)
            b = LeakyRelu <alpha: float = @second> (x)
            y = Add(a, b)
        }
    """)
    assert graphopt.optimize(model, "clean-up").report.applications == []


def test_random_numbers_are_not_merged() -> None:
    model = onnx_model("""
        agraph (float[4, 6] x) => (float[4, 6] y) {
            a = RandomNormalLike(x)
            b = RandomNormalLike(x)
            y = Sub(a, b)
        }
    """)
    assert op_types(clean(model).model).count("RandomNormalLike") == 2


def test_equal_outputs_keep_their_names() -> None:
    model = onnx_model("""
        agraph (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
            y = Sigmoid(x)
            z = Sigmoid(x)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Sigmoid", "Sigmoid"]
    assert_same_results(model, result.model, {"x": X})


def test_a_duplicate_that_is_an_output_gives_its_name_to_the_original() -> None:
    model = onnx_model("""
        agraph (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
            a = Sigmoid(x)
            z = Sigmoid(x)
            y = Neg(a)
        }
    """)
    result = clean(model)
    assert sorted(op_types(result.model)) == ["Neg", "Sigmoid"]
    assert_same_results(model, result.model, {"x": X})


def test_nodes_with_equal_constants_are_merged_and_the_constants_too() -> None:
    model = onnx_model("""
        agraph (float[N, 3] x) => (float[N, 3] y)
        <float[3] v = {1, 2, 3}, float[3] w = {1, 2, 3}> {
            a = Mul(x, v)
            b = Mul(x, w)
            c = Sub(a, v)
            d = Div(b, w)
            y = Add(c, d)
        }
    """)
    result = clean(model)
    assert op_types(result.model).count("Mul") == 1
    assert len(result.model.graph.initializer) == 1
    assert_same_results(model, result.model, {"x": X})


def test_constants_of_one_value_and_two_types_stay_two() -> None:
    def key(array: object) -> object:
        return constant_key(ArrayRef(np.asarray(array)))

    assert key(np.float32([0.0])) == key(np.float32([0.0]))
    assert key(np.float32([0.0])) != key(np.float32([-0.0]))
    assert key(np.float32([0.0])) != key(np.int32([0]))
    assert key(np.float32([0.0])) != key(np.float32(0.0))


def test_large_constants_are_equal_only_as_one_stored_tensor() -> None:
    array = np.zeros(4096, np.float32)
    ref = ArrayRef(array)
    assert constant_key(ref) == constant_key(ref)
    assert constant_key(ref) != constant_key(ArrayRef(array.copy()))


def test_attributes_are_told_apart_by_type_and_sign() -> None:
    assert attribute_key([1, "a"]) == attribute_key((1, "a"))
    assert len({attribute_key(v) for v in (1, 1.0, True, "1", None, (1,))}) == 6
    assert attribute_key(0.0) != attribute_key(-0.0)


def test_parameters_that_are_equal_by_chance_stay_apart_from_each_other_and_from_statistics() -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.BatchNorm2d(4)).eval()  # the bias is zero, as is the mean
    image = torch.arange(-8.0, 8.0).reshape(1, 4, 2, 2)
    result = graphopt.optimize(module, ["clean-up"], example_inputs=image).model
    assert {"1.weight", "1.bias"} == dict(result.named_parameters()).keys()
    assert torch.equal(result(image), module(image))  # with gradients, which a statistic must not have
    result(image).sum().backward()
    assert not torch.equal(result.get_parameter("1.weight").grad, result.get_parameter("1.bias").grad)
