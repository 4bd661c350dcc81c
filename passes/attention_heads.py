"""Attention as onnxruntime's MultiHeadAttention, which takes [batch, positions, heads * features].

Its kernel never stores the scores, and the transposes that split and join the heads vanish in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.ir.graph import Dim, TensorType, Value
from graphopt.passes.attention_guard import may_hide_all_keys
from graphopt.passes.attention_masks import plan_bias, plan_bias_for_batch, write_bias
from graphopt.passes.attention_pattern import (
    Attention,
    Operand,
    by_attention,
    by_einsum,
    by_matmul,
    joined_heads,
    mask_of,
    operand,
    read_attention,
    split_operand,
)
from graphopt.passes.attention_products import compose, keep
from graphopt.passes.layout_identities import require_stated_targets
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import OpPattern, PatternOps
from graphopt.rewrite.rule import Match, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder
    from graphopt.rewrite.pattern import Var

MULTI_HEAD_ATTENTION = "com.microsoft::MultiHeadAttention"
"""The op that a target must have."""
HEADS_APART = (0, 2, 1, 3)
"""From [batch, positions, heads, features] to [batch, heads, positions, features], and back."""


# ---- what the op can take ------------------------------------------------------------------------------------


def check_common(m: Match, found: Attention) -> None:
    """Refuse what the op cannot say whatever the layout."""
    tokens = TensorType(m.type(found.q.value).dtype, (None, None, None))
    fields = {"heads": 1, "scale": found.scale}
    if (reason := m.graph.can_emit("multi_head_attention", fields, [tokens] * 3 + [None])) is not None:
        m.fail("{}", reason)
    if "attention" in m.bindings.named and may_hide_all_keys(m, mask_of(m)):
        m.fail("a query whose keys are all masked gives 0, and NaN in MultiHeadAttention; the mask may do that")


# ---- heads that a reshape splits and another joins -----------------------------------------------------------


@rule(contract=Rounding(), keep_shared=True)
class HeadsOfTokens:
    """Attention over [batch, heads, positions, features] between the reshapes and transposes that split the heads
    of tokens [batch, positions, heads * features] and join them again is multi_head_attention of the tokens.

    Preconditions: float32; shapes that prove what is split and joined; heads and features are numbers; a mask is
    added, has the size of batch and heads or 1 there, and leaves a key to every query if 0 is expected where it
    does not. Contract: rounding. Source: Vaswani et al., "Attention is all you need", 2017, section 3.2;
    onnxruntime's MultiHeadAttention.
    """

    def pattern(self, op: PatternOps, target: Var) -> OpPattern:
        q, k, v = (split_operand(op, side) for side in ("q", "k", "v"))
        return joined_heads(op, q, k, v, target)

    def check(self, m: Match) -> None:
        require_stated_targets(m)
        found = read_attention(m)
        check_common(m, found)
        self._check_layout(m, found)
        plan_bias(m, found)

    @staticmethod
    def _check_layout(m: Match, found: Attention) -> None:
        require_heads_apart(m, found, ("q", "k", "v"))
        for name, side in (("q", found.q), ("k", found.k), ("v", found.v)):
            require_joined(m, name, m.type(getattr(m, name)).shape, side.shape)
        require_joined(m, "the result", m.type(m.out).shape, (*found.q.shape[:3], found.v.shape[3]))

    def rewrite(self, m: Match, build: Builder) -> Any:
        found = read_attention(m)
        bias = write_bias(m, build, plan_bias(m, found))
        return build.multi_head_attention(
            m.q, m.k, m.v, bias, heads=int(found.q.shape[1] or 0), scale=found.scale, like=m.out
        )


def require_heads_apart(m: Match, found: Attention, sides: Sequence[str]) -> None:
    """Fail unless the heads stand behind the positions in what the `sides` are made of, and in what is joined."""
    joined = m.bindings.named.get("joined")
    out = found.out if joined is None else compose(found.out, joined.fields["perm"])
    for name, perm in (*((side, getattr(found, side).perm) for side in sides), ("the result", out)):
        if perm != HEADS_APART:
            m.fail("the axes of {} are ordered {}, not with the heads behind the positions", name, perm)


def require_joined(m: Match, name: str, tokens: tuple[Dim, ...] | None, apart: tuple[Dim, ...]) -> None:
    """Fail unless [batch, positions, width] `tokens` certainly are [batch, heads, positions, features] `apart`,
    given that they have equally many elements."""
    batch, heads, positions, features = apart
    if not isinstance(heads, int) or not isinstance(features, int):
        m.fail("{} has {} heads of {} features: not known as numbers", name, heads, features)
    if tokens is None or len(tokens) != 3 or tokens[2] != heads * features:
        m.fail("{} {} does not hold {} heads of {} features", name, tokens, heads, features)
    equal = [a for a, b in zip(tokens, (batch, positions), strict=False) if a == b and a is not None]
    # One size decides the other, unless it is 0.
    if len(equal) < 2 and not any(isinstance(size, int) and size > 0 for size in equal):
        m.fail("{} {} is not known to have batch {} and {} positions", name, tokens, batch, positions)


# ---- any other attention -------------------------------------------------------------------------------------


class HeadsInBatch:
    """Attention over [*batch, positions, features] is multi_head_attention with one head, the heads counted as
    batch.

    Preconditions: float32; a mask is added and has a size of 1 for batch and heads, or that of the batch where
    there are no heads. Contract: rounding. Source: the op's definition.
    """

    def check(self, m: Match) -> None:
        found = read_attention(m)
        check_common(m, found)
        if found.rank not in (3, 4):
            m.fail("attention over {} axes", found.rank)
        plan_bias_for_batch(m, found)
        if found.rank == 4:
            for name, side in (("q", found.q), ("k", found.k), ("v", found.v)):
                if merged_shape(side) is None:
                    m.fail("{} {} cannot be reshaped without its sizes", name, side.shape)
            if parted_shape(found) is None:
                m.fail("the result cannot be reshaped without its sizes")

    def rewrite(self, m: Match, build: Builder) -> Any:
        found = read_attention(m)
        bias = write_bias(m, build, plan_bias_for_batch(m, found))
        q, k, v = (self._tokens(build, side) for side in (found.q, found.k, found.v))
        if found.rank == 3 and found.out == keep(3):
            return build.multi_head_attention(q, k, v, bias, heads=1, scale=found.scale, like=m.out)
        # onnx infers no type of an op that is not its own.
        tokens = TensorType(m.type(m.out).dtype, result_of_tokens(found))
        out = build.multi_head_attention(q, k, v, bias, heads=1, scale=found.scale, like=tokens)
        if found.rank == 4:
            out = build.reshape(out, shape=parted_shape(found))
        return out if found.out == keep(found.rank) else build.transpose(out, perm=found.out, like=m.out)

    @staticmethod
    def _tokens(build: Builder, side: Operand) -> Any:
        value: Value = side.value
        if side.perm != keep(len(side.perm)):
            value = build.transpose(value, perm=side.perm)
        return build.reshape(value, shape=merged_shape(side)) if len(side.perm) == 4 else value


def merged_shape(side: Operand) -> tuple[int, ...] | None:
    """The target that makes batch and heads one axis; None if it cannot be said as a constant."""
    *batch, positions, features = side.shape
    if isinstance(positions, int) and isinstance(features, int):
        return (-1, positions, features)
    if all(isinstance(d, int) for d in batch) and isinstance(features, int):
        return (int(batch[0] or 0) * int(batch[1] or 0), -1, features)
    return None


def result_of_tokens(found: Attention) -> tuple[Dim, ...]:
    """What attention gives where batch and heads are one axis, or batch is the only one."""
    *batch, positions, _ = found.q.shape
    known = [d for d in batch if isinstance(d, int)]
    return (math.prod(known) if len(known) == len(batch) else None, positions, found.v.shape[-1])


def parted_shape(found: Attention) -> tuple[int, ...] | None:
    """The target that gives the result its heads back."""
    shape = (*found.q.shape[:3], found.v.shape[3])
    unknown = [d for d in shape if not isinstance(d, int)]
    return None if len(unknown) > 1 or 0 in shape else tuple(d if isinstance(d, int) else -1 for d in shape)


@rule(contract=Rounding(), keep_shared=True)
class BatchedMatmuls(HeadsInBatch):
    """Two matmuls around a softmax; see HeadsInBatch."""

    def pattern(self, op: PatternOps) -> OpPattern:
        return by_matmul(op, *(operand(op, side) for side in ("q", "k", "v")))


@rule(contract=Rounding(), keep_shared=True)
class BatchedEinsums(HeadsInBatch):
    """Two einsums around a softmax; see HeadsInBatch."""

    def pattern(self, op: PatternOps) -> OpPattern:
        return by_einsum(op, *(operand(op, side) for side in ("q", "k", "v")))


@rule(contract=Rounding(), keep_shared=True)
class BatchedAttention(HeadsInBatch):
    """The standard's own op; see HeadsInBatch."""

    def pattern(self, op: PatternOps) -> OpPattern:
        return by_attention(op, *(operand(op, side) for side in ("q", "k", "v")))


# Any: to a type checker, a class stays a class whatever decorates it.
TOKEN_RULES: tuple[Any, ...] = (HeadsOfTokens,)
BATCH_RULES: tuple[Any, ...] = (BatchedMatmuls, BatchedEinsums, BatchedAttention)
