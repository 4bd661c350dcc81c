"""Evaluating weight expressions a block of rows at a time, so that no float64 copy of a large weight exists as a
whole where its rows do not depend on each other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from graphopt.ir.weights import FLOATS, Array, Deferred, TensorRef

BLOCK = 1 << 20
"""Numbers that are evaluated at once, unless a single row has more."""
ELEMENTWISE = frozenset(
    {"add", "sub", "mul", "div", "neg", "sqrt", "rsqrt", "exp", "abs", "reciprocal", "maximum", "minimum", "pow"}
)


def evaluated(ref: TensorRef, dtype: np.dtype[Any]) -> Array:
    """The value of `ref`, computed in float64 if it is floating-point, and rounded once, to `dtype`."""
    with np.errstate(all="ignore"):
        if ref.size <= BLOCK or not is_rowwise(ref):
            return np.asarray(_whole(ref)).astype(dtype).reshape(ref.shape)
        result = np.empty(ref.shape, dtype)
        step = max(1, BLOCK // math.prod(ref.shape[1:]))
        for start in range(0, len(result), step):
            result[start : start + step] = rows(ref, start, min(start + step, len(result)))
        return result


def rows(ref: TensorRef, start: int, stop: int) -> Array:
    """Rows of a rowwise expression or of a stored tensor, in float64 if it is floating-point."""
    if not isinstance(ref, Deferred):
        part = ref.rows(start, stop)
        return part.astype(np.float64, copy=False) if ref.dtype in FLOATS else part
    if ref.op == "reshape":
        return rows(ref.operands[0], start, stop).reshape(stop - start, *ref.shape[1:])
    from graphopt.ir.ops import OPS
    from graphopt.ir.ops.domain import Float64

    operands = [rows(o, start, stop) if _has_rows_of(o, ref) else _whole(o) for o in ref.operands]
    return np.asarray(OPS[ref.op].meaning(Float64(), *operands, **ref.fields))


def is_rowwise(ref: TensorRef) -> bool:
    """Whether row i of the result depends on row i alone of every operand that has as many rows.

    An operand of another kind is evaluated anew for every block, so it has to be small.
    """
    if not isinstance(ref, Deferred):
        return True
    if ref.ndim == 0 or ref.size == 0:
        return False
    if ref.op == "reshape":
        return _keeps_rows(ref) and is_rowwise(ref.operands[0])
    small = [o.size <= BLOCK and not _has_rows_of(o, ref) for o in ref.operands]
    follows = [_has_rows_of(o, ref) and is_rowwise(o) for o in ref.operands]
    return ref.op in ELEMENTWISE and any(follows) and all(s or f for s, f in zip(small, follows, strict=True))


def _keeps_rows(reshape: Deferred) -> bool:
    operand = reshape.operands[0]
    return operand.ndim > 0 and operand.shape[0] == reshape.shape[0]


def _has_rows_of(operand: TensorRef, result: TensorRef) -> bool:
    """Whether the first axis of `operand` is that of `result` and no broadcast one."""
    return operand.ndim == result.ndim and operand.shape[0] == result.shape[0]


def _whole(ref: TensorRef) -> Array:
    from graphopt.ir.ops.domain import Float64

    return np.asarray(ref.evaluate(_stored, Float64()))


def _stored(ref: TensorRef) -> Array:
    array = ref.numpy()
    return array.astype(np.float64, copy=False) if ref.dtype in FLOATS else array
