"""Graphs as text, data and Graphviz source, on scratch graphs with raw nodes and bodies added."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from graphopt.ir.graph import Call, Graph, Literal, TensorType, Unreadable
from graphopt.ir.scratch import ScratchGraph, ScratchNode, ScratchValue
from graphopt.ir.text import graph_dict, graph_dot, graph_text, model_dict, model_text
from graphopt.ir.weights import ArrayRef


class RawGraph(ScratchGraph):
    """A scratch graph with nodes outside of the vocabulary, some with bodies."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: dict[ScratchNode, Call] = {}
        self.bodies: dict[ScratchNode, Sequence[Graph]] = {}

    def append_raw(
        self, name: str, *operands: Any, bodies: Sequence[Graph] = (), **fields: Any
    ) -> ScratchValue:
        output: ScratchValue = self.append("identity", operands[0])
        node = output.producer
        assert node is not None
        self.raw[node] = Call(node, name, operands, fields, (output,))
        self.bodies[node] = bodies
        return output

    def call(self, node: Any) -> Call | Unreadable:
        return Unreadable("not in the vocabulary") if node in self.raw else super().call(node)

    def raw_call(self, node: Any) -> Call:
        return self.raw[node] if node in self.raw else super().raw_call(node)

    def raw_name(self, node: Any) -> str:
        return self.raw_call(node).op

    def subgraphs(self, node: Any) -> Sequence[Graph]:
        return self.bodies.get(node, ())


class SeveralLines:
    def __str__(self) -> str:
        return "one\n  two\n"


def tensor(*shape: int | str | None) -> TensorType:
    return TensorType("float32", shape)


def sample() -> RawGraph:
    graph = RawGraph()
    x = graph.add_input(tensor("batch", 3, 8, 8), "x")
    w = ArrayRef(np.zeros((4, 3, 3, 3), np.float32))
    fields = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1)}
    y = graph.append("conv", x, w, types=[tensor("batch", 4, 8, 8)], **fields)
    y = graph.append("mul", y, ArrayRef(np.array(0.1, np.float32)))
    y = graph.append("add", y, Literal(2.0, "float32"))
    a, b = graph.append("split", y, sizes=(2, 2), axis=1, types=[tensor(None, 2, 8, 8), None])
    z = graph.append_raw("ai.onnx::LSTM", b, None, hidden_size=4, direction="forward")
    graph.add_output(a)
    graph.add_output(z)
    return graph


def test_text_has_one_line_a_node_in_the_vocabulary_where_it_can_be_read():
    assert graph_text(sample()) == (
        "input %x : float32[batch,3,8,8]\n"
        "const %c_1 : float32[4,3,3,3]\n"
        "const %c_4 : float32[] = 0.1\n"
        "%v_3 = conv(%x, %c_1, _) {pads=(1,1,1,1)} : float32[batch,4,8,8] @conv_2\n"
        "%v_6 = mul(%v_3, %c_4) : ? @mul_5\n"
        "%v_8 = add(%v_6, 2.0:float32) : ? @add_7\n"
        "%v_10, %v_11 = split(%v_8) {axis=1 sizes=(2,2)} : float32[?,2,8,8], ? @split_9\n"
        '%v_13 = ai.onnx::LSTM(%v_11, _) {direction="forward" hidden_size=4} : ? @identity_12\n'
        "output %v_10 : float32[?,2,8,8]\n"
        "output %v_13 : ?\n"
    )


def test_text_is_the_same_for_two_graphs_made_alike():
    assert graph_text(sample()) == graph_text(sample())
    assert json.dumps(graph_dict(sample())) == json.dumps(graph_dict(sample()))
    assert graph_dot(sample()) == graph_dot(sample())


def test_a_node_named_as_its_output_is_not_named_twice():
    graph = ScratchGraph()
    value = graph.append("relu", graph.add_input(tensor(2), "x"))
    value.name = value.producer.name
    assert graph_text(graph).splitlines()[1] == "%relu_1 = relu(%x) : ?"


def test_odd_names_are_quoted():
    graph = ScratchGraph()
    graph.append("relu", graph.add_input(tensor(2), 'a "name", with = signs'))
    assert 'relu(%"a \\"name\\", with = signs")' in graph_text(graph)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "none"),
        (True, "true"),
        (3, "3"),
        (0.1, "0.1"),
        (float("nan"), "nan"),
        ("two words\n", '"two words\\n"'),
        ((1, (2.5, "a"), None), '(1,(2.5,"a"),none)'),
        ([1, 2], "(1,2)"),
        (tuple(range(100)), "(0,1,2,3,4,5,6,7,... 100 in all)"),
        ("x" * 1000, f'"{"x" * 60}... 1000 characters"'),
        (b"123", "<3 bytes>"),
        (np.zeros((2, 3), np.int64), "int64[2,3]"),
        (ArrayRef(np.zeros((4,), np.float32)), "float32[4]"),
        (object(), "<object>"),
        (np.dtype("float32"), "float32"),
        (ScratchGraph(), "<ScratchGraph>"),
        (SimpleNamespace(outputs=[]), "<SimpleNamespace>"),
        (SeveralLines(), "one two"),
    ],
)
def test_fields_of_any_type_are_short_and_stable(value, shown):
    graph = RawGraph()
    graph.append_raw("my::Op", graph.add_input(tensor(1), "x"), field=value)
    assert graph_text(graph).splitlines()[1] == f"%v_2 = my::Op(%x) {{field={shown}}} : ? @identity_1"
    json.dumps(graph_dict(graph), allow_nan=False)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (np.array([1, -1], np.int64), "int64[2] = [1, -1]"),
        (np.array([[0.1]], np.float64), "float64[1,1] = [0.1]"),
        (np.array(True), "bool[] = True"),
        (np.zeros((0,), np.float32), "float32[0] = []"),
        (np.zeros((3, 3), np.float32), "float32[3,3]"),
    ],
)
def test_small_constants_show_their_value(data, shown):
    graph = ScratchGraph()
    graph.append("relu", ArrayRef(data))
    assert graph_text(graph).splitlines()[0] == f"const %c_1 : {shown}"


def with_bodies() -> RawGraph:
    """An If whose first branch adds a weight to an outer value, and whose second returns an outer value."""
    graph = RawGraph()
    condition = graph.add_input(TensorType("bool", ()), "condition")
    outer = graph.append("relu", graph.add_input(tensor(3), "x"))
    outer.name = "outer"
    weight = ScratchValue("weight", tensor(9), ArrayRef(np.zeros(9, np.float32)))
    first, second = ScratchGraph(), ScratchGraph()
    inner = first.append("add", outer, weight)
    inner.name = "inner"
    first.add_output(inner)
    second.add_output(outer)
    graph.add_output(graph.append_raw("ai.onnx::If", condition, bodies=[first, second]))
    return graph


def test_bodies_are_indented_and_list_only_what_is_theirs():
    lines = graph_text(with_bodies()).splitlines()
    start = next(i for i, line in enumerate(lines) if "ai.onnx::If" in line)
    assert lines[start + 1 : -1] == [
        "  body 0",
        "    const %weight : float32[9]",
        "    %inner = add(%outer, %weight) : ? @add_1",
        "    output %inner : ?",
        "  body 1",
        "    output %outer : ?",
    ]


def test_a_value_from_nowhere_is_state():
    graph = ScratchGraph()
    graph.append("relu", ScratchValue("running_mean", tensor(4)))
    assert graph_text(graph).splitlines()[0] == "state %running_mean : float32[4]"


def test_dict_is_json_and_complete():
    data = json.loads(json.dumps(graph_dict(sample()), allow_nan=False))
    assert data["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
    assert [c["name"] for c in data["constants"]] == ["c_1", "c_4"]
    conv, _, add, split, lstm = data["nodes"]
    assert conv["operands"] == ["x", "c_1", None]
    assert conv["fields"] == {"dilation": [1, 1], "groups": 1, "pads": [1, 1, 1, 1], "stride": [1, 1]}
    assert add["operands"] == ["v_6", {"literal": 2.0, "dtype": "float32"}]
    assert split["outputs"][1] == {"name": "v_11", "dtype": None, "shape": None}
    assert (lstm["op"], lstm["raw"], lstm["name"]) == ("ai.onnx::LSTM", "ai.onnx::LSTM", "identity_12")
    assert [o["name"] for o in data["outputs"]] == ["v_10", "v_13"]


def test_dict_holds_bodies():
    node = graph_dict(with_bodies())["nodes"][-1]
    assert [b["outputs"][0]["name"] for b in node["bodies"]] == ["inner", "outer"]
    assert node["bodies"][0]["constants"][0]["name"] == "weight"


def edges(dot: str) -> set[tuple[str, str]]:
    labels = dict(re.findall(r'^ +(\w+) \[.*label="(\w+)', dot, re.MULTILINE))
    return {(labels[a], labels[b]) for a, b in re.findall(r"(\w+) -> (\w+)", dot)}


def test_dot_has_a_box_a_node_and_an_edge_an_operand():
    dot = graph_dot(sample())
    assert dot.startswith("digraph {") and dot.endswith("}\n")
    assert edges(dot) == {
        ("x", "conv"),
        ("conv", "mul"),
        ("mul", "add"),
        ("add", "split"),
        ("split", "ai"),
        ("split", "v_10"),
        ("ai", "v_13"),
    }


def test_dot_draws_bodies_as_clusters_reached_from_outside():
    dot = graph_dot(with_bodies())
    assert dot.count("subgraph cluster_") == 2
    assert ("relu", "add") in edges(dot)
    assert dot.count("{") == dot.count("}")


def model(*regions: Graph) -> Any:
    return SimpleNamespace(storage="onnx", main=regions[0], regions=lambda: list(regions))


def test_a_model_is_its_main_graph_and_its_functions_and_no_body_twice():
    main = with_bodies()
    bodies = [b for group in main.bodies.values() for b in group]
    function = ScratchGraph()
    function.add_output(function.append("tanh", function.add_input(tensor(1), "y")))
    text = model_text(model(main, *bodies, function))
    assert re.findall(r"^\S.*$", text, re.MULTILINE) == [
        "main (scratch, 2 nodes)",
        "function 1 (scratch, 1 nodes)",
    ]
    assert text.count("%inner = add") == 1
    assert graph_text(main) in text.replace("\n  ", "\n").split("\n", 1)[1]
    data = model_dict(model(main, *bodies, function))
    assert data["storage"] == "onnx"
    assert [n["op"] for n in data["main"]["nodes"]] == ["relu", "ai.onnx::If"]
    assert [[n["op"] for n in f["nodes"]] for f in data["functions"]] == [["tanh"]]


def chain(length: int) -> ScratchGraph:
    graph = ScratchGraph()
    value = graph.add_input(tensor(4), "x")
    for _ in range(length):
        value = graph.append("relu", value, types=[tensor(4)])
    graph.add_output(value)
    return graph


def seconds(length: int) -> float:
    graph = chain(length)
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        graph_text(graph)
        best = min(best, time.process_time() - started)
    return best


def test_time_is_linear_in_the_number_of_nodes():
    assert seconds(16_000) < 8 * seconds(4_000)
