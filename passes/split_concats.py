"""A convolution of a concatenation as the sum of the convolutions of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphopt.ir.graph import TensorType, Value
from graphopt.ir.weights import SlicedRef, TensorRef
from graphopt.passes.channel_maps import check_not_shared
from graphopt.passes.layout_identities import UNARY, with_any_fields
from graphopt.pipeline.pass_ import RulePass
from graphopt.rewrite.change import escapes
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.matcher import Name
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, any_of, const, many, opt
from graphopt.rewrite.rule import Match, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder

ACTIVATIONS = tuple(op for op in UNARY if op not in ("cast", "is_nan", "logical_not"))
CHANNELS = 1


@rule(contract=Rounding(), keep_shared=True)
class ConvOfConcat:
    """conv(f(concat(x, y)), w, b) is conv(f(x), w[:, of x], b) + conv(f(y), w[:, of y]) for any number of parts,
    where f is nothing, an activation (x * sigmoid(x) is one), a group norm, or an activation of a group norm,
    computed for the channels of each part.

    Preconditions: the concatenation is of channels; one group in the convolution, its weight and bias constant, the
    weight nobody else's; no group of the norm has channels of two parts, its scale and shift are constant; nothing else
    reads what f makes. The concatenation stays for others that read it. Contract: rounding. Source: linearity of
    convolution.
    """

    def pattern(self, op: PatternOps, xs: Var, w: Var, b: Var, scale: Var, shift: Var) -> OpPattern:
        joined = op.concat(many(xs), axis=any_).named("concat")
        normed = op.group_norm(joined, opt(const(scale)), opt(const(shift)), groups=any_, eps=any_).named("norm")
        activated = [with_any_fields(op, name, x).named("act") for name in ACTIVATIONS for x in (joined, normed)]
        gated = [op.mul(x, op.sigmoid(x).named("gate")).named("act") for x in (joined, normed)]  # silu in ONNX
        x = any_of(joined, normed, *activated, *gated)
        fields = dict.fromkeys(("stride", "pads", "dilation", "groups"), any_)
        return op.conv(x, const(w), opt(const(b)), **fields).named("conv")

    def check(self, m: Match) -> None:
        if len(m.xs) < 2:
            m.fail("one tensor is joined")
        if m.conv.fields["groups"] != 1:
            m.fail("the convolution has {} groups", m.conv.fields["groups"])
        rank = m.rank(m.concat.outputs[0])
        if m.concat.fields["axis"] % rank != CHANNELS or rank != m.w.ndim:
            m.fail("joins axis {} of {}", m.concat.fields["axis"], rank)
        channels = _channels(m)
        if (norm := m.bindings.named.get("norm")) is not None:
            size = sum(channels) // norm.fields["groups"]
            if any(c % size for c in channels):
                m.fail("a group of {} channels has some of two parts, which have {}", size, channels)
        check_not_shared(m)
        inner = {node for node in m.calls if node != m.concat.node}
        for name in ("norm", "gate", "act"):
            call = m.bindings.named.get(name)
            if call is not None and escapes(m.graph, call.outputs, inner) is not None:
                m.fail("{} is read elsewhere too", Name(m.graph.name(call.outputs[0])))

    def rewrite(self, m: Match, build: Builder) -> Value:
        ends = np.cumsum([0, *_channels(m)])
        total = None
        for x, (start, end) in zip(m.xs, pairwise(ends.tolist()), strict=True):
            part = np.arange(start, end)
            weight = SlicedRef(m.w, [None, part, *[None] * (m.w.ndim - 2)])
            bias = m.b if total is None else None
            y = build.conv(_mapped(m, build, x, part), weight, bias, like=m.out, **m.conv.fields)
            total = y if total is None else build.add(total, y, like=m.out)
        return total


def _channels(m: Match) -> list[int]:
    """Of each part; refuses the match if they are not known."""
    found = [(m.type(x).shape or ())[CHANNELS : CHANNELS + 1] for x in m.xs]
    known = [c for shape in found for c in shape if isinstance(c, int) and c > 0]
    if len(known) < len(found):
        m.fail("the channels of the parts are {}", found)
    return known


def _mapped(m: Match, build: Builder, x: Value, part: Any) -> Value:
    """f of one part."""
    type_: TensorType = m.type(x)
    if (norm := m.bindings.named.get("norm")) is not None:
        size = sum(_channels(m)) // norm.fields["groups"]
        own = [_of(m.bindings.constants.get(name), part) for name in ("scale", "shift")]
        x = build.group_norm(x, *own, like=type_, **{**norm.fields, "groups": len(part) // size})
    if "gate" in m.bindings.named:
        x = build.mul(x, build.sigmoid(x, like=type_), like=type_)
    elif (act := m.bindings.named.get("act")) is not None:
        x = getattr(build, act.op)(x, like=type_, **act.fields)
    return x


def _of(per_channel: TensorRef | None, part: Any) -> TensorRef | None:
    return None if per_channel is None else SlicedRef(per_channel, [part])


@dataclass(frozen=True)
class SplitConcats(RulePass):
    """Splits convolutions of concatenated channels, with the norm and the activation before them, into one for each
    part.

    Mathematics: the sum over channels in a convolution is one sum over the channels of x and one over those of y. That
    is as many multiply-adds and one more pass over the result, so alone it saves no more than the concatenation. It
    pays in a sampling program where a part is known earlier than the other, or once for both halves of a guided batch:
    a skip connection of a U-Net from above its first cross-attention, together with `share-guidance` after it.

    Refused, with the reason: norms whose groups have channels of two parts, grouped convolutions, weights that others
    read or that are not constant.

    Contract: rounding. Source: linearity of convolution.
    """

    name: ClassVar[str] = "split-concats"
    contract: ClassVar[str] = "Rounding: at most 8 times the rounding error of the original, per application"

    def rules(self) -> Sequence[Any]:
        return (ConvOfConcat,)
