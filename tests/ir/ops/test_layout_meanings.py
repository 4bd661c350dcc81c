"""Layout ops mean what onnxruntime and torch compute."""

from __future__ import annotations

import pytest

from benchmarks.op_cases.layout import CASES, X
from benchmarks.op_cases.runtimes import Case, check, int64, meaning, parameters


@pytest.mark.parametrize("case, runtime", parameters(CASES))
def test_meaning_agrees_with_runtime(case: Case, runtime: str) -> None:
    check(case, runtime)


def test_a_shape_given_twice_or_never_is_refused() -> None:
    for operands, fields in (([X], {}), ([X, int64(24)], {"shape": (24,)})):
        with pytest.raises(ValueError, match="exactly one"):
            meaning("reshape", *operands, **fields)


def test_split_sizes_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="add up"):
        meaning("split", X, sizes=(1, 2), axis=2)


def test_squeezing_an_axis_that_is_not_1_is_refused() -> None:
    with pytest.raises(ValueError):
        meaning("squeeze", X, axes=(1,))
