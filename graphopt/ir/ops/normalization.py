"""Normalisations: shift to mean 0, scale to variance 1 (biased, over n), or to sum 1.

`scale` and `shift` are the learned affine map, absent for 1 and 0.
"""

from __future__ import annotations

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.reduction import reduce_mean
from graphopt.ir.ops.spec import op


@op()
def batch_norm(
    d: Domain,
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    *,
    eps: float,
    training: bool = False,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * scale + shift, per channel (axis 1), with the given mean and var.

    training: with the mean and biased variance of x itself, over all axes but 1. The running statistics are
    no output.
    """
    if mean is None or var is None:
        raise ValueError("batch_norm: mean and var must be given")
    if training:
        y = _standardize(d, x, (0, *range(2, x.ndim)), eps)
    else:
        y = (x - _channels(mean, x)) / d.sqrt(_channels(var, x) + eps)
    return _affine(y, scale, shift)


@op()
def instance_norm(
    d: Domain, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, eps: float
) -> Tensor:
    """x[N, C, *spatial] standardised over the spatial axes, * scale[C] + shift[C]."""
    return _affine(_standardize(d, x, tuple(range(2, x.ndim)), eps), scale, shift)


@op()
def group_norm(
    d: Domain, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, *, groups: int, eps: float
) -> Tensor:
    """x[N, C, *spatial] standardised over the spatial axes and C / groups consecutive channels, * scale[C] +
    shift[C]."""
    batch, channels, *spatial = x.shape
    grouped = np.reshape(x, (batch, groups, channels // groups, *spatial))
    y = _standardize(d, grouped, tuple(range(2, grouped.ndim)), eps)
    return _affine(np.reshape(y, x.shape), scale, shift)


@op()
def layer_norm(
    d: Domain,
    x: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    axis: int,
    eps: float,
) -> Tensor:
    """x standardised over the axes from `axis` (negative) to the last, * scale + shift of the shape of these
    axes."""
    y = _standardize(d, x, _trailing(x, axis), eps)
    y = y if scale is None else y * scale
    return y if shift is None else y + shift


@op()
def rms_norm(d: Domain, x: Tensor, scale: Tensor | None = None, *, axis: int, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * scale, the mean over the axes from `axis` (negative) to the last."""
    y = x / d.sqrt(reduce_mean(d, x * x, axes=_trailing(x, axis), keepdims=True) + eps)
    return y if scale is None else y * scale


@op()
def softmax(d: Domain, x: Tensor, *, axis: int) -> Tensor:
    """exp(x) / sum(exp(x)) along axis."""
    weights = d.exp(_shifted(d, x, axis))
    return weights / np.sum(weights, axis=axis, keepdims=True)


@op()
def log_softmax(d: Domain, x: Tensor, *, axis: int) -> Tensor:
    """x - log(sum(exp(x))) along axis."""
    shifted = _shifted(d, x, axis)
    return shifted - d.log(np.sum(d.exp(shifted), axis=axis, keepdims=True))


def _shifted(d: Domain, x: Tensor, axis: int) -> Tensor:
    """x with its greatest element along `axis` at 0: the same softmax without overflow."""
    return x - d.reduce_max(x, (axis,), True)


def _standardize(d: Domain, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - reduce_mean(d, x, axes=axes, keepdims=True)
    return centred / d.sqrt(reduce_mean(d, centred * centred, axes=axes, keepdims=True) + eps)


def _trailing(x: Tensor, axis: int) -> tuple[int, ...]:
    if not -x.ndim <= axis < 0:
        raise ValueError(f"axis must be between {-x.ndim} and -1, got {axis}")
    return tuple(range(x.ndim + axis, x.ndim))


def _channels(v: Tensor, x: Tensor) -> Tensor:
    """v[C] shaped so that it broadcasts along axis 1 of `x`."""
    if v.shape != (x.shape[1],):
        raise ValueError(f"expected one value for each of {x.shape[1]} channels, got shape {v.shape}")
    return np.reshape(v, (-1, *[1] * (x.ndim - 2)))


def _affine(y: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    y = y if scale is None else y * _channels(scale, y)
    return y if shift is None else y + _channels(shift, y)
