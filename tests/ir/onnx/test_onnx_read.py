"""Readers: every entry of the table is read with the right fields, and what is not understood is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper
from onnx_cases import CASES, IMAGE, NORM, Case, X, c, real, weight

from graphopt.ir.graph import Call, Literal
from graphopt.ir.onnx.load import load_onnx
from graphopt.ir.onnx.read import READERS
from graphopt.ir.ops.spec import OPS


def read(case: Case):
    region = load_onnx(case.model()).main
    (node,) = region.nodes()
    return region, node, region.call(node)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_node_is_read_with_its_fields_and_operands(case: Case):
    region, node, call = read(case)
    assert isinstance(call, Call), call
    assert region.key(node) == call.op == case.op
    assert dict(call.fields) == case.fields
    expected = range(len(case.inputs)) if case.operands is None else case.operands
    given = [
        "literal" if isinstance(v, Literal) else None if v is None else list(node.inputs).index(v)
        for v in call.operands
    ]
    assert given == [
        i if i is None or i == "literal" or case.inputs[i] is not None else None for i in expected
    ] or (
        # The same value may be given twice, as in Concat(x, x).
        len(given) == len(case.inputs)
    )
    assert len(call.outputs) == case.outputs


def test_every_reader_has_a_case():
    assert {(case.domain, case.op_type) for case in CASES} >= {
        key for key in READERS if key[1] not in ("SimplifiedLayerNormalization",) and key[0] == ""
    }
    assert len({case.op for case in CASES}) >= 70


@pytest.mark.parametrize("case", CASES, ids=str)
def test_read_fields_and_operands_are_those_of_the_vocabulary(case: Case):
    _, _, call = read(case)
    entry = OPS[call.op]
    assert set(call.fields) <= set(entry.fields)
    assert all(
        name in call.fields or entry.is_default(name, default) or default is None or name in call.fields
        for name, default in entry.fields.items()
    )
    if not entry.variadic:
        assert len(call.operands) <= len(entry.operands)


LAYER = [real(5, 1, 2), weight(1, 12, 2), weight(1, 12, 3)]
UNITS = [real(5, 1, 2), weight(1, 9, 2), weight(1, 9, 3)]
REFUSED = [
    (Case("Conv", [IMAGE, weight(6, 4, 1, 1)], "", attributes={"unknown": 1}),
         "attribute unknown is not understood"),
    (Case("Conv", [IMAGE, weight(6, 4, 1, 1)], "", attributes={"kernel_shape": [3, 3]}),
         "contradicts the weight"),
    (Case("ConvTranspose", [IMAGE, weight(4, 3, 3, 3)], "", attributes={"output_shape": [20, 20]}),
         "output_shape"),
    (Case("BatchNormalization", [IMAGE, *NORM], "", outputs=3, attributes={"training_mode": 1}),
         "output 1 is used"),
    (Case("BatchNormalization", [IMAGE, *NORM], "", outputs=5, opset=8), "training mode"),
    (Case("Gemm", [real(3, 4), weight(4, 5)], "", attributes={"alpha": 0.5}), "alpha is 0.5"),
    (Case("Gemm", [real(3, 4), weight(4, 5), weight(5)], "", attributes={"beta": 0.5}), "beta is 0.5"),
    (Case("Gemm", [real(3, 4), weight(3, 5)], "", attributes={"transA": 1}), "transA is 1"),
    (Case("Gemm", [real(3, 4), weight(4, 5), weight(3, 1)], ""), "C has rank 2"),
    (Case("Gemm", [real(3, 4), weight(4, 5), weight(1)], ""), "one number per column"),
    (Case("Softmax", [X], "", opset=11, attributes={"axis": 1}), "several axes"),
    (Case("Pow", [X, c([2])], ""), "float32 and int64"),
    (Case("Max", [X, X, X], ""), "3 operands"),
    (Case("MaxPool", [IMAGE], "", outputs=2, attributes={"kernel_shape": [2, 2]}), "output 1 is used"),
    (Case("Dropout", [X, c(0.5, np.float32), c(True, bool)], "", opset=13), "training mode"),
    (Case("Dropout", [X], "", opset=13, outputs=2), "output 1 is used"),
    (Case("Resize", [IMAGE, None, c([1, 1, 2, 2], np.float32)], "", attributes={"mode": "linear",
         "antialias": 1}),
     "antialias"),
    (Case("Resize", [IMAGE, None, c([1, 1, 2, 2], np.float32)], "", attributes={
        "coordinate_transformation_mode": "tf_crop_and_resize"}), "tf_crop_and_resize"),
    (Case("Pad", [X, np.zeros(6, np.int64)], ""), "pads is computed"),
    (Case("Pad", [X, c([0] * 6)], "", opset=19, attributes={"mode": "wrap"}), "wrap"),
    (Case("Slice", [X, np.asarray([0]), np.asarray([1])], ""), "starts is computed"),
    (Case("TopK", [X, c([2])], "", outputs=2, attributes={"sorted": 0}), "sorted"),
    (Case("ArgMax", [X], "", attributes={"select_last_index": 1}), "select_last_index"),
    (Case("GroupNormalization", [IMAGE, weight(2), weight(2)], "", attributes={"num_groups": 2}),
         "per group"),
    (Case("FusedMatMul", [real(3, 4), weight(5, 4)], "", domain="com.microsoft", attributes={"transB": 1}),
         "transB"),
    (Case("FastGelu", [X, weight(4)], "", domain="com.microsoft"), "bias"),
    (Case("RNN", [real(5, 1, 2), weight(1, 3, 2), weight(1, 3, 3)], "", attributes={"hidden_size": 3}),
     "not in the vocabulary"),
    (Case("GRU", UNITS, "", attributes={"hidden_size": 3, "layout": 1}), "attribute layout is 1"),
    (Case("GRU", UNITS, "", attributes={"hidden_size": 3, "clip": 1.0}), "attribute clip is not understood"),
    (Case("GRU", UNITS, "", attributes={"hidden_size": 3, "activations": ["Sigmoid", "Relu"]}), "activations"),
    (Case("GRU", UNITS, "", opset=3, attributes={"hidden_size": 3}), "before opset 7"),
    (Case("GRU", [*UNITS, None, np.asarray([5], np.int32)], "", attributes={"hidden_size": 3}), "operand 4"),
    (Case("LSTM", LAYER, "", attributes={"hidden_size": 3, "layout": 1}), "attribute layout is 1"),
    (Case("LSTM", LAYER, "", attributes={"hidden_size": 3, "clip": 1.0}), "attribute clip is not understood"),
    (Case("LSTM", LAYER, "", attributes={"hidden_size": 3, "activations": ["Relu", "Tanh", "Tanh"]}), "activations"),
    (Case("LSTM", LAYER, "", opset=1, attributes={"hidden_size": 3}), "before opset 7"),
    (Case("LSTM", [*LAYER, None, np.asarray([5], np.int32)], "", attributes={"hidden_size": 3}), "operand 4"),
    (Case("LSTM", [*LAYER, *[None] * 4, weight(1, 9)], "", attributes={"hidden_size": 3}), "operand 7"),
    (Case("ReduceSum", [X], "", opset=13, attributes={"noop_with_empty_axes": 1}), "reduces no axis"),
    (Case("Attention", [real(1, 2, 5, 4)] * 3, "", opset=23, attributes={"softcap": 1.0}), "softcap"),
    (Case("Attention", [real(1, 5, 8)] * 3, "", opset=23, attributes={"q_num_heads": 2,
         "kv_num_heads": 2}), "4-D"),
    (Case("MultiHeadAttention", [real(1, 5, 8)] * 3, "", domain="com.microsoft", attributes={"num_heads": 2,
         "unidirectional": 1}), "unidirectional"),
    (Case("MultiHeadAttention", [real(1, 5, 8)] * 3 + [weight(24)], "", domain="com.microsoft",
         attributes={"num_heads": 2}), "operand 3"),
    (Case("MultiHeadAttention", [real(1, 5, 8)] + [real(1, 2, 5, 4)] * 2, "", domain="com.microsoft",
         attributes={"num_heads": 2}), "packed or not 3-D"),
    (Case("Cast", [X], "", attributes={"to": 8}), "no number"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "reason"), REFUSED, ids=lambda p: str(p) if isinstance(p, Case) else "")
def test_what_is_not_understood_is_refused_with_the_reason(case: Case, reason: str):
    _, _, call = read(case)
    assert not call
    assert reason in call.reason


def test_computed_shape_is_the_target_operand():
    case = Case("Reshape", [X, np.asarray([4, 6])], "")
    region, node, call = read(case)
    assert call.operands == tuple(node.inputs)
    assert call.fields == {"shape": None, "allow_zero": False}


def test_computed_shape_whose_result_is_inferred_is_a_plain_shape():
    batch = helper.make_tensor_value_info("x", 1, ["n", 2, 3])
    result = helper.make_tensor_value_info("y", 1, None)
    nodes = [
        helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "six"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"]),
    ]
    six = numpy_helper.from_array(np.asarray([6]), "six")
    model = helper.make_model(
        helper.make_graph(nodes, "g", [batch], [result], [six]), opset_imports=[helper.make_opsetid("", 18)]
    )
    region = load_onnx(model).main
    call = region.call(list(region.nodes())[-1])
    assert call.fields == {"shape": (-1, 6)}
    assert call.operands[1] is None


def test_computed_shape_is_not_taken_from_what_the_file_declares():
    model = case_with_declared_output("Reshape", [X, np.asarray([4, 6])], ("n", 6))
    region = load_onnx(model).main
    (node,) = region.nodes()
    assert region.call(node).fields == {"shape": None, "allow_zero": False}
    assert region.call(node).operands[1] is not None


def case_with_declared_output(op_type, inputs, shape):
    model = Case(op_type, inputs, "").model()
    dims = model.graph.output[0].type.tensor_type.shape
    del dims.dim[:]
    for size in shape:
        dims.dim.add(**({"dim_value": size} if isinstance(size, int) else {"dim_param": size}))
    return model


def test_copied_size_that_is_unknown_is_inferred_instead():
    model = Case("Reshape", [real(2, 3, 4), c([0, 12])], "").model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    region = load_onnx(model).main
    (node,) = region.nodes()
    assert region.call(node).fields == {"shape": (-1, 12)}


def test_attribute_bounds_of_an_old_clip_are_literals_of_the_operand_type():
    case = Case("Clip", [X], "", attributes={"min": 0.0, "max": 6.0}, opset=10)
    region, _, call = read(case)
    low, high = call.operands[1:]
    assert (low, high) == (Literal(0.0, "float32"), Literal(6.0, "float32"))
    assert region.type(low).shape == ()
    assert region.constant(high).item() == 6.0


def test_old_broadcasting_is_read_only_where_it_is_numpys():
    suffix = Case("Add", [X, weight(4)], "add", attributes={"broadcast": 1, "axis": 2}, opset=6)
    leading = Case("Add", [X, weight(3)], "add", attributes={"broadcast": 1, "axis": 1}, opset=6)
    assert read(suffix)[2].op == "add"
    assert "leading axis" in read(leading)[2].reason


def test_unknown_types_are_refused_where_they_matter():
    model = ir.from_proto(Case("Softmax", [X], "").model())
    model.graph.inputs[0].shape = None
    model.graph.outputs[0].shape = None
    region = load_onnx(model).main
    (node,) = region.nodes()
    assert "rank" in region.call(node).reason
