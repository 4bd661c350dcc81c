"""Keys that are transposed with their heads joined to the batch: one transpose, also where the shapes are computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from attention_graphs import moves
from onnx import TensorProto, helper, numpy_helper

from graphopt.compiler import optimize
from graphopt.ir.load import load_model
from graphopt.ir.onnx.model import OnnxModel
from graphopt.passes.attention_keys import transpose_keys_directly
from graphopt.pipeline.context import Context
from graphopt.rewrite.ledger import Ledger
from graphopt.verify.execute import model_runner
from graphopt.verify.verifier import MatchVerifier


def node(op: str, operands: list[str], result: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, operands, [result], name=result, **attributes)


def detour(*, swapped: bool = False, read: bool = False, target: str = "computed") -> onnx.ModelProto:
    """Keys [batch, 3, length, 4] with the shapes computed from their own, as torch exports them."""
    sizes = {"last": [-1], "rows": [-2], "end": [2**63 - 1], "begin": [0], "join": [-1], "zero": [0]}
    constants = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in sizes.items()]
    order = ["lead", "n_rows", "n_last"] if swapped else ["lead", "n_last", "n_rows"]
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Slice", ["shape", "last", "end"], "n_last"),
        node("Slice", ["shape", "rows", "last"], "n_rows"),
        node("Slice", ["shape", "begin", "rows"], "lead"),
        node("Concat", ["join", "n_rows", "n_last"], "flat_shape", axis=0),
        node("Concat", order, "out_shape", axis=0),
        node("Reshape", ["x", "flat_shape"], "flat"),
        node("Transpose", ["flat"], "turned", perm=[0, 2, 1]),
        node("Reshape", ["turned", "out_shape" if target == "computed" else "given"], "y"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, "length", 4])]
    if target == "given":
        inputs.append(helper.make_tensor_value_info("given", TensorProto.INT64, [4]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)]
    if read:
        outputs.append(helper.make_tensor_value_info("turned", TensorProto.FLOAT, [None] * 3))
    graph = helper.make_graph(nodes, "detour", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def straightened(source: onnx.ModelProto) -> tuple[OnnxModel, Ledger]:
    model = load_model(source)
    ledger = Ledger()
    ledger.open_pass("test")
    context = Context(model, MatchVerifier(), ledger)
    transpose_keys_directly(context.editor(model.main))
    model.refresh()
    return model, ledger


def test_a_detour_with_computed_shapes_is_one_transpose() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    (expected,) = model_runner(load_model(detour()))([x])
    model, ledger = straightened(detour())
    (application,) = ledger.applications
    assert application.status == "kept" and application.evidence.kind == "bit-equal"
    assert [model.main.key(n) for n in model.main.nodes()] == ["transpose"] and moves(model) == 1
    assert np.array_equal(expected, model_runner(model)([x])[0])


@pytest.mark.parametrize("changes", [{"swapped": True}, {"read": True}, {"target": "given"}])
def test_what_is_no_detour_or_not_certainly_stays(changes: dict[str, Any]) -> None:
    _, ledger = straightened(detour(**changes))
    assert not ledger.applications


def test_the_pass_does_it_by_itself() -> None:
    report = optimize(detour(), "fuse-attention").report
    assert [a.rule for a in report.applications if a.status == "kept"][-1] == "keys-transposed-flat"
