"""Ops of which shape inference ends the process where the type of an input is not known are left out of it."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

import graphopt

value, node = helper.make_tensor_value_info, helper.make_node


@pytest.mark.parametrize("in_function", [False, True])
@pytest.mark.parametrize(
    ("domain", "op", "attributes"),
    [("ai.onnx.ml", "DictVectorizer", {"string_vocabulary": ["a"]}), ("", "RegexFullMatch", {"pattern": "a"})],
)
def test_input_of_unknown_type(op: str, domain: str, attributes, in_function: bool):
    nodes = [node("Unheard", ["x"], ["u"], domain="local"), node(op, ["u"], ["v"], domain=domain, **attributes)]
    opsets = [helper.make_opsetid(d, v) for d, v in (("", 20), ("ai.onnx.ml", 1), ("local", 1))]
    function = helper.make_function("local", "F", ["x"], ["v"], nodes, opsets)
    inner = [node("F", ["x"], ["v"], domain="local")] if in_function else nodes
    ends = [node("Identity", ["x"], ["i"]), node("Relu", ["i"], ["z"])]
    outputs = [onnx.ValueInfoProto(name="v"), value("z", TensorProto.FLOAT, [2])]
    graph = helper.make_graph([*inner, *ends], "graph", [value("x", TensorProto.FLOAT, [2])], outputs)
    functions = [function] if in_function else []
    proto = helper.make_model(graph, ir_version=9, opset_imports=opsets, functions=functions)
    assert [a.id for a in graphopt.optimize(proto).report.kept] == ["clean-up/remove-identity#1"]
