"""Reductions, running sums and selections mean what onnxruntime and torch compute."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.op_cases.reduction import CASES, X
from benchmarks.op_cases.runtimes import Case, check, meaning, parameters


@pytest.mark.parametrize("case, runtime", parameters(CASES))
def test_meaning_agrees_with_runtime(case: Case, runtime: str) -> None:
    check(case, runtime)


def test_reductions_of_nothing_give_the_identity() -> None:
    empty = np.zeros((2, 0))
    assert meaning("reduce_max", empty, axes=(1,), keepdims=False)[0].tolist() == [-np.inf, -np.inf]
    assert meaning("reduce_min", empty, axes=(1,), keepdims=False)[0].tolist() == [np.inf, np.inf]
    assert meaning("reduce_prod", empty, axes=(1,), keepdims=False)[0].tolist() == [1.0, 1.0]
    assert np.isnan(meaning("reduce_mean", empty, axes=(0, 1), keepdims=False)[0])


def test_topk_counts_nan_as_greatest() -> None:
    values, index = meaning("topk", np.asarray([1.0, np.nan, 3.0]), k=2, axis=0)
    assert index.tolist() == [1, 2]
    assert np.isnan(values[0]) and values[1] == 3.0


def test_topk_of_more_than_there_is_is_refused() -> None:
    with pytest.raises(ValueError, match="k = 6 of 5"):
        meaning("topk", X, k=6, axis=2)
