"""Where the original or its float64 meaning is no number, a rewrite is what one of them is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from planted import Maker
from test_mutations import apply

import graphopt
from graphopt.ir.convert import from_scratch
from graphopt.ir.weights import as_ref, numpy_dtype
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import opt
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify.compare import EPS, bit_equal, relative_error, rounding_ratio

INF, NAN = float("inf"), float("nan")
LARGEST = float(np.finfo(np.float32).max)


def ratio(reference: float, before: float, after: float) -> float:
    """Beside a number that all agree on."""
    sides = [np.array([1.0, value]) for value in (reference, before, after)]
    return rounding_ratio(*sides, EPS["float32"], 8.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_bits_are_equal_but_for_those_of_nan(dtype: str) -> None:
    made = numpy_dtype(dtype)
    a = np.array([[1.0, -0.0, NAN], [INF, 3.0, 0.0]]).astype(made)
    negative_nan = np.copysign(a, -1)
    assert bit_equal(a, a.copy()) and bit_equal(a.T, np.asfortranarray(a).T)
    assert bit_equal(a[:1, 2], negative_nan[:1, 2]) and a[0, 2].tobytes() != negative_nan[0, 2].tobytes()
    for place, value in (((0, 0), NAN), ((0, 1), 0.0), ((0, 2), 1.0), ((1, 0), -INF), ((1, 1), 3.5)):
        other = a.copy()
        other[place] = value
        assert not bit_equal(a, other)
    assert bit_equal(a[0, 0], a[0, 0].copy()) and not bit_equal(np.array(a[0, 0]), np.array(a[1, 1]))
    assert bit_equal(a[:0], a[:0]) and not bit_equal(a, a.astype(np.float64 if dtype != "float64" else np.float32))


def test_an_error_that_overflows_is_no_agreement() -> None:
    largest = float(np.finfo(np.float64).max)
    with np.errstate(over="ignore", invalid="ignore"):
        found = rounding_ratio(*(np.array([v]) for v in (largest, largest, -largest)), EPS["float64"], 8.0)
        assert not found <= 1.0
        found = rounding_ratio(*(np.array([v]) for v in (largest, -largest, -largest)), EPS["float64"], 8.0)
        assert not found <= 1.0


@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_what_is_no_number_stays_the_same(value: float) -> None:
    assert ratio(value, value, value) == 0.0
    assert all(ratio(value, value, v) == INF for v in (INF, -INF, NAN, 0.0, LARGEST) if str(v) != str(value))


@pytest.mark.parametrize(("reference", "before"), [(3.0, INF), (INF, 3.0), (NAN, 3.0), (3.0, NAN)])
def test_where_one_is_a_number_the_rewrite_is_one_of_both(reference: float, before: float) -> None:
    assert ratio(reference, before, reference) == 0.0
    assert ratio(reference, before, before) == 0.0
    assert ratio(reference, before, 3.0 * (1 + EPS["float32"])) == pytest.approx(1 / 8)
    assert all(ratio(reference, before, wrong) > 1.0 for wrong in (3.1, 0.0, -3.0, -INF))


def test_an_overflow_may_become_another_way_of_not_being_a_number_only_if_the_meaning_is() -> None:
    assert ratio(NAN, INF, NAN) == 0.0
    assert ratio(NAN, INF, INF) == 0.0
    assert ratio(NAN, INF, -INF) == INF


def instead_of_large(value: float) -> Rule:
    """What it reads, and `value` where that is beyond 1e30."""

    class Wrong:
        def pattern(self, op, x, low, high):
            return op.clamp(x, opt(low), opt(high))

        def rewrite(self, m, build):
            large = build.greater(build.abs(m.x, like=m.out), as_ref(1e30, "float32"))
            return build.where(large, as_ref(value, "float32"), build.neg(build.neg(m.x, like=m.out)), like=m.out)

    return rule(contract=Rounding(), name="wrong")(Wrong)


@pytest.mark.parametrize("value", [5.0, 1e38, NAN])
def test_a_bound_that_makes_a_number_of_an_infinity_is_kept(value: float) -> None:
    """Before opset 11 an absent bound of Clip is the largest float32, which is no number's bound."""
    node = helper.make_node("Clip", ["x"], ["y"])
    types = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [60, 60]) for name in "xy"]
    graph = helper.make_graph([node], "g", [types[0]], [types[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8)
    onnx.checker.check_model(model)
    (application,) = apply(graphopt.load(model).main, instead_of_large(value)).applications
    assert application.status == "undone" and "on special inputs" in application.reason, application


def mirrored(value: Any) -> Rule:
    """abs(x), and `value` for an infinity."""

    class Wrong:
        def pattern(self, op, x):
            return op.abs(x)

        def rewrite(self, m, build):
            found = build.abs(m.x, like=m.out)
            return build.where(build.greater(found, as_ref(1e30, "float32")), as_ref(value, "float32"), found)

    return rule(contract=Rounding(), name="wrong")(Wrong)


@pytest.mark.parametrize("storage", ["onnx", "fx"])
def test_an_infinity_keeps_its_sign_and_does_not_become_nan(storage: str) -> None:
    for value, status in ((-INF, "undone"), (NAN, "undone"), (INF, "kept")):
        m = Maker("float32")
        graph = from_scratch(m.done(m.add("neg", m.add("abs", m.input(9, 9), shape=(9, 9)), shape=(9, 9))), storage)
        (application, *_) = apply(graph.main, mirrored(value)).applications
        assert application.status == status, (value, application)


def test_errors_relative_to_float64_count_infinities_by_their_sign() -> None:
    given = np.array([1.0, INF, NAN])
    assert relative_error(given, given) == 0.0
    assert all(relative_error(given, np.array([1.0, *rest])) == INF for rest in ((-INF, NAN), (NAN, NAN), (INF, INF)))
