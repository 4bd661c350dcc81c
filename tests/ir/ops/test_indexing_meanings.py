"""Gathers, scatters and quantisation mean what onnxruntime and torch compute."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.op_cases.indexing import BYTES, CASES, FLOATS, X, elements
from benchmarks.op_cases.runtimes import Case, check, int64, meaning, parameters


@pytest.mark.parametrize("case, runtime", parameters(CASES))
def test_meaning_agrees_with_runtime(case: Case, runtime: str) -> None:
    check(case, runtime)


def test_an_index_out_of_bounds_is_an_error() -> None:
    for op, indices in (
        ("gather", int64(5)),
        ("gather_elements", np.full((1, 1, 1), 5)),
        ("gather_nd", int64(5)),
    ):
        fields = {} if op == "gather_nd" else {"axis": 0}
        with pytest.raises(IndexError):
            meaning(op, X, indices, **fields)


def test_updates_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="updates"):
        meaning("scatter_elements", X, elements(0, 1, 5, 3), X[:1, :1], axis=0)
    with pytest.raises(ValueError, match="updates"):
        meaning("scatter_nd", X, np.asarray([[0], [1]]), X[:1])


def test_scattering_leaves_the_operand_alone() -> None:
    x = np.zeros(3)
    meaning("scatter_nd", x, np.asarray([[1]]), np.ones(1))
    assert x.tolist() == [0.0, 0.0, 0.0]


def test_blockwise_scales_and_float_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="scale and zero"):
        meaning("dequantize", BYTES, np.ones((2, 3, 2)), axis=1)
    with pytest.raises(ValueError, match="integer"):
        meaning("quantize", FLOATS, np.asarray(1.0), dtype="float8_e4m3fn")
