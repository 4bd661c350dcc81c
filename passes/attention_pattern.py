"""What attention looks like, however it is written, and its parts once it is matched.

softmax(scale * q @ k^T + mask) @ v as one op, as two matmuls or as two einsums around a softmax; the scale as
factors or divisors of queries, keys or scores; the keys transposed by a node or by an einsum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Call, Dim, Value
from graphopt.ir.weights import TensorRef
from graphopt.passes.attention_products import Perm, compose, keep, read_scores, read_sums
from graphopt.rewrite.change import escapes
from graphopt.rewrite.pattern import OpPattern, Pattern, PatternOps, Var, any_, any_of, const, opt
from graphopt.rewrite.rule import Match

SIDES = ("q", "k", "v")
BESIDE = frozenset({"q_factor", "k_factor", "q_order", "k_order", "v_order", "q_split", "k_split", "v_split"})
"""Names of matched calls that may have other readers: they cost little beside the attention."""


# ---- the pattern -------------------------------------------------------------------------------------------


def operand(op: PatternOps, side: str) -> Pattern:
    """Queries, keys or values, with the transpose in front of them if there is one."""
    return any_of(op.transpose(Var(side), perm=any_).named(f"{side}_order"), Var(side))


def split_operand(op: PatternOps, side: str, tokens: Pattern | None = None) -> Pattern:
    """Queries, keys or values whose heads a reshape splits off: of anything, or of `tokens`."""
    target = opt(Var(f"{side}_shape"))
    split = op.reshape(tokens or Var(side), target, shape=any_, allow_zero=any_).named(f"{side}_split")
    return any_of(op.transpose(split, perm=any_).named(f"{side}_order"), split)


def scaled(op: PatternOps, inner: Pattern, name: str) -> Pattern:
    """`inner`, or a constant multiple of it."""
    return any_of(
        op.mul(inner, const(Var(f"{name}_times"))).named(f"{name}_factor"),
        op.div(inner, const(Var(f"{name}_over"))).named(f"{name}_factor"),
        inner,
    )


def weights(op: PatternOps, q: Pattern, k: Pattern) -> Pattern:
    """softmax(scale * q @ k^T + mask)."""
    q, k = scaled(op, q, "q"), scaled(op, k, "k")
    product = any_of(op.matmul(q, k).named("product"), op.einsum(q, k, equation=any_).named("product"))
    scores = scaled(op, product, "scores")
    return op.softmax(any_of(op.add(scores, Var("mask")), scores), axis=any_).named("softmax")


def by_matmul(op: PatternOps, q: Pattern, k: Pattern, v: Pattern) -> OpPattern:
    return op.matmul(weights(op, q, k), v).named("sums")


def by_einsum(op: PatternOps, q: Pattern, k: Pattern, v: Pattern) -> OpPattern:
    return op.einsum(weights(op, q, k), v, equation=any_).named("sums")


def by_attention(op: PatternOps, q: Pattern, k: Pattern, v: Pattern) -> OpPattern:
    return op.attention(q, k, v, opt(Var("mask")), scale=any_, causal=any_, gqa=any_).named("attention")


def joined_heads(op: PatternOps, q: Pattern, k: Pattern, v: Pattern, target: Var) -> OpPattern:
    """Attention, however it is written, whose heads a reshape joins, with the transpose in front of it if there is
    one."""
    core = any_of(by_matmul(op, q, k, v), by_einsum(op, q, k, v), by_attention(op, q, k, v))
    ordered = any_of(op.transpose(core, perm=any_).named("joined"), core)
    return op.reshape(ordered, opt(target), shape=any_, allow_zero=any_)


# ---- what was matched --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operand:
    """transpose(value, perm) is [*batch, positions, features] of shape `shape`."""

    value: Value
    perm: Perm
    shape: tuple[Dim, ...]

    @property
    def batch(self) -> tuple[Dim, ...]:
        return self.shape[:-2]


@dataclass(frozen=True)
class Attention:
    """The parts of a matched attention."""

    q: Operand
    k: Operand
    v: Operand
    scale: float
    out: Perm
    """From [*batch, queries, features] to the value that the pattern's innermost product computes."""

    @property
    def rank(self) -> int:
        return len(self.q.shape)


def read_attention(m: Match) -> Attention:
    """The parts of the attention that `m` holds. Refuses the match where they are not known well enough."""
    named = m.bindings.named
    _check_readers(m)
    call = named.get("attention")
    if call is not None:
        if call.fields["causal"] or call.fields["gqa"]:
            m.fail("the attention is {}", "causal" if call.fields["causal"] else "grouped")
        perms, out, scale = [keep(4)] * 3, keep(4), float(call.fields["scale"])
    else:
        perms, out, scale = _read_products(m), read_sums(m, m.sums).out, _scale(m)
    operands = [_operand(m, side, perm) for side, perm in zip(SIDES, perms, strict=True)]
    q, k, v = operands
    if not q.batch == k.batch == v.batch or None in q.batch:
        m.fail("batch and heads of q, k and v are {}, {} and {}: not known to be equal", q.batch, k.batch, v.batch)
    if k.shape[-2] != v.shape[-2] and isinstance(k.shape[-2], int) and isinstance(v.shape[-2], int):
        m.fail("{} keys but {} values", k.shape[-2], v.shape[-2])
    return Attention(q, k, v, scale, out)


def _check_readers(m: Match) -> None:
    """Refuse attention whose scores, weights or sums something else reads too: they would be computed twice."""
    beside = {m.bindings.named[name].node for name in BESIDE & m.bindings.named.keys()}
    for node, call in m.calls.items():
        if node in beside or m.out in call.outputs:
            continue
        if (escaped := escapes(m.graph, [o for o in call.outputs if o is not None], m.calls)) is not None:
            m.fail(escaped.template, *escaped.values)


def _read_products(m: Match) -> list[Perm]:
    scores = read_scores(m, m.product)
    rank = len(scores.query)
    if m.softmax.fields["axis"] != rank - 1:
        m.fail("softmax is along axis {} of {}", m.softmax.fields["axis"], rank)
    return [scores.query, scores.key, read_sums(m, m.sums).value]


def _operand(m: Match, side: str, perm: Perm) -> Operand:
    order: Call | None = m.bindings.named.get(f"{side}_order")
    if order is not None:
        perm = compose(order.fields["perm"], perm)
    split: Call | None = m.bindings.named.get(f"{side}_split")
    value = getattr(m, side) if split is None else split.outputs[0]
    shape = m.type(value).shape
    if shape is None or len(shape) != len(perm):
        m.fail("{} has {} axes where {} are needed", side, shape if shape is None else len(shape), len(perm))
    return Operand(value, perm, tuple(shape[i] for i in perm))


def _scale(m: Match) -> float:
    """The product of all constant factors of queries, keys and scores."""
    scale = 1.0
    for name in ("q", "k", "scores"):
        if (factor := _factor(m, f"{name}_times")) is not None:
            scale *= factor
        if (divisor := _factor(m, f"{name}_over")) is not None:
            scale /= divisor
    return scale


def _factor(m: Match, name: str) -> float | None:
    data: TensorRef | None = m.bindings.constants.get(name)
    if data is None:
        return None
    if data.size != 1 or data.ndim > m.rank(m.product.operands[0]):
        m.fail("{} is multiplied or divided by {} numbers, not one", name.partition("_")[0], data.size)
    factor = float(data.item())
    if not np.isfinite(factor) or factor == 0.0:
        m.fail("{} is multiplied or divided by {}", name.partition("_")[0], factor)
    return factor


# ---- masks -------------------------------------------------------------------------------------------------


def mask_of(m: Match) -> Value | None:
    """The mask; None if there is none."""
    return m.bindings.values.get("mask")
