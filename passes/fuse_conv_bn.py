"""Folding what follows (or precedes) a convolution or linear layer into its weights.

In inference a batch norm is the affine map y = s * x + t of every channel, with s = scale / sqrt(var + eps)
and t = shift - mean * s. A convolution is linear, so s goes into its weight and t into its bias:
s * (w * x + b) + t = (s * w) * x + (s * b + t).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.errors import PipelineError
from graphopt.ir.graph import Value
from graphopt.ir.weights import TensorRef, as_ref
from graphopt.passes.channel_maps import (
    Affine,
    any_conv,
    batch_norm,
    batch_norm_map,
    check_not_shared,
    check_statistics,
    mapped_bias,
    output_channels,
    per_channel,
    scale_outputs,
)
from graphopt.passes.conv_activation import ACTIVATION_RULES, FUSED_CONV
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, any_of, const, opt
from graphopt.rewrite.rule import Match, Rule, rule

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context
    from graphopt.rewrite.builder import Builder


# ---- behind a convolution ----------------------------------------------------------------------------------


class ConvThenMap(ABC):
    """conv(x, w, b) followed by an affine map of its channels is conv(x, s * w, s * b + t)."""

    @abstractmethod
    def affine(self, m: Match) -> Affine:
        """The map that follows; refuses the match if it is none."""

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
    """batch_norm(conv(x, w, b)) is conv(x, s * w, s * b + t).

    Mathematics: s = scale / sqrt(var + eps), t = shift - mean * s, per output channel. For conv and
    conv_transpose in 1, 2 and 3 dimensions, grouped or not.
    Preconditions: inference mode; weight, bias and statistics are constants, the weight nobody else's;
    nothing else reads the convolution's result.
    Contract: rounding.
    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", CVPR 2018, section 3.2.
    """

    def pattern(
        self, op: PatternOps, x: Var, w: Var, b: Var, scale: Var, shift: Var, mean: Var, var: Var
    ) -> OpPattern:
        return batch_norm(op, any_conv(op, x, w, b), scale, shift, mean, var)

    def affine(self, m: Match) -> Affine:
        check_statistics(m, output_channels(m))
        return Affine(*batch_norm_map(m))


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


def any_linear(op: PatternOps, x: Any, w: Var, b: Var) -> OpPattern:
    """A linear layer or a product with a constant matrix, bound as `linear`."""
    return any_of(  # type: ignore[return-value]
        op.linear(x, const(w), opt(const(b)), trans_w=any_).named("linear"),
        op.matmul(x, const(w)).named("linear"),
    )


def check_matrix(m: Match) -> None:
    """Refuse a linear layer whose features are not axis 1 of its input and output, the axis of batch norm."""
    rank = m.rank(m.linear.outputs[0])
    if rank != 2 or m.w.ndim != 2:
        m.fail(
            "batch_norm acts on axis 1, the features of a linear layer in {} dimensions are its last axis",
            rank,
        )


def weight_is_transposed(m: Match) -> bool:
    """Whether the weight is [out, in]; that of a matmul is [in, out]."""
    return bool(m.linear.fields.get("trans_w", False))


def write_linear(m: Match, build: Builder, weight: TensorRef, bias: TensorRef | None) -> Value:
    """The linear layer `m.linear` with another weight and bias; as matmul and add where the storage cannot
    say it."""
    fields = {"trans_w": weight_is_transposed(m)}
    if build.can("linear", m.x, weight, bias, **fields):
        return build.linear(m.x, weight, bias, like=m.out, **fields)
    return build.add(build.matmul(m.x, weight, like=m.out), bias, like=m.out)


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
        scale, shift = batch_norm_map(m)
        weight = m.w * (scale.reshape(-1, 1) if weight_is_transposed(m) else scale)
        bias = mapped_bias(bias_of(m), Affine(scale, shift), scale.shape[0], m.w.dtype)
        return write_linear(m, build, weight, bias)


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
        (scale, shift), groups = batch_norm_map(m), m.conv.fields["groups"]
        out, inputs = m.w.shape[:2]
        blocks = m.w.reshape(groups, out // groups, inputs, -1)
        weight = (blocks * scale.reshape(groups, 1, inputs, 1)).reshape(*m.w.shape)
        shifted = (blocks * shift.reshape(groups, 1, inputs, 1)).reshape(out, -1)
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
        scale, shift = batch_norm_map(m)
        transposed = weight_is_transposed(m)
        weight = m.w * (scale if transposed else scale.reshape(-1, 1))
        rows = m.w if transposed else m.w.transpose(1, 0)
        constant = (rows @ shift.reshape(-1, 1)).reshape(-1)
        bias = mapped_bias(bias_of(m), Affine(None, constant), rows.shape[0], m.w.dtype)
        return write_linear(m, build, weight, bias)


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


FORWARD_RULES: tuple[Any, ...] = (BatchNormConv, BatchNormLinear, BatchNormMatmul)


@dataclass(frozen=True)
class FuseConvBn(GraphPass):
    """Folds batch norms, and products and sums with a constant per channel, into convolutions and linear
    layers.

    Mathematics: inference-mode batch norm is y = s * x + t with s = scale / sqrt(var + eps) and
    t = shift - mean * s; a linear layer takes s into its weight and t into its bias. Where the target has it,
    the activation that follows a convolution then becomes its epilogue.

    Refused, with the reason: training mode, statistics or weights that are not constant, shared weights,
    results that others read, statistics of the wrong shape, var + eps that is not positive.

    Source: Jacob et al., CVPR 2018, section 3.2; each rule names its own.
    """

    name: ClassVar[str] = "fuse-conv-bn"
    contract: ClassVar[str] = "Rounding: at most 8 times the rounding error of the original, per application"

    uses: ClassVar[tuple[Any, ...]] = FORWARD_RULES
    """Rules that it runs if an option says so."""

    forward: bool = False
    "Fold a batch norm also into the unpadded convolution or linear layer that it feeds."
    epilogue: bool | None = None
    "Fuse activations into convolutions: always demanded, never, or (None) where the target has such an op."

    def rules(self, features: frozenset[str] | None = None) -> Sequence[Rule]:
        """The rules, in the order in which they are tried on a node, for a target with `features`; None for a
        target that has everything."""
        rules: list[Any] = [ConvBatchNorm, ConvMul, ConvAdd, LinearBatchNorm]
        if self.forward:
            rules += FORWARD_RULES
        available = features is None or FUSED_CONV in features
        if self.epilogue or (self.epilogue is None and available):
            rules += ACTIVATION_RULES
        return rules

    def run(self, context: Context) -> None:
        if self.epilogue and FUSED_CONV not in context.features:
            raise PipelineError(
                f"{self.name}: epilogue=true needs a target with {FUSED_CONV}, and the target is "
                f"{context.target}; name one (target='onnxruntime') or leave the option out"
            )
        context.run_rules(self.rules(context.features))
