"""Identity rules on scratch graphs: each removes what it says, and nothing that differs by one
precondition.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from clean_up_graphs import Sketch

from graphopt.ir.weights import ArrayRef
from graphopt.passes import identities
from graphopt.passes.identities import holds


def constant(value: Any, dtype: str = "float64", shape: tuple[int, ...] = ()) -> ArrayRef:
    return ArrayRef(np.full(shape, value, dtype))


def apply(sketch: Sketch, value: Any) -> tuple[list[str], list[str]]:
    """Ops that are left, and rules that were kept; every application carries evidence."""
    applied = sketch.result(value).run_rules(identities.RULES)
    assert all(a.status == "kept" and a.evidence.counts for a in applied), applied
    return sketch.ops(), [a.rule for a in applied]


@pytest.mark.parametrize(
    ("op", "value", "dtype", "rule"),
    [
        ("add", 0, "int64", "add-zero"),
        ("add", -0.0, "float64", "add-zero"),
        ("add", 0.0, "float64", "add-float-zero"),
        ("sub", 0, "int32", "subtract-zero"),
        ("sub", 0.0, "float64", "subtract-zero"),
        ("mul", 1, "int64", "multiply-by-one"),
        ("mul", 1.0, "float64", "multiply-by-one"),
        ("div", 1.0, "float64", "divide-by-one"),
        ("pow", 1.0, "float64", "power-of-one"),
    ],
)
def test_neutral_constant_is_removed(op: str, value: float, dtype: str, rule: str) -> None:
    sketch = Sketch(dtype)
    assert apply(sketch, sketch.add(op, sketch.x, constant(value, dtype))) == ([], [rule])


@pytest.mark.parametrize(
    ("op", "value"), [("add", 1.0), ("mul", 0.0), ("sub", -0.0), ("div", 2.0), ("pow", 2.0)]
)
def test_other_constants_stay(op: str, value: float) -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add(op, sketch.x, constant(value))) == ([op], [])


def test_exact_rule_does_not_add_positive_zero_to_floats() -> None:
    sketch = Sketch()
    sketch.result(sketch.add("add", sketch.x, constant(0.0)))
    assert sketch.run_rules([identities.AddZero]) == []


def test_constant_on_the_left_of_a_commutative_op_is_removed() -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add("mul", constant(1.0), sketch.x)) == ([], ["multiply-by-one"])


def test_constant_on_the_left_of_a_difference_stays() -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add("sub", constant(0.0), sketch.x)) == (["sub"], [])


def test_one_that_broadcasts_stays() -> None:
    sketch = Sketch(shape=(1, 3))
    value = sketch.add("mul", sketch.x, constant(1.0, shape=(5, 3)), type=("float64", (5, 3)))
    assert apply(sketch, value) == (["mul"], [])


def test_one_that_adds_an_axis_stays() -> None:
    sketch = Sketch(shape=(3,))
    value = sketch.add("mul", sketch.x, constant(1.0, shape=(1, 1)), type=("float64", (1, 3)))
    assert apply(sketch, value) == (["mul"], [])


def test_floor_division_of_floats_by_one_stays() -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add("div", sketch.x, constant(1.0), rounding="floor")) == (["div"], [])


@pytest.mark.parametrize(("op", "dtype"), [("neg", "float64"), ("neg", "int32"), ("logical_not", "bool")])
def test_involution_disappears(op: str, dtype: str) -> None:
    sketch = Sketch(dtype)
    ops, rules = apply(sketch, sketch.add(op, sketch.add(op, sketch.x)))
    assert (ops, len(rules)) == ([], 1)


@pytest.mark.parametrize("op", ["relu", "abs", "floor", "ceil", "round"])
def test_idempotent_op_happens_once(op: str) -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add(op, sketch.add(op, sketch.add(op, sketch.x))))[0] == [op]


def test_identity_disappears() -> None:
    sketch = Sketch()
    assert apply(sketch, sketch.add("identity", sketch.x)) == ([], ["remove-identity"])


def test_cast_to_own_type_disappears() -> None:
    sketch = Sketch("float64")
    value = sketch.add("cast", sketch.x, dtype="float64")
    assert apply(sketch, value) == ([], ["cast-to-same-type"])


@pytest.mark.parametrize(
    ("source", "middle"),
    [("int8", "int32"), ("uint8", "int16"), ("int16", "float32"), ("bool", "int64")],
)
def test_cast_to_a_wider_type_and_back_disappears(source: str, middle: str) -> None:
    sketch = Sketch(source)
    inner = sketch.add("cast", sketch.x, dtype=middle, type=(middle, (2, 3, 4)))
    ops, rules = apply(sketch, sketch.add("cast", inner, dtype=source))
    assert (ops, rules) == ([], ["cast-through-wider"])


def test_casts_through_a_wider_type_become_one() -> None:
    sketch = Sketch("int8")
    inner = sketch.add("cast", sketch.x, dtype="int64", type=("int64", (2, 3, 4)))
    value = sketch.add("cast", inner, dtype="float32", type=("float32", (2, 3, 4)))
    assert apply(sketch, value) == (["cast"], ["cast-through-wider"])


@pytest.mark.parametrize(("source", "middle"), [("int32", "int8"), ("int64", "float32"), ("int8", "uint8")])
def test_cast_through_a_narrower_type_stays(source: str, middle: str) -> None:
    sketch = Sketch(source)
    inner = sketch.add("cast", sketch.x, dtype=middle, type=(middle, (2, 3, 4)))
    assert apply(sketch, sketch.add("cast", inner, dtype=source)) == (["cast", "cast"], [])


@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("float32", "int16", True),
        ("float32", "int32", False),
        ("float16", "uint8", True),
        ("bfloat16", "int8", True),
        ("bfloat16", "float16", False),
        ("uint16", "int8", False),
        ("int16", "uint8", True),
        ("int8", "uint8", False),
        ("float64", "int32", True),
        ("int8", "bool", True),
        ("int64", "float32", False),
    ],
)
def test_which_dtypes_hold_which(wide: str, narrow: str, expected: bool) -> None:
    assert holds(wide, narrow) is expected
