"""Fragments of images of a fixed size run on smaller images."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from graphopt.ir.load import load_model
from graphopt.verify.execute import onnx_runner


def test_a_fragment_takes_smaller_images_than_its_model_declares() -> None:
    weight = numpy_helper.from_array(np.ones((6, 4, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])],
        "fixed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 640, 640])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 6, 638, 638])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    main = load_model(model).main
    run = onnx_runner(main.cut(list(main.nodes()), list(main.inputs()), list(main.outputs())))
    (result,) = run([np.ones((1, 4, 9, 9), np.float32)])
    np.testing.assert_array_equal(result, np.full((1, 6, 7, 7), 36.0, np.float32))
