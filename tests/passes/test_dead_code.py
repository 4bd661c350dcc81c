"""Dead code: what nobody reads goes in one application, what has effects or a name stays."""

from __future__ import annotations

import time

from clean_up_graphs import Sketch, applications, clean, onnx_model, op_types

from graphopt.passes.dead_code import find_dead


def test_a_chain_that_nobody_reads_goes_at_once() -> None:
    model = onnx_model("""
        agraph (float[N, 3] x) => (float[N, 3] y) {
            y = Relu(x)
            a = Sigmoid(x)
            b = Tanh(a)
            c = Exp(b)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Relu"]
    (application,) = applications(result)
    assert (application.rule, application.status, len(application.nodes)) == ("dead-code", "kept", 3)
    assert application.evidence.kind == "construction"


def test_one_read_output_keeps_a_node() -> None:
    model = onnx_model("""
        agraph (float[4, 6] x) => (float[4, 3] b) {
            a, b = Split <axis = 1, num_outputs = 2> (x)
        }
    """)
    assert op_types(clean(model).model) == ["Split"]


def test_random_numbers_and_what_they_read_stay() -> None:
    model = onnx_model("""
        agraph (float[4, 6] x) => (float[4, 6] y) {
            y = Relu(x)
            a = Sigmoid(x)
            b = RandomNormalLike(a)
        }
    """)
    assert sorted(op_types(clean(model).model)) == ["RandomNormalLike", "Relu", "Sigmoid"]


def test_a_value_read_only_inside_a_body_is_alive() -> None:
    model = onnx_model("""
        agraph (bool c, float[3] x) => (float[3] y) {
            a = Sigmoid(x)
            y = If (c) <
                then_branch = yes () => (float[3] p) { p = Neg(a) },
                else_branch = no () => (float[3] q) { q = Neg(x) }
            >
        }
    """)
    assert op_types(clean(model).model) == ["Sigmoid", "If"]


def test_dead_nodes_inside_a_body_go() -> None:
    model = onnx_model("""
        agraph (bool c, float[3] x) => (float[3] y) {
            y = If (c) <
                then_branch = yes () => (float[3] p) { unused = Exp(x) p = Neg(x) },
                else_branch = no () => (float[3] q) { q = Abs(x) }
            >
        }
    """)
    body = clean(model).model.graph.node[0].attribute[0].g
    assert [n.op_type for n in body.node] == ["Neg"]


def test_time_grows_with_the_number_of_nodes() -> None:
    def seconds(count: int) -> float:
        sketch = Sketch()
        value = sketch.x
        for _ in range(count):
            value = sketch.add("relu", value)
        sketch.result(sketch.x)
        started = time.process_time()
        assert len(find_dead(sketch.graph)) == count
        return time.process_time() - started

    seconds(100)
    assert seconds(16000) < 16 * max(seconds(4000), 0.002)
