"""What results of XLA may differ by from those of another runtime: rounding, and nothing else.

Bound: 256 eps of the largest value of the result, eps that of its dtype and at most float32's, and 4 eps of a dtype
with fewer bits than float32; integers, booleans, infinities and NaNs have to be the same.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from graphopt.ir.weights import FLOATS

FACTOR = 256
"""Times eps of the largest value: what sums over a few thousand terms in another order may differ by."""
FINAL = 4
"""Times eps of a dtype of fewer bits than float32, in which results are rounded while sums are float32."""
SINGLE = float(np.finfo(np.float32).eps)


def difference(expected: Any, got: Any, least: float = 0.0) -> str | None:
    """In what the array `got` differs from `expected` beyond the bound; None if in nothing. Dtypes are the caller's to
    compare; the bound is that of the dtype of `expected`, and its largest value counts as `least` at least."""
    if expected.shape != got.shape:
        return f"sizes {got.shape}, expected {expected.shape}"
    if expected.size == 0:
        return None
    is_complex = expected.dtype.kind == "c"
    if not (is_complex or expected.dtype.name in FLOATS):
        wrong = int(np.sum(expected != got.astype(expected.dtype)))
        return f"{wrong} of {expected.size} numbers" if wrong else None
    kind = np.complex128 if is_complex else np.float64
    a, b = expected.astype(kind), got.astype(kind)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "infinities or NaNs elsewhere"
    scale = float(np.max(np.abs(a[finite]), initial=least))
    worst = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    eps = float(ml_dtypes.finfo(expected.dtype).eps)
    allowed = (FACTOR * min(eps, SINGLE) + (FINAL * eps if eps > SINGLE else 0)) * scale
    return None if worst <= allowed else f"by {worst:.3g}, allowed {allowed:.3g}"
