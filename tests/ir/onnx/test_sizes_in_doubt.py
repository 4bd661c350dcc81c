"""Sizes that shape inference or the file says and the runtime does not compute never become numbers of the model."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
value, node = helper.make_tensor_value_info, helper.make_node


def constant(name, content, dtype=np.int64):
    return numpy_helper.from_array(np.asarray(content, dtype), name)


def model(nodes, inputs, outputs, constants=(), opset=17, infos=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants), value_info=list(infos))
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def sizes_of(nodes, shape, constants=(), opset=17, infos=()):
    """The sizes of y, which `nodes` compute of x, as the model's output."""
    ends = [node("Shape", ["y"], ["s"]), node("Identity", ["s"], ["i"]), node("Cast", ["i"], ["out"], to=FLOAT)]
    x = value("x", FLOAT, shape)
    return model([*nodes, *ends], [x], [value("out", FLOAT, None)], constants, opset, infos)


def run(proto, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def assert_kept(proto, **feeds):
    for wanted, got in zip(run(proto, feeds), run(graphopt.optimize(proto, "clean-up").model, feeds), strict=True):
        np.testing.assert_array_equal(got, wanted)


def resized(scale, opset):
    name, inputs = ("Resize", ["x", "", "scales"]) if opset > 10 else ("Upsample", ["x", "scales"])
    scales = constant("scales", [1, 1, scale, scale], np.float32)
    return sizes_of([node(name, inputs, ["y"], mode="nearest")], [1, 2, 10, 10], [scales], opset)


@pytest.mark.parametrize(
    ("scale", "opset"), [(s, o) for o in (13, 18, 19) for s in (0.5, 0.7, 1.3, 1.9, 2.0)] + [(2.3, 9), (2.0, 9)]
)
def test_images_scaled_by_what_is_no_whole_number(scale, opset):
    assert_kept(resized(scale, opset), x=np.ones((1, 2, 10, 10), np.float32))


@pytest.mark.parametrize("opset", [11, 19, 21])
@pytest.mark.parametrize("pads", [[0] * 4, [1] * 4])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pools_that_round_up(op, pads, opset):
    for size in range(4, 10):
        for kernel in (2, 3):
            fields = {"kernel_shape": [kernel] * 2, "strides": [2, 2], "pads": pads, "ceil_mode": 1}
            proto = sizes_of([node(op, ["x"], ["y"], **fields)], [1, 2, size, size], (), opset)
            assert_kept(proto, x=np.ones((1, 2, size, size), np.float32))


def test_a_dilated_pool_of_the_same_size():
    fields = {"kernel_shape": [3, 3], "strides": [2, 2], "dilations": [2, 2], "auto_pad": "SAME_UPPER"}
    proto = sizes_of([node("MaxPool", ["x"], ["y"], **fields)], [1, 2, 9, 9], (), 22)
    assert_kept(proto, x=np.ones((1, 2, 9, 9), np.float32))


def test_a_transposed_convolution_of_the_same_size_with_output_padding():
    fields = {"auto_pad": "SAME_UPPER", "strides": [2, 2], "output_padding": [1, 1]}
    weight = constant("w", np.ones((2, 2, 3, 3)), np.float32)
    proto = sizes_of([node("ConvTranspose", ["x", "w"], ["y"], **fields)], [1, 2, 5, 5], [weight])
    assert_kept(proto, x=np.ones((1, 2, 5, 5), np.float32))


@pytest.mark.parametrize("end", [2**63 - 1, 0, -(2**63)])
def test_a_slice_from_the_end_to_the_front(end):
    constants = [constant(n, [v]) for n, v in {"start": 4, "end": end, "axis": 0, "step": -1}.items()]
    proto = sizes_of([node("Slice", ["x", "start", "end", "axis", "step"], ["y"])], [6, 3], constants)
    assert_kept(proto, x=np.ones((6, 3), np.float32))


def test_sizes_that_went_through_truth_values():
    nodes = [node("Shape", ["x"], ["a"]), node("Cast", ["a"], ["b"], to=BOOL), node("Cast", ["b"], ["c"], to=INT64)]
    proto = sizes_of([*nodes, node("ConstantOfShape", ["c"], ["y"])], [6, 3])
    assert_kept(proto, x=np.ones((6, 3), np.float32))


def test_sizes_in_doubt_that_inference_has_written_into_the_file():
    proto = onnx.shape_inference.infer_shapes(resized(1.3, 13))
    assert any(info.name == "y" for info in proto.graph.value_info)
    assert_kept(proto, x=np.ones((1, 2, 10, 10), np.float32))


def test_sizes_that_are_certain_are_known():
    graph = graphopt.load(resized(2.0, 13)).main
    (resize,) = (n for n in graph.nodes() if n.op_type == "Resize")
    assert graph.type(resize.outputs[0]).shape == (1, 2, 20, 20)


def test_declarations_of_a_batch_that_has_become_free_are_not_believed():
    nodes = [
        node("Relu", ["x"], ["y"]), node("Shape", ["y"], ["s"]), node("Gather", ["s", "zero"], ["b"], axis=0),
        node("Cast", ["b"], ["f"], to=FLOAT), node("Mul", ["f", "f"], ["out"]),
    ]  # fmt: skip
    infos, constants = [value("y", FLOAT, [1, 4])], [constant("zero", 0)]
    proto = model(nodes, [value("x", FLOAT, ["N", 4])], [value("out", FLOAT, None)], constants, 17, infos)
    assert_kept(proto, x=np.ones((3, 4), np.float32))


def test_declarations_that_nothing_refutes_are_believed():
    proto = sizes_of([node("Custom", ["x"], ["y"], domain="own")], ["N", 4], (), 17, [value("y", FLOAT, ["N", 8])])
    proto.opset_import.append(helper.make_opsetid("own", 1))
    graph = graphopt.load(proto).main
    (custom,) = (n for n in graph.nodes() if n.op_type == "Custom")
    assert graph.type(custom.outputs[0]).shape == ("N", 8)


def test_a_name_in_a_loop_is_another_size_in_each_iteration():
    nodes = [
        node("Concat", ["state", "x"], ["longer"], axis=0), node("Shape", ["state"], ["a"], end=1),
        node("Shape", ["x"], ["b"], end=1), node("Sub", ["a", "b"], ["d"]), node("Cast", ["d"], ["more"], to=FLOAT),
        node("Identity", ["going"], ["go_on"]),
    ]  # fmt: skip
    body = helper.make_graph(
        nodes, "body", [value("i", INT64, []), value("going", BOOL, []), value("state", FLOAT, ["n", 3])],
        [value("go_on", BOOL, []), value("longer", FLOAT, [None, 3]), value("more", FLOAT, [1])],
    )  # fmt: skip
    proto = model(
        [node("Loop", ["trips", "", "x"], ["last", "grown"], body=body)],
        [value("x", FLOAT, ["n", 3]), value("trips", INT64, [])],
        [value("grown", FLOAT, [None, 1]), value("last", FLOAT, [None, 3])],
    )
    assert_kept(proto, x=np.ones((2, 3), np.float32), trips=np.array(3))
