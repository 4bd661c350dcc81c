"""Affine quantisation: integers that stand for (x - zero) * scale.

`scale` and `zero` (absent for 0) are scalars, or vectors along `axis`.
"""

from __future__ import annotations

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.spec import op
from graphopt.ir.weights import numpy_dtype


@op()
def dequantize(
    d: Domain, x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int | None = None
) -> Tensor:
    """(x - zero) * scale, real."""
    y = d.cast(x, "float64")
    y = y if zero is None else y - d.cast(_aligned(zero, x, axis), "float64")
    return y * _aligned(scale, x, axis)


@op()
def quantize(
    d: Domain, x: Tensor, scale: Tensor, zero: Tensor | None = None, *, axis: int | None = None, dtype: str
) -> Tensor:
    """round(x / scale) + zero, clamped to the range of the integer dtype; halves round to even."""
    low, high = _range(dtype)
    y = d.round(x / _aligned(scale, x, axis))
    y = y if zero is None else y + d.cast(_aligned(zero, x, axis), "float64")
    return d.cast(d.minimum(d.maximum(y, low), high), dtype)


def _range(dtype: str) -> tuple[int, int]:
    import ml_dtypes

    if not dtype.startswith(("int", "uint")):
        raise ValueError(f"quantize: dtype must be an integer, got {dtype}")
    info = ml_dtypes.iinfo(numpy_dtype(dtype))
    return int(info.min), int(info.max)


def _aligned(v: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """`v` shaped so that it broadcasts along `axis` of `x`."""
    expected = () if axis is None else (x.shape[axis],)
    if v.size != 1 and v.shape != expected:
        raise ValueError(f"expected scale and zero of shape {expected}, got {v.shape}")
    return np.reshape(v, () if axis is None or v.size == 1 else (-1, *[1] * (x.ndim - axis - 1)))
