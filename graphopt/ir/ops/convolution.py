"""Ops that slide over or rearrange space: convolution, pooling, resizing, depth to space.

Tensors are [N, C, *spatial] with n = 1, 2 or 3 spatial axes. `pads` holds 2n sizes, those at the begin of
each axis first, then those at the end.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from graphopt.ir.ops import elementwise
from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.spec import Fill, op

_BLOCK = 1 << 22
"""Elements of the unfolded input that a convolution holds at a time (32 MB of float64)."""


# ---- convolution -------------------------------------------------------------------------------------------


@op()
def conv(
    d: Domain,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: Any = Fill(1),
    pads: Any = Fill(0),
    dilation: Any = Fill(1),
    groups: int = 1,
) -> Tensor:
    """y[n,m,p] = b[m] + the sum over c and k of w[m,c,k] * x[n, c, p * stride + k * dilation - pads_begin].

    A correlation: the kernel is not flipped. x[N, C, *spatial] is zero beyond its border, w[M, C / groups,
    *kernel]; output channels of a group see the input channels of that group.
    """
    windows = patches(x, w.shape[2:], stride=stride, pads=pads, dilation=dilation)
    n = len(stride)
    rows = max(1, _BLOCK * windows.shape[2] // max(1, windows.size))
    starts = range(0, max(1, windows.shape[2]), rows)
    blocks = [_correlate(d, windows[:, :, start : start + rows], w, groups, n) for start in starts]
    return _biased(blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=2), b)


@op()
def conv_transpose(
    d: Domain,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: Any = Fill(1),
    pads: Any = Fill(0),
    dilation: Any = Fill(1),
    output_padding: Any = Fill(0),
    groups: int = 1,
) -> Tensor:
    """Adjoint of conv, + b: x[n,c,p] * w[c,m,k] is added to y[n, m, p * stride + k * dilation - pads_begin].

    x[N, C, *spatial], w[C, M / groups, *kernel]; input channels of a group reach the output channels of that
    group. Size of y along each axis: (in - 1) * stride + dilation * (kernel - 1) + 1 + output_padding - pads.
    """
    batch, channels, *spatial = x.shape
    kernel, n, size = w.shape[2:], len(stride), math.prod(spatial)
    _check_not_negative(pads)
    weights = np.reshape(w, (groups, channels // groups, math.prod(w.shape[1:])))
    columns = d.matmul(np.swapaxes(weights, 1, 2), np.reshape(x, (batch, groups, channels // groups, size)))
    columns = np.reshape(columns, (batch, groups * w.shape[1], *kernel, *spatial))
    full = [
        s * (i - 1) + e * (k - 1) + 1 + o
        for i, k, s, e, o in zip(spatial, kernel, stride, dilation, output_padding, strict=True)
    ]
    y = np.zeros_like(columns, shape=(*columns.shape[:2], *full))
    for offset in np.ndindex(*kernel):
        begin = [k * e for k, e in zip(offset, dilation, strict=True)]
        place = tuple(
            slice(f, f + s * (i - 1) + 1, s) for f, i, s in zip(begin, spatial, stride, strict=True)
        )
        y[(slice(None), slice(None), *place)] += columns[(slice(None), slice(None), *offset)]
    kept = tuple(slice(pads[i], full[i] - pads[n + i]) for i in range(n))
    return _biased(y[(slice(None), slice(None), *kept)], b)


@op()
def fused_conv(
    d: Domain,
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    stride: Any = Fill(1),
    pads: Any = Fill(0),
    dilation: Any = Fill(1),
    groups: int = 1,
    activation: str,
    parameters: tuple[float, ...] = (),
) -> Tensor:
    """activation(conv(x, w, b)).

    activation with its parameters: relu, sigmoid, tanh (), leaky_relu (slope), clamp (low, high), of which the least
    and the largest float32 do not bind, hard_sigmoid (alpha, beta).
    """
    y = conv(d, x, w, b, stride=stride, pads=pads, dilation=dilation, groups=groups)
    match activation, parameters:
        case ("relu" | "sigmoid" | "tanh"), ():
            return getattr(elementwise, activation)(d, y)
        case "leaky_relu", (slope,):
            return elementwise.leaky_relu(d, y, slope=slope)
        case "clamp", (low, high):
            lowest = None if low <= -elementwise.LARGEST else d.number(low)
            return elementwise.clamp(d, y, lowest, None if high >= elementwise.LARGEST else d.number(high))
        case "hard_sigmoid", (alpha, beta):
            return elementwise.hard_sigmoid(d, y, alpha=alpha, beta=beta)
    raise ValueError(f"fused_conv: no activation {activation!r} with parameters {parameters}")


def patches(x: Tensor, kernel: Any, *, stride: Any, pads: Any, dilation: Any) -> Tensor:
    """What each output of a convolution reads: a view [N, C, *out, *kernel] of x[N, C, *spatial], padded."""
    return _windows(_padded(x, pads, 0), kernel, stride, dilation)


def _padded(x: Tensor, pads: tuple[int, ...], value: Any) -> Tensor:
    """`x` with its spatial axes padded."""
    _check_not_negative(pads)
    n = len(pads) // 2
    if not any(pads):
        return x
    return np.pad(x, ((0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)), constant_values=value)


def _check_not_negative(pads: tuple[int, ...]) -> None:
    if min(pads, default=0) < 0:
        raise ValueError(f"pads must not be negative, got {pads}")


def _windows(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """A view [N, C, *out, *kernel] of x[N, C, *spatial]."""
    extent = tuple(e * (k - 1) + 1 for k, e in zip(kernel, dilation, strict=True))
    axes = tuple(range(2, 2 + len(kernel)))
    view = np.lib.stride_tricks.sliding_window_view(x, extent, axis=axes)
    steps = (slice(None, None, s) for s in (*stride, *dilation))
    return view[(slice(None), slice(None), *steps)]


def _correlate(d: Domain, windows: Tensor, w: Tensor, groups: int, n: int) -> Tensor:
    """Contract windows[N, C, *out, *kernel] with w[M, C / groups, *kernel] to [N, M, *out]."""
    batch, channels = windows.shape[:2]
    out, kernel = windows.shape[2 : 2 + n], windows.shape[2 + n :]
    depth = channels // groups * math.prod(kernel)
    kernel_first = (0, 1, *range(2 + n, 2 + 2 * n), *range(2, 2 + n))
    columns = np.reshape(np.transpose(windows, kernel_first), (batch, groups, depth, math.prod(out)))
    y = d.matmul(np.reshape(w, (groups, w.shape[0] // groups, depth)), columns)
    return np.reshape(y, (batch, w.shape[0], *out))


def _biased(y: Tensor, b: Tensor | None) -> Tensor:
    return y if b is None else y + np.reshape(b, (-1, *[1] * (y.ndim - 2)))


# ---- pooling -----------------------------------------------------------------------------------------------


@op()
def max_pool(
    d: Domain,
    x: Tensor,
    *,
    kernel: tuple[int, ...],
    stride: Any = Fill(1),
    pads: Any = Fill(0),
    dilation: Any = Fill(1),
    ceil: bool = False,
) -> Tensor:
    """The greatest element under the kernel at each place; padding never wins.

    ceil: a last window that sticks out counts too, if it begins inside the input or its begin padding.
    """
    pooled = _padded(x, _ceil_pads(x.shape[2:], kernel, stride, pads, dilation, ceil), d.lowest(x))
    return _fold(d.maximum, pooled, kernel, stride, dilation)


@op()
def avg_pool(
    d: Domain,
    x: Tensor,
    *,
    kernel: tuple[int, ...],
    stride: Any = Fill(1),
    pads: Any = Fill(0),
    dilation: Any = Fill(1),
    ceil: bool = False,
    count_include_pad: bool = False,
) -> Tensor:
    """The mean of the elements under the kernel at each place; zeros of the padding count if
    count_include_pad.

    ceil: as for max_pool; what sticks out beyond the padding never counts.
    """
    all_pads = _ceil_pads(x.shape[2:], kernel, stride, pads, dilation, ceil)
    total = _fold(operator.add, _padded(x, all_pads, 0), kernel, stride, dilation)
    counted = np.ones((1, 1, *x.shape[2:]), dtype=np.int64)
    if count_include_pad:
        counted = _padded(counted, pads, 1)
        all_pads = tuple(a - p for a, p in zip(all_pads, pads, strict=True))
    return total / _fold(operator.add, _padded(counted, all_pads, 0), kernel, stride, dilation)


def _ceil_pads(
    spatial: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: tuple[int, ...],
    dilation: tuple[int, ...],
    ceil: bool,
) -> tuple[int, ...]:
    """`pads` with the end of each axis extended so that the last window of ceil mode fits."""
    n = len(kernel)
    ends = list(pads[n:])
    for i in range(n):
        extent = dilation[i] * (kernel[i] - 1) + 1
        span = spatial[i] + pads[i] + pads[n + i] - extent
        steps = -(-span // stride[i])
        if ceil and steps * stride[i] < spatial[i] + pads[i]:
            ends[i] += steps * stride[i] - span
    return (*pads[:n], *ends)


def _fold(
    combine: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Combine the elements under the kernel at each place, one axis after the other."""
    for i, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        axis, reach = 2 + i, spread * (size - 1)
        if x.shape[axis] <= reach:
            raise ValueError(f"a window of {reach + 1} elements does not fit into {x.shape[axis]}")
        last = (x.shape[axis] - reach - 1) // step * step
        before = (slice(None),) * axis
        parts = [x[(*before, slice(k * spread, k * spread + last + 1, step))] for k in range(size)]
        x = reduce(combine, parts)
    return x


# ---- resizing and rearranging ------------------------------------------------------------------------------


@op()
def resize(
    d: Domain,
    x: Tensor,
    *,
    sizes: tuple[int, ...] | None = None,
    scales: tuple[float, ...] | None = None,
    mode: str,
    coordinates: str,
    nearest: str | None = None,
) -> Tensor:
    """x sampled, axis by axis, at the positions of the output's elements in the input; beyond the border is
    the border.

    The output has `sizes`, else floor(in * scale) elements. Positions follow from `scales`, else from out /
    in, by `coordinates` (see _positions). mode "nearest" takes the element that `nearest` rounds to; "linear"
    interpolates between two elements, "cubic" between four (a = -0.75).
    """
    if sizes is None and scales is None:
        raise ValueError("resize: sizes or scales must be given")
    # Scales are float32 numbers in files: 1.4 of 5 elements are meant to be 7.
    out = sizes or tuple(
        int(np.float32(n) * np.float32(s)) for n, s in zip(x.shape, scales or (), strict=True)
    )
    ratios = scales or tuple(o / n if n else 1.0 for o, n in zip(out, x.shape, strict=True))
    for axis, (size, ratio) in enumerate(zip(out, ratios, strict=True)):
        if ratio != 1.0 or size != x.shape[axis]:
            x = _resample(x, axis, _positions(coordinates, size, x.shape[axis], ratio), mode, nearest)
    return x


def _positions(coordinates: str, out: int, size: int, scale: float) -> Tensor:
    """Where in an axis of `size` elements the `out` elements of the result lie."""
    i = np.arange(out, dtype=np.float64)
    match coordinates:
        case "half_pixel":
            return (i + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return (i + 0.5) / scale - 0.5 if out > 1 else 0.0 * i
        case "asymmetric":
            return i / scale
        case "align_corners":
            return i * (size - 1) / (out - 1) if out > 1 else 0.0 * i
    raise ValueError(f"resize: unknown coordinates {coordinates!r}")


def _resample(x: Tensor, axis: int, position: Tensor, mode: str, nearest: str | None) -> Tensor:
    last = x.shape[axis] - 1
    match mode:
        case "nearest":
            return np.take(x, np.clip(_rounded(position, nearest), 0, last).astype(np.int64), axis=axis)
        case "linear":
            position = np.clip(position, 0, last)
            base = np.floor(position)
            weights = _linear_weights(position - base)
        case "cubic":
            base = np.floor(position) - 1
            weights = _cubic_weights(position - np.floor(position))
        case _:
            raise ValueError(f"resize: unknown mode {mode!r}")
    shape = (-1, *[1] * (x.ndim - axis - 1))
    taps = [
        np.take(x, np.clip(base + k, 0, last).astype(np.int64), axis=axis) * np.reshape(weight, shape)
        for k, weight in enumerate(weights)
    ]
    return reduce(operator.add, taps)


def _rounded(position: Tensor, nearest: str | None) -> Tensor:
    match nearest:
        case "round_prefer_floor":
            return np.ceil(position - 0.5)
        case "round_prefer_ceil":
            return np.floor(position + 0.5)
        case "floor":
            return np.floor(position)
        case "ceil":
            return np.ceil(position)
    raise ValueError(f"resize: unknown rounding {nearest!r} for mode 'nearest'")


def _linear_weights(t: Tensor) -> list[Tensor]:
    return [1 - t, t]


def _cubic_weights(t: Tensor) -> list[Tensor]:
    """Keys' cubic convolution kernel at the distances 1 + t, t, 1 - t and 2 - t."""
    a = -0.75
    near = [((a + 2) * u - (a + 3)) * u * u + 1 for u in (t, 1 - t)]
    far = [((a * u - 5 * a) * u + 8 * a) * u - 4 * a for u in (1 + t, 2 - t)]
    return [far[0], *near, far[1]]


@op()
def depth_to_space(d: Domain, x: Tensor, *, block: int, mode: str = "DCR") -> Tensor:
    """x[N, C, H, W] to [N, C / block^2, H * block, W * block]; the place in the block is the outer part of
    the channel ("DCR") or the inner one ("CRD", torch's pixel_shuffle)."""
    batch, channels, height, width = x.shape
    depth = channels // (block * block)
    match mode:
        case "DCR":
            split, perm = (batch, block, block, depth, height, width), (0, 3, 4, 1, 5, 2)
        case "CRD":
            split, perm = (batch, depth, block, block, height, width), (0, 1, 4, 2, 5, 3)
        case _:
            raise ValueError(f"depth_to_space: mode must be 'DCR' or 'CRD', got {mode!r}")
    return np.reshape(np.transpose(np.reshape(x, split), perm), (batch, depth, height * block, width * block))


@op()
def space_to_depth(d: Domain, x: Tensor, *, block: int) -> Tensor:
    """The inverse of depth_to_space in mode "DCR": x[N, C, H, W] to [N, C * block^2, H / block, W /
    block]."""
    batch, channels, height, width = x.shape
    h, w = height // block, width // block
    split = np.reshape(x, (batch, channels, h, block, w, block))
    return np.reshape(np.transpose(split, (0, 3, 5, 1, 2, 4)), (batch, channels * block * block, h, w))
