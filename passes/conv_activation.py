"""Activations as the epilogue of a convolution: one op that writes its result once.

Only where the target has such an op (onnxruntime: com.microsoft::FusedConv, float32). Nothing is
approximated: the kernel applies the activation to each element before it is stored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.ir.graph import Value
from graphopt.ir.ops.elementwise import LARGEST
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, const, opt
from graphopt.rewrite.rule import Match, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder

FUSED_CONV = "com.microsoft::FusedConv"
"""The op that a target must have."""


class ConvThenActivation:
    """activation(conv(x, w, b)) is fused_conv(x, w, b, activation).

    Preconditions: the storage can say it (float32 only), nothing else reads the convolution's result.
    Contract: rounding. Source: onnxruntime's ConvActivationFusion.
    """

    activation: str
    parameters: tuple[str, ...] = ()
    """Fields of the activation in the order in which fused_conv takes them."""

    def pattern(self, op: PatternOps, x: Var, w: Var, b: Var) -> OpPattern:
        fields = dict.fromkeys(self.parameters, any_)
        pattern: OpPattern = getattr(op, self.activation)(some_conv(op, x, w, b), **fields)
        return pattern.named("act")

    def values(self, m: Match) -> tuple[float, ...]:
        """The activation's parameters."""
        return tuple(float(m.act.fields[name]) for name in self.parameters)

    def check(self, m: Match) -> None:
        fields = dict(m.conv.fields, activation=self.activation, parameters=self.values(m))
        types = [None if operand is None else m.graph.type(operand) for operand in m.conv.operands]
        if (reason := m.graph.can_emit("fused_conv", fields, types)) is not None:
            m.fail("{}", reason)

    def rewrite(self, m: Match, build: Builder) -> Value:
        operands = m.conv.operands
        return build.fused_conv(
            *operands, like=m.out, activation=self.activation, parameters=self.values(m), **m.conv.fields
        )


def some_conv(op: PatternOps, x: Var, w: Var, b: Var) -> OpPattern:
    """A convolution with any weight, constant or not, bound as `conv`."""
    return op.conv(x, w, opt(b), stride=any_, pads=any_, dilation=any_, groups=any_).named("conv")


@rule(contract=Rounding())
class ConvRelu(ConvThenActivation):
    """relu(conv) as one op."""

    activation = "relu"


@rule(contract=Rounding())
class ConvSigmoid(ConvThenActivation):
    """sigmoid(conv) as one op."""

    activation = "sigmoid"


@rule(contract=Rounding())
class ConvTanh(ConvThenActivation):
    """tanh(conv) as one op."""

    activation = "tanh"


@rule(contract=Rounding())
class ConvLeakyRelu(ConvThenActivation):
    """leaky_relu(conv) as one op."""

    activation = "leaky_relu"
    parameters = ("slope",)


@rule(contract=Rounding())
class ConvHardSigmoid(ConvThenActivation):
    """hard_sigmoid(conv) as one op."""

    activation = "hard_sigmoid"
    parameters = ("alpha", "beta")


@rule(contract=Rounding())
class ConvClamp(ConvThenActivation):
    """clamp(conv) with constant bounds as one op: relu6 and its like."""

    activation = "clamp"

    def pattern(  # type: ignore[override]
        self, op: PatternOps, x: Var, w: Var, b: Var, low: Var, high: Var
    ) -> OpPattern:
        return op.clamp(some_conv(op, x, w, b), opt(const(low)), opt(const(high))).named("act")

    def values(self, m: Match) -> tuple[float, ...]:
        bounds = {"low": m.low, "high": m.high}
        for name, bound in bounds.items():
            if bound is not None and bound.size != 1:
                m.fail("the {} bound is not one number", name)
        # As Clip has it where a bound is absent, which makes numbers of infinities.
        return (
            -LARGEST if m.low is None else float(m.low.item()),
            LARGEST if m.high is None else float(m.high.item()),
        )


# Any: to a type checker, a class stays a class whatever decorates it.
ACTIVATION_RULES: tuple[Any, ...] = (
    ConvRelu, ConvClamp, ConvSigmoid, ConvTanh, ConvLeakyRelu, ConvHardSigmoid,
)  # fmt: skip
"""Every activation that FusedConv has on the CPU in every onnxruntime since 1.20 (HardSwish came later)."""
