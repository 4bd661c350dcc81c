"""Folding what follows (or precedes) a convolution or linear layer into its weights.

In inference a batch norm is the affine map y = s * x + t of every channel, with s = scale / sqrt(var + eps)
and t = shift - mean * s. A convolution is linear, so s goes into its weight and t into its bias: s * (w * x +
b) + t = (s * w) * x + (s * b + t).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.errors import PipelineError
from graphopt.ir.graph import Value
from graphopt.ir.weights import TensorRef, as_ref
from graphopt.passes.conv_activation import ACTIVATION_RULES, FUSED_CONV
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, any_of, const, opt
from graphopt.rewrite.rule import Match, Rule, rule

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context
    from graphopt.rewrite.builder import Builder


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


def any_linear(op: PatternOps, x: Any, w: Var, b: Var) -> OpPattern:
    """A linear layer or a product with a constant matrix, bound as `linear`."""
    return any_of(  # type: ignore[return-value]
        op.linear(x, const(w), opt(const(b)), trans_w=any_).named("linear"),
        op.matmul(x, const(w)).named("linear"),
    )


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
            name, other = m.graph.name(weight), m.graph.node_name(user)
            m.fail("the weight {} is shared with {}: folding would add a copy of it", name, other)
    if m.graph.is_output(weight):
        m.fail(
            "the weight {} is an output of the graph: folding would add a copy of it", m.graph.name(weight)
        )


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


def batch_norm_map(m: Match) -> Affine:
    """The map that the batch norm `m.bn` is."""
    # eps stays in float64: in float16 it would be a subnormal number.
    deviation = (m.var + as_ref(np.float64(m.bn.fields["eps"]))).sqrt()
    scale = (as_ref(1.0, m.var.dtype) if m.scale is None else m.scale) / deviation
    shift = -(m.mean * scale) if m.shift is None else m.shift - m.mean * scale
    return Affine(scale, shift)


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


# ---- behind a convolution ----------------------------------------------------------------------------------


def output_channels(m: Match) -> int:
    """Number of channels that the convolution `m.conv` makes."""
    if m.conv.op == "conv":
        return int(m.w.shape[0])
    return int(m.w.shape[1] * m.conv.fields["groups"])


class ConvThenMap:
    """conv(x, w, b) followed by an affine map of its channels is conv(x, s * w, s * b + t)."""

    def affine(self, m: Match) -> Affine:
        """The map that follows; refuses the match if it is none."""
        raise NotImplementedError

    def check(self, m: Match) -> None:
        if self.affine(m).scale is not None:
            check_not_shared(m)

    def rewrite(self, m: Match, build: Builder) -> Value:
        affine, channels, weight = self.affine(m), output_channels(m), m.w
        if affine.scale is not None:
            transposed = m.conv.op == "conv_transpose"
            weight = scale_outputs(
                weight, affine.scale, transposed=transposed, groups=m.conv.fields["groups"]
            )
        bias = mapped_bias(m.b, affine, channels, m.w.dtype)
        return getattr(build, m.conv.op)(m.x, weight, bias, like=m.out, **m.conv.fields)


@rule(contract=Rounding())
class ConvBatchNorm(ConvThenMap):
    """batch_norm(conv(x, w, b)) is conv(x, s * w, s * b + t), with s = scale / sqrt(var + eps), t = shift -
    mean * s.

    Preconditions: inference mode; weight, bias and statistics are constants, the weight nobody else's;
    nothing else reads the convolution's result. For conv and conv_transpose in 1, 2 and 3 dimensions, grouped
    or not. Contract: rounding. Source: Jacob et al., "Quantization and Training of Neural Networks for
    Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2.
    """

    def pattern(
        self, op: PatternOps, x: Var, w: Var, b: Var, scale: Var, shift: Var, mean: Var, var: Var
    ) -> OpPattern:
        return batch_norm(op, any_conv(op, x, w, b), scale, shift, mean, var)

    def affine(self, m: Match) -> Affine:
        check_statistics(m, output_channels(m))
        return batch_norm_map(m)


@rule(contract=Rounding())
class ConvMul(ConvThenMap):
    """conv(x, w, b) * s is conv(x, s * w, s * b) for a constant s with one number per channel: half of a
    batch norm as some exporters spell it.

    Preconditions: weight, bias and s are constants, the weight nobody else's; s broadcasts along no axis but
    the channels'. Contract: rounding. Source: linearity of convolution.
    """

    def pattern(self, op: PatternOps, x: Var, w: Var, b: Var, s: Var) -> OpPattern:
        return op.mul(any_conv(op, x, w, b), const(s))

    def affine(self, m: Match) -> Affine:
        return Affine(per_channel(m, m.s, output_channels(m), m.w.ndim), None)


@rule(contract=Rounding())
class ConvAdd(ConvThenMap):
    """conv(x, w, b) + t is conv(x, w, b + t) for a constant t with one number per channel. The weight stays
    as it is.

    Preconditions: weight, bias and t are constants; t broadcasts along no axis but the channels'. Contract:
    rounding. Source: associativity of addition.
    """

    def pattern(self, op: PatternOps, x: Var, w: Var, b: Var, t: Var) -> OpPattern:
        return op.add(any_conv(op, x, w, b), const(t))

    def affine(self, m: Match) -> Affine:
        return Affine(None, per_channel(m, m.t, output_channels(m), m.w.ndim))


# ---- linear layers -----------------------------------------------------------------------------------------


def check_matrix(m: Match) -> None:
    """Refuse a linear layer whose features are not axis 1 of its input and output, the axis of batch norm."""
    rank = m.rank(m.linear.outputs[0])
    if rank != 2 or m.w.ndim != 2:
        m.fail(
            "batch_norm acts on axis 1, and the features of a linear layer in {} dimensions are its last axis",
            rank,
        )


def weight_is_transposed(m: Match) -> bool:
    """Whether the weight is [out, in]; that of a matmul is [in, out]."""
    return bool(m.linear.fields.get("trans_w", False))


def write_linear(m: Match, build: Builder, x: Value, weight: TensorRef, bias: TensorRef) -> Value:
    """The linear layer `m.linear` with another weight and bias; as matmul and add where the storage cannot
    say it."""
    fields = {"trans_w": weight_is_transposed(m)}
    if build.can("linear", x, weight, bias, **fields):
        return build.linear(x, weight, bias, like=m.out, **fields)
    return build.add(build.matmul(x, weight, like=m.out), bias, like=m.out)


def bias_of(m: Match) -> TensorRef | None:
    """The bias of `m.linear`; a matmul has none."""
    return m.bindings.constants.get("b")


@rule(contract=Rounding())
class LinearBatchNorm:
    """batch_norm(linear(x, w, b)) is linear(x, s * w, s * b + t), s and t as for a convolution; matmul
    likewise.

    Preconditions: those of the convolution, and x is a matrix [N, in]: batch norm acts on axis 1, so that in
    three dimensions it does not act on the features. Contract: rounding. Source: as for the convolution.
    """

    def pattern(
        self, op: PatternOps, x: Var, w: Var, b: Var, scale: Var, shift: Var, mean: Var, var: Var
    ) -> OpPattern:
        return batch_norm(op, any_linear(op, x, w, b), scale, shift, mean, var)

    def check(self, m: Match) -> None:
        check_matrix(m)
        check_statistics(m, m.w.shape[0 if weight_is_transposed(m) else 1])
        check_not_shared(m)

    def rewrite(self, m: Match, build: Builder) -> Value:
        affine = batch_norm_map(m)
        assert affine.scale is not None
        weight = m.w * (affine.scale.reshape(-1, 1) if weight_is_transposed(m) else affine.scale)
        bias = mapped_bias(bias_of(m), affine, affine.scale.shape[0], m.w.dtype)
        assert bias is not None
        return write_linear(m, build, m.x, weight, bias)


# ---- in front of a convolution or linear layer -------------------------------------------------------------


@rule(contract=Rounding())
class BatchNormConv:
    """conv(s * x + t, w, b) is conv(x, w * s, b + sum of w * t over input channels and kernel).

    Preconditions: no padding, since zeros are padded behind the batch norm, where they stand for -t / s
    before it; the rest as for batch norm behind a convolution. Contract: rounding. Source: linearity of
    convolution.
    """

    def pattern(
        self, op: PatternOps, x: Var, w: Var, b: Var, scale: Var, shift: Var, mean: Var, var: Var
    ) -> OpPattern:
        normalised = batch_norm(op, x, scale, shift, mean, var)
        return op.conv(
            normalised, const(w), opt(const(b)), stride=any_, pads=any_, dilation=any_, groups=any_
        ).named("conv")

    def check(self, m: Match) -> None:
        if any(m.conv.fields["pads"]):
            m.fail("the convolution pads with zeros behind the batch norm (pads {})", m.conv.fields["pads"])
        check_statistics(m, m.w.shape[1] * m.conv.fields["groups"])
        check_not_shared(m)

    def rewrite(self, m: Match, build: Builder) -> Value:
        affine, groups = batch_norm_map(m), m.conv.fields["groups"]
        assert affine.scale is not None and affine.shift is not None
        out, inputs, *kernel = m.w.shape
        blocks = m.w.reshape(groups, out // groups, inputs, -1)
        weight = (blocks * affine.scale.reshape(groups, 1, inputs, 1)).reshape(*m.w.shape)
        shifted = (blocks * affine.shift.reshape(groups, 1, inputs, 1)).reshape(out, -1)
        constant = shifted @ as_ref(np.ones((shifted.shape[1], 1)), m.w.dtype)
        bias = mapped_bias(m.b, Affine(None, constant.reshape(-1)), out, m.w.dtype)
        return build.conv(m.x, weight, bias, like=m.out, **m.conv.fields)


class MapThenLinear:
    """linear(s * x + t, w, b) is linear(x, w * s, b + w t)."""

    def check(self, m: Match) -> None:
        check_matrix(m)
        check_statistics(m, m.w.shape[1 if weight_is_transposed(m) else 0])
        check_not_shared(m)

    def rewrite(self, m: Match, build: Builder) -> Value:
        affine = batch_norm_map(m)
        assert affine.scale is not None and affine.shift is not None
        transposed = weight_is_transposed(m)
        weight = m.w * (affine.scale if transposed else affine.scale.reshape(-1, 1))
        rows = m.w if transposed else m.w.transpose(1, 0)
        constant = (rows @ affine.shift.reshape(-1, 1)).reshape(-1)
        bias = mapped_bias(bias_of(m), Affine(None, constant), rows.shape[0], m.w.dtype)
        assert bias is not None
        return write_linear(m, build, m.x, weight, bias)


@rule(contract=Rounding())
class BatchNormLinear(MapThenLinear):
    """linear(s * x + t, w, b) is linear(x, w * s, b + w t).

    Preconditions: x is a matrix [N, in], weight and statistics are constants, the weight nobody else's;
    nothing else reads the batch norm's result. Contract: rounding. Source: linearity.
    """

    def pattern(
        self, op: PatternOps, x: Var, w: Var, b: Var, scale: Var, shift: Var, mean: Var, var: Var
    ) -> OpPattern:
        normalised = batch_norm(op, x, scale, shift, mean, var)
        return op.linear(normalised, const(w), opt(const(b)), trans_w=any_).named("linear")


@rule(contract=Rounding())
class BatchNormMatmul(MapThenLinear):
    """matmul(s * x + t, w) is linear(x, w * s, w t); preconditions as for a linear layer."""

    def pattern(
        self, op: PatternOps, x: Var, w: Var, scale: Var, shift: Var, mean: Var, var: Var
    ) -> OpPattern:
        return op.matmul(batch_norm(op, x, scale, shift, mean, var), const(w)).named("linear")


# ---- the pass ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FuseConvBn(GraphPass):
    """Folds batch norms, and products and sums with a constant per channel, into convolutions and linear
    layers.

    Mathematics: inference-mode batch norm is y = s * x + t with s = scale / sqrt(var + eps) and t = shift -
    mean * s; a linear layer takes s into its weight and t into its bias. Where the target has it, the
    activation that follows a convolution then becomes its epilogue. Refused, with the reason: training mode,
    statistics or weights that are not constant, shared weights, results that others read, statistics of the
    wrong shape, var + eps that is not positive. Source: Jacob et al., CVPR 2018, section 3.2; the rules name
    theirs.
    """

    name: ClassVar[str] = "fuse-conv-bn"
    contract: ClassVar[str] = "Rounding: at most 8 times the rounding error of the original, per application"

    forward: bool = False
    "Fold a batch norm also into the unpadded convolution or linear layer that it feeds."
    epilogue: bool | None = None
    "Fuse activations into convolutions: always demanded, never, or (None) where the target has such an op."

    def rules(self, features: frozenset[str] | None = None) -> Sequence[Rule]:
        """The rules, in the order in which they are tried on a node, for a target with `features`; None for a
        target that has everything."""
        rules: list[Rule] = [ConvBatchNorm, ConvMul, ConvAdd, LinearBatchNorm]
        if self.forward:
            rules += [BatchNormConv, BatchNormLinear, BatchNormMatmul]
        available = features is None or FUSED_CONV in features
        if self.epilogue or (self.epilogue is None and available):
            rules += ACTIVATION_RULES
        return rules

    def run(self, context: Context) -> None:
        if self.epilogue and FUSED_CONV not in context.features:
            raise PipelineError(
                f"{self.name}: epilogue=true needs a target with {FUSED_CONV}, and the target is {context.target}; "
                "name one (target='onnxruntime') or leave the option out"
            )
        context.run_rules(self.rules(context.features))
