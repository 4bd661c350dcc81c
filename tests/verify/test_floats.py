"""What drawn floating-point data hold."""

import ml_dtypes
import numpy as np
import pytest

from graphopt.verify.floats import SUBNORMALS, draw_float

SIZES = [(4,), (200,), (64, 60), (3, 50_000)]


def subnormals(data: np.ndarray) -> int:
    limits = ml_dtypes.finfo("float32" if data.dtype == np.float64 else data.dtype)
    size = np.abs(data.astype(np.float64))
    return int(np.count_nonzero((size > 0) & (size < float(limits.smallest_normal))))


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_mixed_data_hold_some_subnormal_numbers_however_large_they_are(dtype, shape):
    data = draw_float(np.random.default_rng(0), shape, dtype, "mixed")
    assert data.shape == shape
    assert data.dtype.name == dtype
    assert subnormals(data) > 0
    assert subnormals(data) <= 3 * SUBNORMALS or dtype == "float16", "drawn numbers may be subnormal in float16"


@pytest.mark.parametrize("shape", SIZES[1:], ids=str)
def test_mixed_data_hold_zeros_of_both_signs_and_subnormals_of_both(shape):
    data = draw_float(np.random.default_rng(0), shape, "float32", "mixed")
    tiny = data[(np.abs(data) > 0) & (np.abs(data) < np.finfo(np.float32).smallest_normal)]
    assert {bool(s) for s in np.signbit(data[data == 0])} == {False, True}
    assert {bool(s) for s in np.signbit(tiny)} == {False, True}


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1,)], ids=str)
def test_small_and_empty_data_have_their_shape(shape):
    for kind in ("normal", "mixed", "special"):
        assert draw_float(np.random.default_rng(0), shape, "float32", kind).shape == shape
