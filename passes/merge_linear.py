"""Consecutive linear maps as one: the product of two constant matrices is a constant matrix.

Merging pays where the layer between is wide. From `in` to `mid` to `out` features, two layers cost
mid * (in + out) multiply-adds a position and their product in * out, so that it pays from
mid = in * out / (in + out) on: the break-even of `low-rank`, seen from the other side. What that pass splits is thinner
than that, so that neither pass undoes the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.graph import Call, Value
from graphopt.ir.weights import FLOATS, TensorRef
from graphopt.pipeline.pass_ import RulePass
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.matcher import Name
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, any_of, const, opt
from graphopt.rewrite.rule import Match, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder

WEIGHTS = ("w1", "w2")
"""Variables of the two weights, in the order in which they run."""


# ---- preconditions -----------------------------------------------------------------------------------------


def check_weights(m: Match) -> None:
    """Refuse weights that are not of one real dtype, or that stay in the model for somebody else."""
    if m.w1.dtype not in FLOATS or m.w1.dtype != m.w2.dtype:
        m.fail("the weights are {} and {}, not of one real type", m.w1.dtype, m.w2.dtype)
    for name in WEIGHTS:
        weight = m.bindings.values[name]
        said = Name(m.graph.name(weight))
        if 0 in getattr(m, name).shape:
            m.fail("the weight {} is empty", said)
        for user in m.graph.users(weight):
            if user not in m.calls:
                m.fail("the weight {} is shared with {}: it would stay", said, Name(m.graph.node_name(user)))
        if m.graph.is_output(weight):
            m.fail("the weight {} is an output of the graph: it would stay", said)


def check_pays(m: Match, into: int, mid: int, out: int) -> None:
    """Refuse a product that costs as much as its factors; `into` counts all that one element of the middle reads."""
    if into * out >= mid * (into + out):
        m.fail(
            "one layer from {} to {} costs {} multiply-adds a position, two by way of {} cost {}",
            into, out, into * out, mid, mid * (into + out),
        )  # fmt: skip


def constant(m: Match, name: str) -> TensorRef | None:
    """What is captured under `name`; None if the alternative that matched does not have it."""
    return m.bindings.constants.get(name)


# ---- linear layers -----------------------------------------------------------------------------------------


def layer(op: PatternOps, x: Var, w: Var, b: Var) -> OpPattern:
    """A linear layer as exporters spell it, bound as `first`: with its bias, as a product and a sum, or without."""
    return any_of(  # type: ignore[return-value]
        op.linear(x, const(w), opt(const(b)), trans_w=any_).named("first"),
        op.add(op.matmul(x, const(w)).named("first"), const(b)),
        op.matmul(x, const(w)).named("first"),
    )


def matrix(weight: TensorRef, call: Call) -> TensorRef:
    """The weight of `call` as [in, out]."""
    return weight.transpose(1, 0) if call.fields.get("trans_w", False) else weight


def check_layers(m: Match) -> tuple[TensorRef, TensorRef]:
    """The weights of two linear layers, bound as `first` and `second`, as [in, out]; refuses the match where weights or
    biases are none of such."""
    check_weights(m)
    if m.w1.ndim != 2 or m.w2.ndim != 2:
        m.fail("weights of {} and {} axes are no two matrices", m.w1.ndim, m.w2.ndim)
    first, second = matrix(m.w1, m.first), matrix(m.w2, m.second)
    for name, width in (("b1", first.shape[1]), ("b2", second.shape[1])):
        bias = constant(m, name)
        if bias is not None and bias.shape != (width,):
            m.fail("a bias of shape {} is not one number for each of {} features", list(bias.shape), width)
    return first, second


class LayerThenLayer:
    """Base of the rules for linear layers; they differ in how the second, bound as `second`, is spelled."""

    def check(self, m: Match) -> None:
        first, second = check_layers(m)
        check_pays(m, first.shape[0], first.shape[1], second.shape[1])

    def rewrite(self, m: Match, build: Builder) -> Value:
        second = matrix(m.w2, m.second)
        weight, bias = matrix(m.w1, m.first) @ second, constant(m, "b2")
        if (inner := constant(m, "b1")) is not None:
            carried = (inner.reshape(1, -1) @ second).reshape(-1)
            bias = carried if bias is None else carried + bias
        transposed = bool(m.second.fields.get("trans_w", False))
        stored = weight.transpose(1, 0) if transposed else weight
        if "linear" in (m.first.op, m.second.op) and build.can("linear", m.x, stored, bias, trans_w=transposed):
            return build.linear(m.x, stored, bias, like=m.out, trans_w=transposed)
        product = build.matmul(m.x, weight, like=m.out)
        return product if bias is None else build.add(product, bias, like=m.out)


@rule(contract=Rounding(special=False))
class LinearLinear(LayerThenLayer):
    """linear(linear(x, V, a), W, b) is linear(x, V W, a W + b); the first may be a product with a constant matrix, with
    or without a sum.

    Preconditions: constant weights and biases, the weights nobody else's; nothing else reads what is between;
    in * out < mid * (in + out). An infinity in x may be NaN behind two layers and an infinity behind one.
    Contract: rounding, for finite inputs. Source: associativity of the product of matrices.
    """

    def pattern(self, op: PatternOps, x: Var, w1: Var, b1: Var, w2: Var, b2: Var) -> OpPattern:
        return op.linear(layer(op, x, w1, b1), const(w2), opt(const(b2)), trans_w=any_).named("second")


@rule(contract=Rounding(special=False))
class LinearMatmulAdd(LayerThenLayer):
    """linear(x, V, a) @ W + b is linear(x, V W, a W + b), as for two linear layers."""

    def pattern(self, op: PatternOps, x: Var, w1: Var, b1: Var, w2: Var, b2: Var) -> OpPattern:
        return op.add(op.matmul(layer(op, x, w1, b1), const(w2)).named("second"), const(b2))


@rule(contract=Rounding(special=False))
class LinearMatmul(LayerThenLayer):
    """linear(x, V, a) @ W is linear(x, V W, a W), as for two linear layers. A sum behind it with a number for each
    feature is its bias: that is left to the rule that takes both."""

    def pattern(self, op: PatternOps, x: Var, w1: Var, b1: Var, w2: Var) -> OpPattern:
        return op.matmul(layer(op, x, w1, b1), const(w2)).named("second")

    def check(self, m: Match) -> None:
        super().check(m)
        users = list(m.graph.users(m.out))
        call = m.graph.call(users[0]) if len(users) == 1 else None
        if isinstance(call, Call) and call.op == "add" and not m.graph.is_output(m.out):
            others = [m.graph.constant(o) for o in call.operands if o is not None and o != m.out]
            if any(data is not None and data.shape == (m.w2.shape[1],) for data in others):
                m.fail("what {} adds is the bias of the product", Name(m.graph.node_name(call.node)))


# ---- convolutions ------------------------------------------------------------------------------------------


@rule(contract=Rounding(special=False))
class ConvConv:
    """conv(conv(x, V, a), W, b) with a kernel of 1 in W is conv(x, W V, W a + b), with the strides multiplied.

    Preconditions: those of linear layers; one group each; the second does not pad, since its zeros would stand beside
    a. Contract: rounding, for finite inputs. Source: as for linear layers; a kernel of 1 is a matrix on channels.
    """

    def pattern(self, op: PatternOps, x: Var, w1: Var, b1: Var, w2: Var, b2: Var) -> OpPattern:
        fields = {"stride": any_, "pads": any_, "dilation": any_, "groups": any_}
        first = op.conv(x, const(w1), opt(const(b1)), **fields).named("first")
        return op.conv(first, const(w2), opt(const(b2)), **fields).named("second")

    def check(self, m: Match) -> None:
        check_weights(m)
        if math.prod(m.w2.shape[2:]) != 1:
            m.fail("the second kernel of {} is not 1", list(m.w2.shape[2:]))
        groups = m.first.fields["groups"], m.second.fields["groups"]
        if groups != (1, 1):
            m.fail("the convolutions have {} and {} groups, not one each", *groups)
        if any(m.second.fields["pads"]):
            m.fail("the second convolution pads what the first makes (pads {})", m.second.fields["pads"])
        mid, *read = m.w1.shape
        # A stride of the second leaves the first with even more positions.
        check_pays(m, math.prod(read), mid, m.w2.shape[0])

    def rewrite(self, m: Match, build: Builder) -> Value:
        out, mid = m.w2.shape[:2]
        second, bias = m.w2.reshape(out, mid), m.b2
        weight = (second @ m.w1.reshape(mid, -1)).reshape(out, *m.w1.shape[1:])
        if m.b1 is not None:
            carried = (second @ m.b1.reshape(-1, 1)).reshape(-1)
            bias = carried if bias is None else carried + bias
        strides = zip(m.first.fields["stride"], m.second.fields["stride"], strict=True)
        fields = m.first.fields | {"stride": tuple(a * b for a, b in strides)}
        return build.conv(m.x, weight, bias, like=m.out, **fields)


RULES: tuple[Any, ...] = (LinearLinear, LinearMatmulAdd, LinearMatmul, ConvConv)


# ---- the pass ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MergeLinear(RulePass):
    """Merges linear layers, and convolutions with a kernel of 1 behind another, that follow each other directly.

    Mathematics: (x V + a) W + b = x (V W) + (a W + b). With `in`, `mid` and `out` features that is in * out in place of
    mid * (in + out) multiply-adds a position.

    Refused, with the reason: a product that does not cost less (so what `low-rank` splits stays split), weights that
    others read or that are not constant, results between that others read, grouped convolutions, padding between.

    Contract: rounding, for finite inputs. Source: associativity of the product of matrices; each rule names its own.
    """

    name: ClassVar[str] = "merge-linear"
    contract: ClassVar[str] = (
        "Rounding, for finite inputs: at most 8 times the rounding error of the original, per application"
    )

    def rules(self) -> Sequence[Any]:
        return RULES
