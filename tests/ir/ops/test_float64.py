"""The domain of real numbers in double precision."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Domain, Float64

d = Float64()


def test_the_domain_is_complete() -> None:
    declared = {n for n in (*vars(Domain), *Domain.__annotations__) if not n.startswith("_")}
    assert len(declared) > 40
    assert declared <= set(vars(Float64))


def test_erf_is_accurate_to_the_last_bits() -> None:
    x = np.concatenate(
        [np.linspace(-7, 7, 20001), np.linspace(-0.5, 0.5, 5001), [0.46875, 1e-300, 1e300, -6.0]]
    )
    exact = np.asarray([math.erf(v) for v in x])
    assert np.max(np.abs(d.erf(x) - exact)) < 5e-16
    nonzero = exact != 0
    assert np.max(np.abs(d.erf(x)[nonzero] / exact[nonzero] - 1)) < 1e-15


def test_erf_keeps_zeros_infinities_and_nan() -> None:
    y = d.erf(np.asarray([0.0, -0.0, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(y, [0.0, -0.0, 1.0, -1.0, np.nan])
    assert np.signbit(y[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_casts_between_floats_do_not_round_by_default(dtype: str) -> None:
    x = np.asarray([1 / 3, 1e-9, 1e300])
    y = d.cast(x, dtype)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize(
    "dtype, numpy_type",
    [
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("float32", np.float32),
        ("float64", np.float64),
    ],
)
def test_casts_between_floats_round_on_demand(dtype: str, numpy_type: Any) -> None:
    x = np.asarray([1 / 3, -2.7, 1e-3])
    y = Float64(round_casts=True).cast(x, dtype)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, x.astype(numpy_type).astype(np.float64))


def test_casts_to_float8_follow_the_same_rule() -> None:
    x = np.asarray([0.3])
    assert d.cast(x, "float8_e4m3fn")[0] == 0.3
    assert Float64(round_casts=True).cast(x, "float8_e4m3fn")[0] == 0.3125


def test_casts_to_integers_truncate_and_wrap() -> None:
    assert d.cast(np.asarray([-1.9, 1.9, 300.0]), "int8").tolist() == [-1, 1, 44]
    assert d.cast(np.asarray([300, -1]), "uint8").tolist() == [44, 255]
    assert d.cast(np.asarray([-7.9, 6.5]), "int4").dtype == ml_dtypes.int4
    assert d.cast(np.asarray([2.0**63]), "uint64").tolist() == [2**63]


def test_numbers_keep_their_kind() -> None:
    integers, truths = np.asarray([1, 2], np.int32), np.asarray([True, False])
    assert OPS["add"].meaning(d, integers, integers).dtype == np.int32
    assert OPS["relu"].meaning(d, integers).dtype == np.int32
    assert OPS["clamp"].meaning(d, integers, np.int32(0)).dtype == np.int32
    assert OPS["reduce_sum"].meaning(d, integers, axes=(0,), keepdims=True).dtype == np.int32
    assert OPS["concat"].meaning(d, truths, truths, axis=0).dtype == np.bool_
    assert d.full((2,), 1, "float16").dtype == d.full((2,), 1, "float8_e5m2").dtype == np.float64
    assert d.full((2,), 1, "int8").dtype == np.int8


def test_a_python_scalar_is_an_operand() -> None:
    x = np.asarray([-1.0, 2.0])
    assert OPS["add"].meaning(d, x, 1).tolist() == [0.0, 3.0]
    assert OPS["where"].meaning(d, x > 0, x, 0.0).tolist() == [0.0, 2.0]
    assert OPS["clamp"].meaning(d, x, 0, None).tolist() == [0.0, 2.0]


def test_integer_division_rounds_as_asked_at_the_ends_of_the_range() -> None:
    x = np.asarray([-(2**63), 2**63 - 1, -7, 7])
    assert d.trunc_divide(x, np.asarray(2)).tolist() == [-(2**62), 2**62 - 1, -3, 3]
    assert d.floor_divide(x, np.asarray(2)).tolist() == [-(2**62), 2**62 - 1, -4, 3]
