"""Normalisations and softmax mean what onnxruntime and torch compute."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.op_cases.normalization import CASES, EPS, MEAN, SCALE, SHARP, SHIFT, VAR, X
from benchmarks.op_cases.runtimes import Case, check, meaning, parameters


@pytest.mark.parametrize("case, runtime", parameters(CASES))
def test_meaning_agrees_with_runtime(case: Case, runtime: str) -> None:
    check(case, runtime, elementwise=case.op.endswith("softmax"))


@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_softmax_of_nan_is_nan_in_its_row_only(op: str) -> None:
    (y,) = meaning(op, SHARP, axis=1)
    assert np.isnan(y[2]).all()
    assert not np.isnan(y[:2]).any()


def test_batch_norm_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="mean and var"):
        meaning("batch_norm", X, SCALE, SHIFT, eps=EPS)


def test_statistics_that_do_not_fit_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="6 channels"):
        meaning("batch_norm", X, SCALE, SHIFT, MEAN[:1], VAR[:1], eps=EPS)


def test_a_non_negative_layer_norm_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="axis"):
        meaning("layer_norm", X, axis=1, eps=EPS)
