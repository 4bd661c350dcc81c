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


NESTED = """
    y = If (c) <
        then_branch = yes () => (p) {
            two = Constant <value = float {2}> ()
            a = Mul(x, two)
            p = If (d) <
                then_branch = deep () => (r) { three = Mul(two, two) r = Add(a, three) },
                else_branch = flat () => (s) { s = Mul(x, w) }
            >
        },
        else_branch = no () => (q) { q = Neg(x) }
    >
"""


def test_a_branch_with_control_flow_is_inlined_with_what_its_bodies_capture() -> None:
    model = onnx_model(
        f"agraph (float[3, 4] x, bool d) => (float[3, 4] z) <bool c = {{1}}, {WEIGHT}>{{ {NESTED} z = Sub(y, w) }}"
    )
    result = clean(model)
    assert op_types(result.model) == ["Mul", "If", "Sub"]
    assert kept_rules(result)["inline-constant-branch"] == 1
    for condition in (True, False):
        assert_same_results(model, result.model, {"x": X, "d": np.asarray(condition)})


def test_a_branch_that_reads_something_of_unknown_rank_is_inlined() -> None:
    """Nothing can be drawn for it, so that the copy is compared with the branch instead."""
    squeezed = """
        u = If (d) <
            then_branch = one () => (e) { first = Constant <value_ints = [0]> () e = Squeeze(t, first) },
            else_branch = other () => (f) { f = Identity(t) }
        >
    """
    model = onnx_model(
        f"agraph (float[1, 3, 4] t, bool d) => (float[3, 4] z) <bool c = {{1}}, {WEIGHT}>"
        f"{{ {squeezed} {NESTED.replace('x', 'u')} z = Sub(y, w) }}"
    )
    result = clean(model)
    assert op_types(result.model) == ["If", "Mul", "If", "Sub"]
    (inlined,) = [a for a in result.report.kept if a.rule == "inline-constant-branch"]
    assert inlined.evidence.kind == "construction"
    assert_same_results(model, result.model, {"t": X[None], "d": np.asarray(True)})


def test_a_copied_body_is_found_by_the_next_pass() -> None:
    """Its regions are new: an identity within it goes too."""
    model = onnx_model(
        f"agraph (float[3, 4] x, bool d) => (float[3, 4] z) <bool c = {{1}}, {WEIGHT}>"
        f"{{ {NESTED.replace('r = Add(a, three)', 'n = Neg(three) m = Neg(n) r = Add(a, m)')} z = Sub(y, w) }}"
    )
    result = clean(model)
    (inner,) = [n for n in result.model.graph.node if n.op_type == "If"]
    assert "Neg" not in {n.op_type for a in inner.attribute for n in a.g.node}
    assert_same_results(model, result.model, {"x": X, "d": np.asarray(True)})
