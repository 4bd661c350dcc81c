"""Loops that have no end for the inputs that are drawn are met as errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch._higher_order_ops import while_loop

from graphopt.compiler import optimize
from graphopt.ir.load import load_model
from graphopt.verify.endless import LONGEST, REASON
from graphopt.verify.execute import onnx_runner

node = helper.make_node


def doubling(limit: float, opset: int = 17, *, grows: bool = True) -> onnx.GraphProto:
    """v becomes 2 v, or stays |v|, as long as that is not beyond a limit."""
    return helper.make_graph(
        [
            node("Add", ["v", "v"], ["w"]) if grows else node("Abs", ["v"], ["w"]),
            node("Constant", [], ["limit"], value=numpy_helper.from_array(np.asarray([limit], np.float32))),
            node("Less", ["w", "limit"], ["c"]),
            node("Squeeze", ["c", "axes"], ["go"]) if opset >= 13 else node("Squeeze", ["c"], ["go"], axes=[0]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]),
        ],
    )


def model_of(nodes: list[onnx.NodeProto], results: list[str], opset: int = 17, **stored: Any) -> onnx.ModelProto:
    stored = {"axes": [0], "yes": True, **stored}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in results],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ran(model: onnx.ModelProto, x: float) -> float:
    main = load_model(model).main
    run = onnx_runner(main.cut(list(main.nodes()), list(main.inputs()), list(main.outputs())))
    return float(run([np.asarray([x], np.float32)])[0][0])


@pytest.mark.parametrize("opset", [8, 11, 17, 21])
def test_a_loop_without_an_end_is_an_error_and_one_with_an_end_is_not(opset: int) -> None:
    loop = node("Loop", ["", "yes", "x"], ["y"], body=doubling(100.0, opset))
    model = model_of([loop], ["y"], opset)
    assert ran(model, 3.0) == 192.0
    with pytest.raises(Exception, match=REASON):
        ran(model, 0.0)


@pytest.mark.parametrize(("times", "ends"), [(7, True), (LONGEST, True), (LONGEST + 1, False), (2**62, False)])
def test_iterations_that_are_counted_may_be_as_many_as_are_allowed(times: int, ends: bool) -> None:
    model = model_of([node("Loop", ["n", "yes", "x"], ["y"], body=doubling(1.0))], ["y"], n=times)
    if ends:
        assert ran(model, 0.0) == 0.0
    else:
        with pytest.raises(Exception, match=REASON):
            ran(model, 0.0)


@pytest.mark.parametrize("place", ["branch", "function", "loop"])
def test_a_loop_inside_of_something_is_bounded_too(place: str) -> None:
    info = helper.make_tensor_value_info
    loop = node("Loop", ["", "yes", "x"], ["y"], body=doubling(100.0))
    if place == "branch":
        inner = helper.make_graph([loop], "t", [], [info("y", TensorProto.FLOAT, [1])])
        other = helper.make_graph([node("Neg", ["x"], ["z"])], "e", [], [info("z", TensorProto.FLOAT, [1])])
        model = model_of([node("If", ["yes"], ["r"], then_branch=inner, else_branch=other)], ["r"])
    elif place == "loop":
        loop.input[2] = "a"
        body = helper.make_graph(
            [loop, node("Identity", ["on2"], ["go2"])], "outer",
            [info("j", TensorProto.INT64, []), info("on2", TensorProto.BOOL, []), info("a", TensorProto.FLOAT, [1])],
            [info("go2", TensorProto.BOOL, []), info("y", TensorProto.FLOAT, [1])],
        )  # fmt: skip
        model = model_of([node("Loop", ["n", "yes", "x"], ["r"], body=body)], ["r"], n=1)
    else:
        constants = [
            node("Constant", [], ["axes"], value=numpy_helper.from_array(np.asarray([0]))),
            node("Constant", [], ["yes"], value=numpy_helper.from_array(np.asarray(True))),
        ]
        model = model_of([node("Doubled", ["x"], ["r"], domain="own")], ["r"])
        opset = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("own", "Doubled", ["x"], ["y"], [*constants, loop], opset))
        model.opset_import.append(helper.make_opsetid("own", 1))
    assert ran(model, 3.0) == 192.0
    with pytest.raises(Exception, match=REASON):
        ran(model, 0.0)


@pytest.mark.parametrize(("ends", "evidence"), [(True, "executed"), (False, "construction")])
def test_a_branch_is_inlined_whether_or_not_its_loop_ends_for_what_is_drawn(ends: bool, evidence: str) -> None:
    info = helper.make_tensor_value_info
    loop = node("Loop", ["", "yes", "x"], ["y"], body=doubling(float("inf"), grows=ends))
    inner = helper.make_graph([loop], "t", [], [info("y", TensorProto.FLOAT, [1])])
    other = helper.make_graph([node("Neg", ["x"], ["z"])], "e", [], [info("z", TensorProto.FLOAT, [1])])
    model = model_of([node("If", ["yes"], ["r"], then_branch=inner, else_branch=other)], ["r"])
    result = optimize(model, "clean-up")
    assert [n.op_type for n in result.model.graph.node] == ["Loop"]
    (inlined,) = [a for a in result.report.applications if "branch" in a.rule]
    assert inlined.evidence.kind.replace("bit-equal", "executed") == evidence


class Counting(torch.nn.Module):
    """x + a number that is doubled, from a constant, until it is beyond 100."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.register_buffer("first", torch.tensor(first))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (found,) = while_loop(lambda v: v < 100, lambda v: (v * 2,), (self.first,))
        return x + found


def test_a_torch_loop_without_an_end_is_an_error() -> None:
    x = torch.ones(2)
    (found,) = load_model(Counting(3.0), example_inputs=x).main.run([x.numpy()])
    np.testing.assert_array_equal(found, [193.0, 193.0])
    with pytest.raises(RuntimeError, match=f"does not end within {LONGEST} iterations"):
        load_model(Counting(0.0), example_inputs=x).main.run([x.numpy()])
