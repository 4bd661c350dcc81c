"""Initial states of zeros are left out of recurrent layers; any other state stays."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from clean_up_graphs import applications, clean, op_types
from onnx import TensorProto, helper, numpy_helper

from graphopt.compiler import optimize

LAYERS = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN = 4
node = helper.make_node


def zeros_for_the_batch(value: float = 0.0) -> list[onnx.NodeProto]:
    """s: [2, batch, HIDDEN] zeros, or something else, computed as tf2onnx does."""
    number = numpy_helper.from_array(np.asarray(value, np.float32))
    return [
        node("Shape", ["x"], ["dims"]),
        node("Slice", ["dims", "one", "two", "zero"], ["batch"]),
        node("Concat", ["batch", "hidden"], ["wanted"], axis=0),
        node("Constant", [], ["number"], value=number),
        node("Expand", ["number", "wanted"], ["flat"]),
        node("Unsqueeze", ["flat", "zero"], ["single"]),
        node("Concat", ["single", "single"], ["s"], axis=0),
    ]


def filled_for_the_batch(value: float = 0.0) -> list[onnx.NodeProto]:
    """The same as torch writes it."""
    number = numpy_helper.from_array(np.asarray([value], np.float32))
    return [
        node("Shape", ["x"], ["dims"]),
        node("Gather", ["dims", "one"], ["batch"]),
        node("Concat", ["two", "batch", "hidden"], ["wanted"], axis=0),
        node("ConstantOfShape", ["wanted"], ["s"], value=number),
    ]


def layer(op: str, before: list[onnx.NodeProto], *, states: int = 1, more: tuple[str, ...] = ()) -> onnx.ModelProto:
    """A layer that starts with "s", which is computed by the nodes `before` or stored."""
    gates, rng = LAYERS[op], np.random.default_rng(0)
    shapes = {"W": (2, gates * HIDDEN, 3), "R": (2, gates * HIDDEN, HIDDEN), "B": (2, 2 * gates * HIDDEN)}
    stored = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    stored |= {n: np.asarray([v]) for n, v in {"zero": 0, "one": 1, "two": 2, "hidden": HIDDEN}.items()}
    info = helper.make_tensor_value_info
    outputs = ["y", "h", "c"][: 3 if op == "LSTM" else 2]
    graph = helper.make_graph(
        [
            *before,
            node(op, ["x", "W", "R", "B", "", *["s"] * states], outputs, hidden_size=HIDDEN, direction="bidirectional"),
        ],
        "g",
        [info("x", TensorProto.FLOAT, ["steps", "batch", 3])],
        [info(name, TensorProto.FLOAT, None) for name in (*outputs, *more)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def results(model: onnx.ModelProto, steps: int, batch: int) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((steps, batch, 3)).astype(np.float32)
    return session.run(None, {"x": x})


@pytest.mark.parametrize("made", [zeros_for_the_batch, filled_for_the_batch])
@pytest.mark.parametrize(("op", "states"), [("LSTM", 2), ("LSTM", 1), ("GRU", 1), ("RNN", 1)])
def test_zeros_are_left_out_with_what_computes_them(op: str, states: int, made) -> None:
    model = layer(op, made(), states=states)
    result = clean(model)
    (left,) = result.model.graph.node
    assert (left.op_type, list(left.input)) == (op, ["x", "W", "R", "B"])
    (done,) = [a for a in applications(result) if a.rule == "zero-state"]
    assert done.evidence.kind == "bit-equal"
    for steps, batch in ((3, 2), (1, 5), (4, 1)):
        for old, new in zip(results(model, steps, batch), results(result.model, steps, batch), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("op", sorted(LAYERS))
@pytest.mark.parametrize("value", [1.0, -0.0, 1e-45, float("nan")])
def test_another_state_stays(op: str, value: float) -> None:
    for made in (zeros_for_the_batch, filled_for_the_batch):
        result = clean(layer(op, made(value)))
        (left,) = [n for n in result.model.graph.node if n.op_type == op]
        assert len(left.input) == 6 and "zero-state" not in str(result.report)


def test_of_two_states_the_one_of_zeros_goes() -> None:
    model = layer("LSTM", [*zeros_for_the_batch(), node("Cos", ["s"], ["ones"])], states=2)
    model.graph.node[-1].input[6] = "ones"
    (left,) = [n for n in clean(model).model.graph.node if n.op_type == "LSTM"]
    assert list(left.input) == ["x", "W", "R", "B", "", "", "ones"]


def test_zeros_that_something_else_reads_stay_for_it() -> None:
    model = layer("GRU", zeros_for_the_batch(), more=("s",))
    result = clean(model)
    assert op_types(result.model)[-1] == "GRU" and "Expand" in op_types(result.model)
    (left,) = [n for n in result.model.graph.node if n.op_type == "GRU"]
    assert list(left.input) == ["x", "W", "R", "B"]
    for old, new in zip(results(model, 3, 2), results(result.model, 3, 2), strict=True):
        np.testing.assert_array_equal(old, new)


def test_stored_zeros_go_where_the_batch_is_fixed() -> None:
    model = layer("GRU", [])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((2, 5, HIDDEN), np.float32), "s"))
    result = clean(model)
    assert list(result.model.graph.node[0].input) == ["x", "W", "R", "B"]
    assert "s" not in [tensor.name for tensor in result.model.graph.initializer]


def test_zeros_of_a_size_that_is_given_stay() -> None:
    """A run of the layer alone could not tell a size that does not fit."""
    model = layer("GRU", [node("ConstantOfShape", ["size"], ["s"])])
    model.graph.input.append(helper.make_tensor_value_info("size", TensorProto.INT64, [3]))
    assert op_types(clean(model).model) == ["ConstantOfShape", "GRU"]


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_leaving_zeros_out_is_proved(op: str) -> None:
    result = optimize(layer(op, zeros_for_the_batch()), "clean-up", prove=True)
    (done,) = [a for a in applications(result) if a.rule == "zero-state"]
    assert done.evidence.proof is not None and done.evidence.proof.level == "proof"


def test_nothing_is_proposed_where_what_the_layer_reads_has_no_type() -> None:
    model = layer("GRU", [node("Own", ["x0"], ["x"], domain="somebody"), *zeros_for_the_batch()])
    model.graph.input[0].name = "x0"
    model.opset_import.append(helper.make_opsetid("somebody", 1))
    result = clean(model)
    assert "zero-state" not in str(result.report)
    (left,) = [n for n in result.model.graph.node if n.op_type == "GRU"]
    assert len(left.input) == 6


def test_nothing_is_proposed_where_the_shape_of_something_without_a_type_is_asked() -> None:
    model = layer("GRU", [node("Own", ["x"], ["z"], domain="somebody"), *zeros_for_the_batch()])
    next(n for n in model.graph.node if n.op_type == "Shape").input[0] = "z"
    model.opset_import.append(helper.make_opsetid("somebody", 1))
    assert "zero-state" not in str(clean(model).report)
