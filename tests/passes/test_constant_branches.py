"""Constant conditions: the branch that is always taken is written in the place of its If."""

from __future__ import annotations

import numpy as np
import pytest
from clean_up_graphs import assert_same_results, clean, kept_rules, onnx_model, op_types

X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)
BRANCHES = """
    y = If (c) <
        then_branch = yes () => (float[3, 4] p) {
            two = Constant <value = float {2}> ()
            a = Mul(x, two)
            p = Add(a, w)
        },
        else_branch = no () => (float[3, 4] q) { q = Neg(x) }
    >
"""
WEIGHT = "float[4] w = {1, 2, 3, 4}"


@pytest.mark.parametrize(("condition", "expected"), [(1, ["Mul", "Add", "Sub"]), (0, ["Neg", "Sub"])])
def test_the_branch_taken_replaces_the_if(condition: int, expected: list[str]) -> None:
    model = onnx_model(
        f"agraph (float[3, 4] x) => (float[3, 4] z) <bool c = {{{condition}}}, {WEIGHT}>{{ {BRANCHES} z = Sub(y, w) }}"
    )
    result = clean(model)
    assert op_types(result.model) == expected
    assert kept_rules(result)["inline-constant-branch"] == 1
    assert len(result.model.graph.initializer) == (2 if condition else 1)
    assert_same_results(model, result.model, {"x": X})


def test_an_output_of_the_if_keeps_its_name() -> None:
    model = onnx_model(f"agraph (float[3, 4] x) => (float[3, 4] y) <bool c = {{1}}, {WEIGHT}> {{ {BRANCHES} }}")
    result = clean(model)
    assert op_types(result.model) == ["Mul", "Add"]
    assert_same_results(model, result.model, {"x": X})


def test_a_condition_that_depends_on_the_run_keeps_the_if() -> None:
    model = onnx_model(f"agraph (float[3, 4] x, bool c) => (float[3, 4] y) <{WEIGHT}> {{ {BRANCHES} }}")
    result = clean(model)
    assert op_types(result.model) == ["If"]
    for condition in (True, False):
        assert_same_results(model, result.model, {"x": X, "c": np.asarray(condition)})


def test_a_branch_with_random_numbers_keeps_the_if() -> None:
    model = onnx_model("""
        agraph (float[3, 4] x) => (float[3, 4] y) <bool c = {1}> {
            y = If (c) <
                then_branch = yes () => (float[3, 4] p) { p = RandomNormalLike(x) },
                else_branch = no () => (float[3, 4] q) { q = Neg(x) }
            >
        }
    """)
    assert op_types(clean(model).model) == ["If"]


@pytest.mark.parametrize("keep", [0, 1])
def test_an_if_that_lacks_a_branch_is_left_alone(keep: int) -> None:
    model = onnx_model(
        f"agraph (float[3, 4] x) => (float[3, 4] z) <bool c = {{1}}, {WEIGHT}>{{ {BRANCHES} z = Sub(y, w) }}"
    )
    (node,) = [n for n in model.graph.node if n.op_type == "If"]
    del node.attribute[1 - keep]
    assert "If" in op_types(clean(model).model)
