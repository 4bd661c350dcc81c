"""Control flow around what clean-up removes, on ONNX models: bodies that read it, bodies that go with it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

import graphopt

FLOAT, INT64, BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL


def body(name: str, nodes: list[onnx.NodeProto], output: str) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, FLOAT, None)])


def model_of(nodes: list[onnx.NodeProto], inputs: dict, weights: dict[str, np.ndarray], output: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(output, FLOAT, inputs["x"][1])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feeds)[0]


def optimised(model: onnx.ModelProto) -> onnx.ModelProto:
    result = graphopt.optimize(model, "clean-up").model
    onnx.checker.check_model(result, full_check=True)
    return result


def test_a_reader_inside_a_body_is_left_to_the_region_of_the_body():
    """x * 1 goes, and what reads it is an identity in a branch, which the rules of the main graph may not touch."""
    then = [helper.make_node("Identity", ["y"], ["a"]), helper.make_node("Abs", ["a"], ["t"])]
    nodes = [
        helper.make_node("Mul", ["x", "one"], ["y"]),
        helper.make_node(
            "If", ["c"], ["z"],
            then_branch=body("t", then, "t"),
            else_branch=body("e", [helper.make_node("Neg", ["y"], ["e"])], "e"),
        ),
    ]  # fmt: skip
    model = model_of(nodes, {"x": (FLOAT, [4]), "c": (BOOL, [])}, {"one": np.ones((), np.float32)}, "z")
    result = optimised(model)
    assert [n.op_type for n in result.graph.node] == ["If"]
    assert {a.name: [n.op_type for n in a.g.node] for a in result.graph.node[0].attribute} == {
        "then_branch": ["Abs"], "else_branch": ["Neg"]
    }  # fmt: skip
    x = np.arange(4, dtype=np.float32)
    for condition in (True, False):
        feeds = {"x": x, "c": np.array(condition)}
        np.testing.assert_array_equal(run(result, **feeds), run(model, **feeds))


def test_nothing_is_changed_in_branches_that_have_been_removed():
    constant = helper.make_node("Constant", [], ["k"], value_float=2.0)
    then = [helper.make_node("Abs", ["x"], ["t"])]
    otherwise = [constant, helper.make_node("Mul", ["x", "k"], ["e"])]
    decided = helper.make_node(
        "If", ["known"], ["z"], then_branch=body("t", then, "t"), else_branch=body("e", otherwise, "e")
    )
    model = model_of([decided], {"x": (FLOAT, [4])}, {"known": np.array(True)}, "z")
    optimized = graphopt.optimize(model, "clean-up")
    assert [n.op_type for n in optimized.model.graph.node] == ["Abs"]
    assert {a.rule for a in optimized.report.kept} == {"inline-constant-branch"}


def test_the_bounds_of_a_range_stay_loadable_when_they_become_constant():
    """onnxruntime takes a vector of one element for a bound, unless the file shows that it is constant."""
    nodes = [
        helper.make_node("Split", ["sizes"], ["stop", "rest"], num_outputs=2),
        helper.make_node("Range", ["zero", "stop", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=FLOAT),
        helper.make_node("Add", ["f", "x"], ["z"]),
    ]
    weights = {"sizes": np.array([4000, 1]), "zero": np.array(0), "one": np.array(1)}
    model = model_of(nodes, {"x": (FLOAT, [4000])}, weights, "z")
    result = optimised(model)
    assert [n.op_type for n in result.graph.node] == ["Range", "Cast", "Add"]
    x = np.ones(4000, np.float32)
    np.testing.assert_array_equal(run(result, x=x), run(model, x=x))
