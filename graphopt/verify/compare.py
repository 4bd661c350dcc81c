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
    bits = f"u{a.dtype.itemsize}"
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    other = a.view(bits) != b.view(bits)
    return not other.any() or bool(np.isnan(a[other]).all() and np.isnan(b[other]).all())


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
    ref, old, new = reference, before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(ref) & np.isfinite(old)
    ratios = [0.0]
    if not finite.all():
        apart = _apart_from_either(ref[~finite], old[~finite], new[~finite], factor * eps, loses_infinities)
        ratios.append(float(np.max(apart)))
        ref, old, new = ref[finite], old[finite], new[finite]
    if not np.isfinite(new).all():
        return float("inf")
    for norm in (_rms, _largest) if ref.size else ():
        allowed = factor * max(norm(old - ref), eps * norm(ref))
        ratios.append(_quotient(norm(new - ref), allowed))
    return float(np.max(ratios))  # a NaN among them stays


def _apart_from_either(reference: Array, old: Array, new: Array, allowed: float, loses_infinities: bool) -> Array:
    """How far each number of `new` is from what it may be where the reference and the original are not both numbers."""
    apart: Array = np.fmin(*(_apart(wanted, new, allowed) for wanted in (reference, old)))
    if loses_infinities:
        apart[~np.isfinite(reference) & ~np.isfinite(old) & np.isnan(new)] = 0.0
    return apart


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
