"""The linear layers around attention to few keys, multiplied into these keys and their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.graph import Dim, TensorType, Value
from graphopt.passes.attention_heads import HEADS_APART, require_heads_apart, require_joined
from graphopt.passes.attention_pattern import (
    Attention,
    Operand,
    joined_heads,
    mask_of,
    operand,
    read_attention,
    split_operand,
)
from graphopt.passes.attention_products import compose, keep, swap
from graphopt.passes.layout_identities import require_stated_targets
from graphopt.passes.merge_linear import check_layers, constant, layer, matrix
from graphopt.pipeline.pass_ import RulePass
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, const, opt
from graphopt.rewrite.rule import Match, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder


class AttentionBetweenLayers:
    """linear(join(softmax(scale * q @ k^T) @ v), O, o), where q are the heads of linear(x, Q, p), is
    softmax(x @ K + c) @ V + o: for each head h, K_h = scale * Q_h k_h^T, c_h = scale * p_h k_h^T and V_h = v_h O_h.

    The columns of K and the rows of V are those of all heads together, [heads * keys]; the softmax is taken head by
    head. Q_h are the columns of Q that make head h, O_h the rows of O that read it.
    Preconditions: heads of tokens [batch, positions, heads * features], split and joined by reshapes and transposes;
    positions, keys, heads and features are numbers above 0; no mask; two constant weights, nobody else's, not of
    float16, of which K and V may leave the range where k and v do not; nothing else reads what is between. Contract:
    rounding, for finite inputs whose K and V are finite: infinities of different signs may meet in the one and not in
    the other. Scores in the hundreds leave few digits to either, and what is kept of them is up to the check.
    Source: associativity of the product of matrices; DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1.2, where projections
    are absorbed into others in this way.
    """

    def check(self, m: Match) -> None:
        require_stated_targets(m)
        found = read_attention(m)
        if mask_of(m) is not None:
            m.fail("the scores have a mask")
        self._check_layout(m, found)
        check_layers(m)
        if m.bindings.values["w1"] == m.bindings.values["w2"]:
            m.fail("both layers have the same weight: it would be stored twice")
        if m.w1.dtype == "float16":
            m.fail("products of the layers with keys and values may leave the range of float16")

    @staticmethod
    def _check_layout(m: Match, found: Attention) -> None:
        require_heads_apart(m, found, ("q",))
        for name, side in (("queries", found.q), ("keys", found.k), ("values", found.v)):
            if not all(isinstance(size, int) and size > 0 for size in side.shape[1:]):
                m.fail("{} have the sizes {}, not numbers above 0 behind the batch", name, list(side.shape))
        tokens, read = m.q_split.operands[0], m.tokens.outputs[0]
        require_joined(m, "what queries are made of", m.type(tokens).shape, found.q.shape)
        require_joined(m, "the result", m.type(read).shape, (*found.q.shape[:3], found.v.shape[3]))

    def pays(self, m: Match) -> None:
        before, after = _multiplications(m, read_attention(m))
        if after >= before:
            m.fail("{} multiply-adds a sample become {}: there are too many keys", before, after)

    def rewrite(self, m: Match, build: Builder) -> Value:
        return _Writing(m, build).attention()


def _multiplications(m: Match, found: Attention) -> tuple[int, int]:
    """What a sample costs before and after. Nothing here knows whether `hoist` will compute what is made of keys and
    values once for many calls: each call pays for it."""
    heads, queries, features = map(_number, found.q.shape[1:])
    keys, values = map(_number, found.v.shape[2:])
    into, out = matrix(m.w1, m.first).shape[0], matrix(m.w2, m.second).shape[1]
    inner = heads * (features * into + values * out)
    before = queries * (inner + heads * keys * (features + values))
    return before, keys * inner + queries * heads * keys * (into + out)


class _Writing:
    """One attention as it is written."""

    def __init__(self, m: Match, build: Builder) -> None:
        self.m, self.build, self.found = m, build, read_attention(m)
        self.batch, heads, queries, _ = self.found.q.shape
        self.heads, self.queries, self.keys = _number(heads), _number(queries), _number(self.found.k.shape[2])
        self.query, self.project = matrix(m.w1, m.first), matrix(m.w2, m.second)

    def attention(self) -> Value:
        build, columns = self.build, self.heads * self.keys
        flat, apart = (self.batch, self.queries, columns), (self.batch, self.queries, self.heads, self.keys)
        scores = build.matmul(self.m.x, self.absorbed_keys(), like=self.type(*flat))
        if (inner := constant(self.m, "b1")) is not None:
            scores = build.add(scores, self.bias_of_scores(inner), like=self.type(*flat))
        by_head = build.reshape(scores, shape=(-1, *apart[1:]), like=self.type(*apart))
        shares = build.softmax(by_head, axis=3, like=self.type(*apart))
        shares = build.reshape(shares, shape=(-1, *flat[1:]), like=self.type(*flat))
        sums = build.matmul(shares, self.absorbed_values(), like=self.m.out)
        outer = constant(self.m, "b2")
        return sums if outer is None else build.add(sums, outer, like=self.m.out)

    def absorbed_keys(self) -> Value:
        """K, [batch, in, heads * keys]."""
        into, features = self.query.shape[0], self.query.shape[1] // self.heads
        query = self.query.reshape(into, self.heads, features).transpose(1, 0, 2) * self.found.scale
        build, apart = self.build, (self.batch, self.heads, into, self.keys)
        keys = build.matmul(query, self.turned_keys(), like=self.type(*apart))
        keys = build.transpose(keys, perm=HEADS_APART, like=self.type(*(apart[i] for i in HEADS_APART)))
        columns = self.heads * self.keys
        return build.reshape(keys, shape=(-1, into, columns), like=self.type(self.batch, into, columns))

    def bias_of_scores(self, bias: Any) -> Value:
        """c, [batch, 1, heads * keys]."""
        build, columns = self.build, self.heads * self.keys
        rows = bias.reshape(self.heads, 1, -1) * self.found.scale
        c = build.matmul(rows, self.turned_keys(), like=self.type(self.batch, self.heads, 1, self.keys))
        return build.reshape(c, shape=(-1, 1, columns), like=self.type(self.batch, 1, columns))

    def absorbed_values(self) -> Value:
        """V, [batch, heads * keys, out]."""
        inner, out = self.project.shape
        project = self.project.reshape(self.heads, inner // self.heads, out)
        like = self.type(self.batch, self.heads, self.keys, out)
        values = self.build.matmul(self.ordered(self.found.v, keep(4)), project, like=like)
        rows = self.heads * self.keys
        return self.build.reshape(values, shape=(-1, rows, out), like=self.type(self.batch, rows, out))

    def turned_keys(self) -> Value:
        """k^T, [batch, heads, features, keys]."""
        return self.ordered(self.found.k, swap(4))

    def ordered(self, side: Operand, then: tuple[int, ...]) -> Value:
        perm = compose(side.perm, then)
        if perm == keep(4):
            return side.value
        like = self.type(*(side.shape[i] for i in then))
        return self.build.transpose(side.value, perm=perm, like=like)

    def type(self, *shape: Dim) -> TensorType:
        return TensorType(self.m.w1.dtype, shape)


def _number(size: Dim) -> int:
    assert isinstance(size, int), "checked before"
    return size


def _between(op: PatternOps, x: Var, w1: Var, b1: Var, target: Var) -> OpPattern:
    """The joined heads of attention whose queries are a linear layer."""
    queries = split_operand(op, "q", layer(op, x, w1, b1))
    return joined_heads(op, queries, operand(op, "k"), operand(op, "v"), target).named("tokens")


@rule(contract=Rounding(special=False))
class AttentionThenLinear(AttentionBetweenLayers):
    """Attention between a linear layer, which makes its queries, and another; see AttentionBetweenLayers."""

    def pattern(self, op: PatternOps, x: Var, w1: Var, b1: Var, w2: Var, b2: Var, target: Var) -> OpPattern:
        between = _between(op, x, w1, b1, target)
        return op.linear(between, const(w2), opt(const(b2)), trans_w=any_).named("second")


@rule(contract=Rounding(special=False))
class AttentionThenMatmul(AttentionBetweenLayers):
    """As AttentionThenLinear, where a product stands for the second layer; a sum behind it stays."""

    def pattern(self, op: PatternOps, x: Var, w1: Var, b1: Var, w2: Var, target: Var) -> OpPattern:
        return op.matmul(_between(op, x, w1, b1, target), const(w2)).named("second")


# Any: to a type checker, a class stays a class whatever decorates it.
RULES: tuple[Any, ...] = (AttentionThenLinear, AttentionThenMatmul)


@dataclass(frozen=True)
class AbsorbProjections(RulePass):
    """Multiplies the linear layers that make the queries of attention, and that read its result, into keys and values.

    Mathematics: (x Q_h) k_h^T = x (Q_h k_h^T), and (P_h v_h) O_h = P_h (v_h O_h). With L queries, S keys, H heads of d
    features, and C channels before and behind, that is 2 C H S (L + d) in place of 2 H d L (C + S) multiply-adds a
    sample: fewer where there are few keys, about fewer than d if L and C are much more. 2 C H S d of them are of keys
    and values alone, which a program computes once a request: ask for it behind `clean-up`, which brings attention into
    the forms that are read, and before `share-guidance` and `hoist`.

    Refused, with the reason: as many multiply-adds as before, masks, causal and grouped attention, sizes that are not
    numbers, weights that others read, float16, queries, scores or sums that others read.

    Contract: rounding, for finite inputs. Source: associativity of the product of matrices; the rules name theirs.
    """

    name: ClassVar[str] = "absorb-projections"
    contract: ClassVar[str] = (
        "Rounding, for finite inputs: at most 8 times the rounding error of the original, per application"
    )

    def rules(self) -> Sequence[Any]:
        return RULES
