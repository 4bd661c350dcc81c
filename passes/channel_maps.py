"""Maps of channels: which batch norms and constants are one, whether it may be folded, and the new weights.

In inference a batch norm is the map y = s * x + t of every channel, with s = scale / sqrt(var + eps) and
t = shift - mean * s. New weights are deferred expressions: nothing is computed before somebody needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.ir.weights import TensorRef, as_ref
from graphopt.rewrite.matcher import Name
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, any_of, const, opt
from graphopt.rewrite.rule import Match


@dataclass(frozen=True)
class Affine:
    """The map y = scale * x + shift of every channel; both of shape [C], None for 1 and for 0."""

    scale: TensorRef | None
    shift: TensorRef | None


# ---- patterns ----------------------------------------------------------------------------------------------


def batch_norm(op: PatternOps, x: Any, scale: Var, shift: Var, mean: Var, var: Var) -> OpPattern:
    """A batch norm with constant statistics, bound as `bn`. Training mode is left to `check_statistics`."""
    affine = opt(const(scale)), opt(const(shift))
    return op.batch_norm(x, *affine, const(mean), const(var), eps=any_, training=any_).named("bn")


def any_conv(op: PatternOps, x: Var, w: Var, b: Var) -> OpPattern:
    """A convolution or transposed convolution with constant weight and bias, bound as `conv`."""
    window = {"stride": any_, "pads": any_, "dilation": any_, "groups": any_}
    return any_of(  # type: ignore[return-value]
        op.conv(x, const(w), opt(const(b)), **window).named("conv"),
        op.conv_transpose(x, const(w), opt(const(b)), output_padding=any_, **window).named("conv"),
    )


def output_channels(m: Match) -> int:
    """Number of channels that the convolution `m.conv` makes."""
    if m.conv.op == "conv":
        return int(m.w.shape[0])
    return int(m.w.shape[1] * m.conv.fields["groups"])


# ---- preconditions -----------------------------------------------------------------------------------------


def check_statistics(m: Match, channels: int) -> None:
    """Refuse a batch norm that is not a finite map of `channels` channels: training mode, operands of another
    shape than [channels], var + eps that is not positive."""
    if m.bn.fields["training"]:
        m.fail("batch_norm is in training mode: its statistics are those of the batch", node=m.bn.node)
    for name in ("scale", "shift", "mean", "var"):
        data = getattr(m, name)
        if data is not None and data.shape != (channels,):
            m.fail(
                "{} of batch_norm has shape {}, expected [{}]",
                name,
                list(data.shape),
                channels,
                node=m.bn.node,
            )
    spread = m.var.numpy().astype(np.float64) + m.bn.fields["eps"]
    if not np.all((spread > 0) & np.isfinite(spread)):
        worst = int(np.argmin((spread > 0) & np.isfinite(spread)))
        m.fail("var + eps of batch_norm is {} in channel {}", spread[worst], worst, node=m.bn.node)


def check_not_shared(m: Match) -> None:
    """Refuse to change a weight that stays in the model for somebody else: the model would grow by a copy."""
    weight = m.bindings.values["w"]
    for user in m.graph.users(weight):
        if user not in m.calls:
            name, other = Name(m.graph.name(weight)), Name(m.graph.node_name(user))
            m.fail("the weight {} is shared with {}: folding would add a copy of it", name, other)
    if m.graph.is_output(weight):
        name = Name(m.graph.name(weight))
        m.fail("the weight {} is an output of the graph: folding would add a copy of it", name)


def per_channel(m: Match, value: TensorRef, channels: int, rank: int) -> TensorRef:
    """A constant that broadcasts against [N, channels, *spatial] as one number per channel, as [channels]."""
    shape = value.shape
    axis = value.ndim - rank + 1
    others = [size for i, size in enumerate(shape) if i != axis]
    own = shape[axis] if axis >= 0 else 1
    if value.ndim > rank or any(size != 1 for size in others) or own not in (1, channels):
        m.fail("a constant of shape {} is not one number for each of {} channels", list(shape), channels)
    return as_ref(np.ones(channels), value.dtype) * value.reshape(-1)


# ---- arithmetic on weights ---------------------------------------------------------------------------------


def batch_norm_map(m: Match) -> tuple[TensorRef, TensorRef]:
    """Scale and shift of the map that the batch norm `m.bn` is, both of shape [C]."""
    # eps stays in float64: in float16 it would be a subnormal number.
    deviation = (m.var + as_ref(np.float64(m.bn.fields["eps"]))).sqrt()
    scale = (as_ref(1.0, m.var.dtype) if m.scale is None else m.scale) / deviation
    shift = -(m.mean * scale) if m.shift is None else m.shift - m.mean * scale
    return scale, shift


def scale_outputs(weight: TensorRef, scale: TensorRef, *, transposed: bool, groups: int) -> TensorRef:
    """`weight` of a convolution with every output channel times its `scale`.

    The weight is [out, in / groups, *kernel], that of a transposed convolution [in, out / groups, *kernel],
    where the first axis holds one block of inputs after the other for every group.
    """
    kernel = (1,) * (weight.ndim - 2)
    if not transposed:
        return weight * scale.reshape(-1, 1, *kernel)
    blocks = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return (blocks * scale.reshape(groups, 1, weight.shape[1], *kernel)).reshape(*weight.shape)


def mapped_bias(bias: TensorRef | None, affine: Affine, channels: int, dtype: str) -> TensorRef | None:
    """`bias` after `affine`, of shape [channels] and `dtype`, that of the weight; None if it is zero."""
    terms = []
    if bias is not None:
        terms.append(bias if affine.scale is None else bias * affine.scale)
    if affine.shift is not None:
        terms.append(affine.shift)
    # An expression has the dtype of its first operand: statistics may be wider than the weight.
    return sum(terms, as_ref(np.zeros(channels), dtype)) if terms else None
