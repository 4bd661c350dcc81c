"""Attention in standard ops: as one op where the storage has it, and einsums as matmuls where it has not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.ir.graph import TensorType, Value
from graphopt.passes.attention_masks import Bias, plan_bias, plan_bias_for_batch, write_bias
from graphopt.passes.attention_pattern import (
    SIDES,
    Attention,
    Operand,
    by_einsum,
    by_matmul,
    mask_of,
    operand,
    read_attention,
)
from graphopt.passes.attention_products import keep, swap
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import OpPattern, PatternOps
from graphopt.rewrite.rule import Match, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder


def ordered(build: Builder, side: Operand) -> Any:
    """Queries, keys or values as [*batch, positions, features]."""
    value: Value = side.value
    return value if side.perm == keep(len(side.perm)) else build.transpose(value, perm=side.perm)


class OneOp:
    """softmax(scale * q @ k^T + mask) @ v over [batch, heads, positions, features], or without heads, is attention.

    Preconditions: the storage has the op (torch; ONNX from opset 23 on); a mask is added and broadcasts as it should;
    the scale is positive, as onnxruntime asks.
    Contract: rounding, for finite inputs: the op gives 0 for a query whose keys are all masked by minus infinity,
    where the softmax gives NaN, and its kernels let other NaN come out elsewhere. Source: Vaswani et al., "Attention
    is all you need", 2017, section 3.2.1.
    """

    def check(self, m: Match) -> None:
        found = read_attention(m)
        if found.rank not in (3, 4):
            m.fail("attention over {} axes", found.rank)
        if found.scale <= 0.0:
            m.fail("the scale is {}, and not every kernel takes one that is not positive", found.scale)
        dtype = m.type(found.q.value).dtype
        types = [TensorType(dtype, self._with_heads(side.shape)) for side in (found.q, found.k, found.v)]
        if (reason := m.graph.can_emit("attention", self._fields(found), [*types, None])) is not None:
            m.fail("{}", reason)
        self._plan_bias(m, found)

    @staticmethod
    def _with_heads(shape: tuple[Any, ...]) -> tuple[Any, ...]:
        return shape if len(shape) == 4 else (shape[0], 1, *shape[1:])

    @staticmethod
    def _fields(found: Attention) -> dict[str, Any]:
        return {"scale": found.scale, "causal": False, "gqa": False}

    @staticmethod
    def _plan_bias(m: Match, found: Attention) -> Bias | None:
        return plan_bias(m, found) if found.rank == 4 else plan_bias_for_batch(m, found)

    def rewrite(self, m: Match, build: Builder) -> Any:
        found = read_attention(m)
        bias = write_bias(m, build, self._plan_bias(m, found))
        q, k, v = (ordered(build, side) for side in (found.q, found.k, found.v))
        if found.rank == 3:
            q, k, v = (build.unsqueeze(x, axes=(1,)) for x in (q, k, v))
        plain = found.rank == 4 and found.out == keep(4)
        out = build.attention(q, k, v, bias, like=m.out if plain else None, **self._fields(found))
        if found.rank == 3:
            out = build.squeeze(out, axes=(1,))
        return out if found.out == keep(found.rank) else build.transpose(out, perm=found.out, like=m.out)


@rule(contract=Rounding(special=False), keep_shared=True)
class MatmulsToAttention(OneOp):
    """Two matmuls around a softmax as one op; see OneOp."""

    def pattern(self, op: PatternOps) -> OpPattern:
        return by_matmul(op, *(operand(op, side) for side in SIDES))


@rule(contract=Rounding(special=False), keep_shared=True)
class EinsumsToAttention(OneOp):
    """Two einsums around a softmax as one op; see OneOp."""

    def pattern(self, op: PatternOps) -> OpPattern:
        return by_einsum(op, *(operand(op, side) for side in SIDES))


@rule(contract=Rounding(), keep_shared=True)
class EinsumsToMatmuls:
    """Two einsums around a softmax are two matmuls around it, of transposed operands.

    The factors of queries, keys and scores become one factor of the queries. Preconditions: what read_attention
    asks. Contract: rounding. Source: definition of the einsum.
    """

    def pattern(self, op: PatternOps) -> OpPattern:
        return by_einsum(op, *(operand(op, side) for side in SIDES))

    def check(self, m: Match) -> None:
        read_attention(m)

    def rewrite(self, m: Match, build: Builder) -> Any:
        found = read_attention(m)
        q, v = ordered(build, found.q), ordered(build, found.v)
        last = swap(found.rank)
        keys = Operand(found.k.value, tuple(found.k.perm[i] for i in last), tuple(found.k.shape[i] for i in last))
        if found.scale != 1.0:
            q = build.mul(q, build.const(found.scale, "scale", m.type(found.q.value).dtype))
        scores = build.matmul(q, ordered(build, keys), like=m.product.outputs[0])
        if (mask := mask_of(m)) is not None:
            scores = build.add(scores, mask, like=m.softmax.outputs[0])
        weights = build.softmax(scores, axis=found.rank - 1, like=m.softmax.outputs[0])
        out = build.matmul(weights, v, like=m.out if found.out == keep(found.rank) else None)
        return out if found.out == keep(found.rank) else build.transpose(out, perm=found.out, like=m.out)


# Any: to a type checker, a class stays a class whatever decorates it.
ONE_OP_RULES: tuple[Any, ...] = (MatmulsToAttention, EinsumsToAttention)
MATMUL_RULES: tuple[Any, ...] = (EinsumsToMatmuls,)
