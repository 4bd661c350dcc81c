"""Integer divisions that end a process are met as errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from graphopt.compiler import optimize
from graphopt.ir.load import load_model
from graphopt.verify.execute import CannotRun, model_runner

LEAST = {"int8": -(2**7), "int32": -(2**31), "int64": -(2**63)}


def divided(op: str, dtype: str, dividend: int, divisor: int, **attributes: Any) -> onnx.ModelProto:
    """y = x + (dividend op divisor), the latter of constants alone."""
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["a"], ["a0"]),
            helper.make_node(op, ["a0", "b"], ["q"], **attributes),
            helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["x", "f"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.asarray([v], dtype), n) for n, v in (("a", dividend), ("b", divisor))],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_a_branch(name: str, nodes: list[onnx.NodeProto], result: str) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, name, [], [helper.make_tensor_value_info(result, TensorProto.FLOAT, [2])]
    )


def branching(dividend: int, divisor: int) -> onnx.ModelProto:
    """Divides in the branch that is not taken where `c` is false; the other has a float of the same name."""
    node = helper.make_node
    taken = [node("Div", ["a", "b"], ["d"]), node("Cast", ["d"], ["f"], to=1), node("Add", ["x", "f"], ["w"])]
    other = [node("Div", ["x", "two"], ["d"]), node("Relu", ["d"], ["v"])]
    graph = helper.make_graph(
        [
            node(
                "If", ["c"], ["y"], then_branch=in_a_branch("t", taken, "w"), else_branch=in_a_branch("e", other, "v")
            )
        ],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        [
            numpy_helper.from_array(np.asarray([dividend]), "a"),
            numpy_helper.from_array(np.asarray([divisor]), "b"),
            numpy_helper.from_array(np.asarray([2], np.float32), "two"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize(
    ("dtype", "dividend", "divisor"),
    [("int64", LEAST["int64"], -1), ("int32", LEAST["int32"], -1), ("int8", LEAST["int8"], -1)]
    + [(dtype, 7, 0) for dtype in ("int64", "int32", "uint8", "uint64")],
)
def test_what_ends_the_process_is_not_folded(op: str, dtype: str, dividend: int, divisor: int) -> None:
    result = optimize(divided(op, dtype, dividend, divisor), "clean-up")
    assert op in [node.op_type for node in result.model.graph.node]
    assert "divides integers by zero, or the least one by -1" in str(result.report)


@pytest.mark.parametrize("op", ["Div", "Mod"])
@pytest.mark.parametrize(
    ("dtype", "dividend", "divisor"), [("int64", 7, -1), ("int64", LEAST["int64"], 2), ("uint64", 2**64 - 1, 2**64 - 2)]
)
def test_other_divisions_are_folded(op: str, dtype: str, dividend: int, divisor: int) -> None:
    model = divided(op, dtype, dividend, divisor)
    assert [node.op_type for node in optimize(model, "clean-up").model.graph.node] == ["Add"]


@pytest.mark.parametrize("verify", ["match", "model"])
def test_a_branch_that_is_never_taken_may_hold_one(verify: str) -> None:
    result = optimize(branching(LEAST["int64"], -1), "clean-up", verify=verify)
    (chosen,) = result.model.graph.node
    assert chosen.op_type == "If"


def test_a_whole_model_is_run_to_an_error() -> None:
    run = model_runner(load_model(branching(LEAST["int64"], -1)))
    x = np.asarray([-2, 3], np.float32)
    np.testing.assert_array_equal(run([x, np.asarray(False)])[0], [0, 1.5])
    with pytest.raises(CannotRun, match="divides integers by zero"):
        run([x, np.asarray(True)])


def test_a_division_in_a_local_function_is_an_error_too() -> None:
    model = divided("Div", "int64", 7, 0)
    body = [helper.make_node("Div", ["p", "q"], ["r"])]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("own", "Quotient", ["p", "q"], ["r"], body, opset))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].CopyFrom(helper.make_node("Quotient", ["a0", "b"], ["q"], domain="own"))
    with pytest.raises(CannotRun, match="divides integers by zero"):
        model_runner(load_model(model))([np.zeros(2, np.float32)])


class Truncated(torch.nn.Module):
    """Divides the least integer by -1: always, or in a branch that small inputs do not take."""

    def __init__(self, branching: bool) -> None:
        super().__init__()
        self.branching = branching
        self.register_buffer("least", torch.full((9,), LEAST["int64"]))
        self.register_buffer("minus", torch.full((9,), -1))

    def forward(self, x: torch.Tensor) -> Any:
        def divide(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return x + torch.div(a, b, rounding_mode="trunc")

        def keep(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return x.relu()

        if self.branching:
            return torch.cond(x.sum() > 1e9, divide, keep, (x, self.least, self.minus))
        return divide(x, self.least, self.minus)


def test_torch_is_kept_from_ending_the_process() -> None:
    result = optimize(Truncated(False), "clean-up", example_inputs=torch.zeros(9))
    assert "divides the least integer by -1" in str(result.report)
    run = model_runner(load_model(Truncated(True), example_inputs=torch.zeros(9)))
    np.testing.assert_array_equal(run([np.full(9, 2, np.float32)])[0], np.full(9, 2))
    with pytest.raises(CannotRun, match="divides the least integer by -1"):
        run([np.full(9, 1e9, np.float32)])
