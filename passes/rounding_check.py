"""How results of a changed program are judged by `Rounding`, and what is said where they cannot be had."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.ir.weights import FLOATS, Array
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence, Rounding
from graphopt.verify.compare import EPS, rounding_ratio


def worst_ratio(
    reference: Sequence[Array], before: Sequence[Array], after: Sequence[Array], *, what: str, where: str, runs: int
) -> float:
    """The largest error of a result, as a multiple of what is allowed around its float64 `reference`; what is no float
    has to be the same.

    Args:
        what: what a result is called in the reason.
        where: of which row and request they are.
        runs: how many have been run, this one included.

    Raises:
        Rejected: more than is allowed, or another shape or dtype.
    """
    worst = 0.0
    for index, (exact, old, new) in enumerate(zip(reference, before, after, strict=True)):
        ratio = _ratio(exact, old, new)
        worst = max(worst, ratio)
        if not ratio <= 1.0:
            reason = f"{what} {index} at {where} has {ratio:.3g} times the error that {Rounding()} allows"
            raise Rejected(reason, Evidence("executed", runs, ratio))
    return worst


def _ratio(exact: Array, old: Array, new: Array) -> float:
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if old.dtype.name in FLOATS:
        return rounding_ratio(exact, old, new, EPS[old.dtype.name], Rounding().factor)
    return 0.0 if np.array_equal(old, new) else float("inf")


def cannot_run(error: Exception) -> Rejected:
    """What a check says when `error` kept it from running."""
    reason = str(error).strip().splitlines()[0][:300] if str(error) else type(error).__name__
    return Rejected(f"cannot be run to compare: {reason}", Evidence("none"))
