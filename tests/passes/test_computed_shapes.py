"""Shape arithmetic: what types tell becomes constant, what depends on a run stays."""

from __future__ import annotations

import numpy as np
import pytest
from clean_up_graphs import Sketch, applications, assert_same_results, clean, onnx_model, op_types
from onnx import numpy_helper

from graphopt.ir.weights import ArrayRef
from graphopt.passes.shape_values import ShapeValues, Size


def check(body: str, expected: list[str], *shapes: tuple[int, ...]) -> None:
    """Clean up, compare the ops that are left, and the results for inputs of each shape."""
    model = onnx_model(body)
    result = clean(model)
    assert all(a.evidence.counts for a in applications(result) if a.status == "kept")
    assert op_types(result.model) == expected
    for shape in shapes:
        data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        assert_same_results(model, result.model, {"x": data})


def test_arithmetic_on_static_sizes_disappears() -> None:
    check(
        """
        agraph (float[2, 3, 4] x) => (float[2, 6, 2] y)
        <int64 one = {1}, int64 two = {2}, int64[1] zero = {0}, int64[1] half = {2}, int64[1] first = {2}> {
            s = Shape(x)
            d = Gather(s, one)
            e = Mul(d, two)
            f = Unsqueeze(e, zero)
            t = Concat <axis = 0> (first, f, half)
            y = Reshape(x, t)
        }
        """,
        ["Reshape"],
        (2, 3, 4),
    )


def test_a_known_axis_of_a_partly_unknown_shape_becomes_constant() -> None:
    check(
        """
        agraph (float[N, 3] x) => (float[N, 3] y) <int64 one = {1}> {
            s = Shape(x)
            d = Gather(s, one)
            f = Cast <to = 1> (d)
            y = Mul(x, f)
        }
        """,
        ["Mul"],
        (5, 3),
    )


def test_an_unknown_axis_is_still_asked_for() -> None:
    check(
        """
        agraph (float[N, 3] x) => (float[N, 3] y) <int64 zero = {0}> {
            s = Shape(x)
            d = Gather(s, zero)
            f = Cast <to = 1> (d)
            y = Mul(x, f)
        }
        """,
        ["Shape", "Gather", "Cast", "Mul"],
        (5, 3),
    )


RESHAPE = """
    agraph (float[N, M, 12] x) => (float[A, B, C, D] y)
    <int64 i = {0}, int64 j = {1}, int64[1] zero = {0}, int64[1] three = {3}, int64[1] four = {4},
     int64[1] rest = {-1}> {
        s = Shape(x)
        n = Gather(s, i)
        m = Gather(s, j)
        n1 = Unsqueeze(n, zero)
        m1 = Unsqueeze(m, zero)
        t = Concat <axis = 0> (%s)
        y = Reshape(x, t)
    }
"""


@pytest.mark.parametrize("target", ["n1, m1, three, four", "n1, rest, three, four", "n1, three, m1, four"])
def test_a_target_that_copies_sizes_becomes_constant_or_stays_right(target: str) -> None:
    shapes = [(2, 5, 12), (1, 7, 12), (4, 1, 12)]
    settled = "n1, three, m1" not in target
    kept = ["Reshape"] if settled else ["Shape", "Gather", "Gather", "Unsqueeze", "Unsqueeze", "Concat", "Reshape"]
    model = onnx_model(RESHAPE % target)
    result = clean(model)
    if settled:
        assert op_types(result.model) == kept
    for shape in shapes:
        data = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        assert_same_results(model, result.model, {"x": data})


def test_contents_are_followed_through_arithmetic() -> None:
    sketch = Sketch(shape=("N", 3, 4))
    vector, scalar = ("int64", (3,)), ("int64", ())
    shape = sketch.add("shape", sketch.x, type=vector)
    three = sketch.add("gather", shape, ArrayRef(np.asarray(1)), axis=0, type=scalar)
    six = sketch.add("mul", three, ArrayRef(np.asarray(2)), type=scalar)
    unknown = sketch.add("gather", shape, ArrayRef(np.asarray(0)), axis=0, type=scalar)
    same = sketch.add("mul", unknown, ArrayRef(np.asarray(1)), type=scalar)
    other = sketch.add("add", unknown, ArrayRef(np.asarray(1)), type=scalar)
    is_open = sketch.add("equal", shape, ArrayRef(np.asarray([-1, -1, -1])), type=("bool", (3,)))
    values = ShapeValues(sketch.graph)
    assert values.content(shape).tolist() == [Size("N"), 3, 4]
    assert values.content(six).tolist() == 6
    assert values.content(same).tolist() == Size("N")
    assert values.computed(other) is None
    assert values.content(is_open).tolist() == [False, False, False]


def test_an_inferred_size_becomes_the_number_that_the_sizes_leave() -> None:
    body = """
        agraph (float[N, 6, 4] x) => (float[A, 3, 4] y)
        <int64 i = {0}, int64 two = {2}, int64[1] zero = {0}, int64[1] three = {3}, int64[1] rest = {-1}> {
            s = Shape(x)
            n = Gather(s, i)
            m = Mul(n, two)
            m1 = Unsqueeze(m, zero)
            t = Concat <axis = 0> (m1, three, rest)
            y = Reshape(x, t)
        }
    """
    check(body, ["Reshape"], (1, 6, 4), (5, 6, 4))
    (target,) = clean(onnx_model(body)).model.graph.initializer
    assert numpy_helper.to_array(target).tolist() == [-1, 3, 4]


def test_a_wrong_declaration_of_an_output_is_not_believed() -> None:
    model = onnx_model("""
        agraph (float[N, 6, 4] x) => (float[1, L] y)
        <int64 i = {0}, int64[1] zero = {0}, int64[1] three = {3}, int64[1] eight = {8}> {
            s = Shape(x)
            n = Gather(s, i)
            n1 = Unsqueeze(n, zero)
            t = Concat <axis = 0> (n1, three, eight)
            y = Reshape(x, t)
        }
    """)
    result = clean(model)
    assert_same_results(model, result.model, {"x": np.ones((2, 6, 4), np.float32)})


def test_a_target_that_the_caller_gives_is_not_known() -> None:
    model = onnx_model("""
        agraph (float[N, 4] x, int64[2] t) => (float[2, L] y) { y = Reshape(x, t) }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Reshape"]
    assert result.model.graph.node[0].input[1] == "t"


def test_an_expand_to_sizes_that_the_operand_has_disappears() -> None:
    check(
        """
        agraph (float[N, 4] x) => (float[N, 4] y) {
            s = Shape(x)
            a = Expand(x, s)
            y = Relu(a)
        }
        """,
        ["Relu"],
        (1, 4),
        (3, 4),
    )
