"""Comparing results: bits, or errors against float64 in units of what a contract allows.

Every comparison is written so that a NaN fails it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.ir.weights import FLOATS, Array

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def bit_equal(a: Array, b: Array) -> bool:
    """Same dtype, shape and bits; any NaN equals any NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.name not in FLOATS:
        return bool(np.array_equal(a, b))
    both_nan = np.isnan(a.astype(np.float64)) & np.isnan(b.astype(np.float64))
    bits = f"u{a.dtype.itemsize}"
    same = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    return bool(np.all(same | both_nan))


def mismatch(before: Sequence[Array], after: Sequence[Array]) -> str | None:
    """Why two sets of results differ in kind: count, dtype or shape."""
    if len(before) != len(after):
        return f"{len(before)} results became {len(after)}"
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        if a.dtype != b.dtype:
            return f"result {i} was {a.dtype.name} and became {b.dtype.name}"
        if a.shape != b.shape:
            return f"result {i} had shape {list(a.shape)} and now has {list(b.shape)}"
    return None


def rounding_ratio(
    reference: Array, before: Array, after: Array, eps: float, factor: float, *, loses_infinities: bool = False
) -> float:
    """Error of `after` as a multiple of what `Rounding(factor)` allows; inf where it is not finite and should be.

    `reference` is the float64 result. Where it and the original are not both numbers, the original's own error is no
    yardstick: there the rewrite must be what one of the two is, NaN, the same infinity, or that number up to rounding.
    Where neither is a number, one that `loses_infinities`, as a sum that is divided does, may be NaN.
    """
    old, new = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(reference) & np.isfinite(old)
    if not np.all(np.isfinite(new[finite])):
        return float("inf")
    one_of_two = np.fmin(*(_apart(wanted[~finite], new[~finite], factor * eps) for wanted in (reference, old)))
    if loses_infinities:
        neither = ~np.isfinite(reference[~finite]) & ~np.isfinite(old[~finite])
        one_of_two[neither & np.isnan(new[~finite])] = 0.0
    worst = float(np.max(one_of_two, initial=0.0))
    ref, old, new = reference[finite], old[finite], new[finite]
    if ref.size == 0:
        return worst
    ratios = [worst]
    for norm in (_rms, _largest):
        allowed = factor * max(norm(old - ref), eps * norm(ref))
        ratios.append(_quotient(norm(new - ref), allowed))
    return max(ratios)


def _apart(wanted: Array, found: Array, allowed: float) -> Array:
    """0 where both are NaN or the same; the error as a multiple of what is `allowed` of the largest number that is
    wanted where both are numbers; else inf."""
    numbers = np.isfinite(wanted)
    scale = np.max(np.abs(wanted[numbers]), initial=0.0)
    same = (wanted == found) | (np.isnan(wanted) & np.isnan(found))
    with np.errstate(all="ignore"):
        errors = np.where(numbers & np.isfinite(found), np.abs(found - wanted) / (allowed * scale), np.inf)
    return np.where(same, 0.0, errors)


def relative_error(reference: Array, value: Array) -> float:
    """Largest of rms and maximum error, relative to the same norm of `reference`, over its finite part.

    inf if anything else differs.
    """
    finite = np.isfinite(reference)
    if value.shape != reference.shape or not np.isfinite(value[finite]).all():
        return float("inf")
    if not np.array_equal(reference[~finite], value[~finite], equal_nan=True):
        return float("inf")
    ref, val = reference[finite], value[finite]
    if ref.size == 0:
        return 0.0
    return max(_quotient(norm(val - ref), norm(ref)) for norm in (_rms, _largest))


def _quotient(error: float, allowed: float) -> float:
    if error == 0.0:
        return 0.0
    return error / allowed if allowed > 0.0 else float("inf")


def _rms(x: Array) -> float:
    scale = float(np.max(np.abs(x)))
    return 0.0 if scale == 0.0 else scale * float(np.sqrt(np.mean(np.square(x / scale))))


def _largest(x: Array) -> float:
    return float(np.max(np.abs(x)))
