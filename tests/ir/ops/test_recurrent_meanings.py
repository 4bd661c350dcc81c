"""Recurrent layers mean what onnxruntime and torch compute."""

from __future__ import annotations

import pytest

from benchmarks.op_cases.recurrent import CASES
from benchmarks.op_cases.runtimes import Case, check, parameters


@pytest.mark.parametrize("case, runtime", parameters(CASES))
def test_meaning_agrees_with_runtime(case: Case, runtime: str) -> None:
    check(case, runtime)
