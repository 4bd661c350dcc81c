"""The comparison that decides whether an optimised model is right."""

import numpy as np
import pytest

from benchmarks.compare import compare
from graphopt.tools.manifest import Tolerance

TOLERANCE = Tolerance(rtol=1e-3, atol=1e-4)
REFERENCE = np.array([100.0, 1.0, -50.0], np.float32)


def test_the_error_is_relative_to_the_largest_value():
    found = compare([REFERENCE + np.float32(0.05)], [REFERENCE], TOLERANCE)
    assert found.equal
    assert found.error == pytest.approx(5e-4, rel=1e-3)


def test_an_error_beyond_the_tolerance_is_told():
    found = compare([REFERENCE, REFERENCE + np.float32(0.2)], [REFERENCE, REFERENCE], TOLERANCE)
    assert not found.equal
    assert "output 1: error 0.2, allowed 0.1" in found.reason


@pytest.mark.parametrize(("error", "equal"), [(0.9e-4, True), (1.1e-4, False)])
def test_small_outputs_are_judged_by_the_absolute_tolerance(error, equal):
    reference = np.zeros(4, np.float32)
    assert compare([reference + np.float32(error)], [reference], TOLERANCE).equal is equal


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_equals_only_itself(value):
    broken = REFERENCE.copy()
    broken[1] = value
    assert compare([broken], [broken], TOLERANCE).equal
    assert not compare([broken], [REFERENCE], TOLERANCE).equal
    assert not compare([REFERENCE], [broken], TOLERANCE).equal


def test_integers_and_booleans_must_be_the_same():
    for reference in (np.array([10_000, 1]), np.array([True, False])):
        assert compare([reference], [reference], TOLERANCE).equal
        assert not compare([reference[::-1]], [reference], TOLERANCE).equal


def test_another_dtype_shape_or_number_of_outputs_is_not_equal():
    found = compare([REFERENCE.astype(float)], [REFERENCE], TOLERANCE)
    assert not found.equal
    assert "float64[3] instead of float32[3]" in found.reason
    assert not compare([REFERENCE[None]], [REFERENCE], TOLERANCE).equal
    assert not compare([], [REFERENCE], TOLERANCE).equal


def test_empty_outputs_are_equal():
    empty = np.zeros((0, 4), np.float32)
    assert compare([empty], [empty], TOLERANCE).equal
