"""What nothing reads is in many files: a pass that finds nothing to do leaves it, and is not taken for one that hides a
change."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphopt


@pytest.mark.parametrize("name", ["fuse-conv-bn", "fuse-attention", "clean-up", "merge-linear", "drop-zero-channels",
                                  "lower-moe"])  # fmt: skip
def test_a_pass_that_keeps_nothing_is_no_error(name: str) -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    unread = numpy_helper.from_array(np.ones(3, np.float32), "unread")
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "g", values[:1], values[1:], [unread])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    assert graphopt.optimize(model, name).report.applications == []
