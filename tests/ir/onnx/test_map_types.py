"""Maps, which converters of classical models write and onnx_ir has no type for, stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_helpers import run

import graphopt
from graphopt.errors import UnsupportedError

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
value, node = helper.make_tensor_value_info, helper.make_node
X = np.asarray([[-1, 2, -3], [4, -5, 6]], np.float32)
PROBABILITIES = helper.make_sequence_type_proto(
    helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, []))
)
WEIGHTS = {"w1": (8, 16), "w2": (16, 3)}
WORDS = helper.make_map_type_proto(STRING, helper.make_tensor_type_proto(FLOAT, []))


def model(nodes: list[onnx.NodeProto], inputs, outputs, constants=(), functions=()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, ir_version=8, opset_imports=opsets, functions=list(functions))


def classifier() -> onnx.ModelProto:
    """Scores that two linear layers and an Identity make, as probabilities by class."""
    weight = numpy_helper.from_array(np.arange(9, dtype=np.float32).reshape(3, 3), "w")
    nodes = [
        node("MatMul", ["x", "w"], ["a"]), node("Identity", ["a"], ["b"]), node("Softmax", ["b"], ["scores"]),
        node("ZipMap", ["scores"], ["by_class"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]),
        node("ArgMax", ["b"], ["label"], axis=1, keepdims=0),
    ]  # fmt: skip
    outputs = [value("label", INT64, ["n"]), helper.make_value_info("by_class", PROBABILITIES)]
    proto = model(nodes, [value("x", FLOAT, ["n", 3])], outputs, [weight])
    onnx.checker.check_model(proto)
    return proto


def of_words() -> onnx.ModelProto:
    vector = node("DictVectorizer", ["x"], ["v"], domain="ai.onnx.ml", string_vocabulary=["a", "b"])
    return model([vector, node("Relu", ["v"], ["y"])], [helper.make_value_info("x", WORDS)], [value("y", FLOAT, None)])


def test_classifier_is_optimised_and_still_declares_its_map(tmp_path: Path):
    proto = classifier()
    result = graphopt.optimize(proto)
    assert [a.id for a in result.report.kept] == ["clean-up/remove-identity#1"]
    result.save(tmp_path / "saved.onnx")
    graphopt.save(graphopt.optimize(result.model).model, tmp_path / "again.onnx")
    graphopt.save(graphopt.load(tmp_path / "saved.onnx").export(), tmp_path / "as_ir.onnx")
    for name in ("saved", "again", "as_ir"):
        saved = onnx.load(tmp_path / f"{name}.onnx")
        onnx.checker.check_model(saved)
        assert saved.graph.output == proto.graph.output
    assert result.lower()(X)[1] == run(proto, {"x": X})[1]


def test_outputs_that_are_maps_are_compared_end_to_end():
    report = graphopt.optimize(classifier(), verify="model").report
    assert report.notes[-1].startswith("end to end: largest error")


@pytest.mark.parametrize("passes", ["prune", "low-rank{rank=1}"])
def test_budget_is_spent_on_the_numbers_in_maps(passes: str):
    rng = np.random.default_rng(0)
    constants = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in WEIGHTS.items()]
    nodes = [
        node("MatMul", ["x", "w1"], ["a"]), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w2"], ["c"]),
        node("ZipMap", ["c"], ["by_class"], domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9]),
    ]  # fmt: skip
    inputs, given = [value("x", FLOAT, ["n", 8])], [rng.standard_normal((16, 8)).astype(np.float32) for _ in range(4)]
    mapped = model(nodes, inputs, [helper.make_value_info("by_class", PROBABILITIES)], constants)
    plain = model(nodes[:3], inputs, [value("c", FLOAT, ["n", 3])], constants)
    budget = graphopt.Budget("relative-error", 0.9)
    spent = []
    for proto in (mapped, plain):
        result = graphopt.optimize(proto, passes, budget=budget, calibration=given)
        assert result.report.kept
        spent.append(result.report.passes[0].spending.after)
    assert spent[0] == pytest.approx(spent[1], rel=1e-6)


def test_input_that_is_a_map(tmp_path: Path):
    proto = of_words()
    graphopt.optimize(proto).save(tmp_path / "saved.onnx")
    assert onnx.load(tmp_path / "saved.onnx").graph.input == proto.graph.input
    (got,) = graphopt.optimize(proto).lower().session.run(None, {"x": {"a": 2.0, "b": -1.0}})
    assert np.array_equal(got, [[2, 0]])


def test_map_declared_within_a_function_is_refused():
    function = helper.make_function(
        "local", "F", ["x"], ["y"], [node("Identity", ["x"], ["m"]), node("Relu", ["m"], ["y"])],
        [helper.make_opsetid("", 18)], value_info=[helper.make_value_info("m", WORDS)],
    )  # fmt: skip
    call = node("F", ["x"], ["y"], domain="local")
    proto = model([call], [value("x", FLOAT, [2])], [value("y", FLOAT, [2])], functions=[function])
    with pytest.raises(UnsupportedError, match="'m', a value in a body or a function, is declared as a map"):
        graphopt.optimize(proto)
