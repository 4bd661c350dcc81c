"""Empty axes are tried where they are safe: onnxruntime ends the process at an LSTM with an empty batch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SCRIPT = """
import sys, graphopt
report = graphopt.optimize(sys.argv[1], "clean-up").report
print(sum(a.rule == "inline-constant-branch" for a in report.kept), len(report.kept))
"""


def lstm_in_a_constant_branch() -> onnx.ModelProto:
    """If(true) of an LSTM over a symbolic batch: inlining the branch is verified on the If as a whole."""
    rng = np.random.default_rng(0)
    weights = {"W": (1, 16, 3), "R": (1, 16, 4)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in weights.items()]
    lstm = helper.make_node("LSTM", ["x", "W", "R"], ["", "h"], hidden_size=4)
    skip = helper.make_node("ReduceSum", ["x"], ["r"], keepdims=1)
    state = helper.make_tensor_value_info("h", TensorProto.FLOAT, None)
    other = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    branches = {
        "then_branch": helper.make_graph([lstm], "then", [], [state]),
        "else_branch": helper.make_graph([skip], "else", [], [other]),
    }
    nodes = [
        helper.make_node("If", ["yes"], ["y"], **branches),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "batch", 3])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [z], [*tensors, numpy_helper.from_array(np.asarray(True), "yes")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_recurrent_layer_with_a_symbolic_batch_does_not_end_the_process(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(lstm_in_a_constant_branch(), path)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout.split()[1]) >= 1
