"""Wrong rewrites that were reported against pytorch, onnx and their tools: undone, while the right ones are kept.

Every entry is a graph, one pattern, the rewrite as it was got wrong, and the rewrite as it should be.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from planted import Maker

from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Contract, Exact, Rounding
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.pattern import any_, const, many, opt
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify.verifier import MatchVerifier


@dataclass(frozen=True)
class Pair:
    """A pattern with the wrong and the right rewrite of it."""

    name: str
    graph: Callable[[str], ScratchGraph]
    pattern: Callable[..., Any]
    wrong: Callable[..., Any]
    right: Callable[..., Any]
    contract: Contract
    dtypes: tuple[str, ...]
    storages: tuple[str, ...]

    def rule(self, rewrite: Callable[..., Any]) -> Rule:
        methods = {"pattern": self.pattern, "rewrite": rewrite}
        return rule(contract=self.contract, name=self.name)(type("Definition", (), methods))


PAIRS: list[Pair] = []
FLOATS = ("float32", "bfloat16")


def pair(
    name: str,
    *,
    contract: Contract | None = None,
    dtypes: tuple[str, ...] = FLOATS,
    storages: tuple[str, ...] = ("onnx", "fx"),
) -> Callable[[type], type]:
    """Plant a class of static functions `graph`, `pattern`, `wrong` and `right`."""

    def decorate(definition: Any) -> type:
        parts = (definition.graph, definition.pattern, definition.wrong, definition.right)
        PAIRS.append(Pair(name, *parts, contract or Exact(), dtypes, storages))
        return definition

    return decorate


def attention_graph(dtype: str) -> ScratchGraph:
    """softmax(q k^T * 0.25) v with as many queries as features, so that shapes tell no axes apart."""
    m = Maker(dtype)
    q, k, v = (m.input(1, 2, 4, 4) for _ in range(3))
    keys = m.add("transpose", k, shape=(1, 2, 4, 4), perm=(0, 1, 3, 2))
    scores = m.add("matmul", q, keys, shape=(1, 2, 4, 4))
    scores = m.add("mul", scores, m.full(0.25), shape=(1, 2, 4, 4))
    weights = m.add("softmax", scores, shape=(1, 2, 4, 4), axis=3)
    return m.done(m.add("matmul", weights, v, shape=(1, 2, 4, 4)))


def attention_pattern(self, op, q, k, v, c):
    keys = op.transpose(k, perm=any_).named("keys")
    return op.matmul(op.softmax(op.mul(op.matmul(q, keys).named("scores"), const(c)), axis=3), v)


def scaled_first(self, m, build):
    """The scale moved to the queries."""
    queries = build.mul(m.q, m.c, like=m.q)
    keys = build.transpose(m.k, perm=m.keys.fields["perm"], like=m.keys.outputs[0])
    scores = build.matmul(queries, keys, like=m.scores.outputs[0])
    weights = build.softmax(scores, axis=3, like=m.scores.outputs[0])
    return build.matmul(weights, m.v)


@pair("attention-scale-ignored", contract=Rounding())
class _AttentionScale:
    """The scale of the model is replaced by 1 / sqrt(features)."""

    graph = attention_graph
    pattern = attention_pattern
    right = scaled_first

    def wrong(self, m, build):
        return build.attention(m.q, m.k, m.v, None, scale=0.5)


@pair("attention-made-causal", contract=Rounding())
class _AttentionCausal:
    graph = attention_graph
    pattern = attention_pattern
    right = scaled_first

    def wrong(self, m, build):
        return build.attention(m.q, m.k, m.v, None, scale=m.c.item(), causal=True)


def permuted_attention(dtype: str) -> ScratchGraph:
    """The permutation is none of the last two axes."""
    m = Maker(dtype)
    q, k, v = (m.input(2, 2, 4, 4) for _ in range(3))
    keys = m.add("transpose", k, shape=(2, 2, 4, 4), perm=(1, 0, 3, 2))
    scores = m.add("matmul", q, keys, shape=(2, 2, 4, 4))
    scores = m.add("mul", scores, m.full(0.25), shape=(2, 2, 4, 4))
    weights = m.add("softmax", scores, shape=(2, 2, 4, 4), axis=3)
    return m.done(m.add("matmul", weights, v, shape=(2, 2, 4, 4)))


@pair("any-permutation-taken-for-transposed-keys", contract=Rounding())
class _AnyPermutation:
    graph = permuted_attention
    pattern = attention_pattern
    right = scaled_first

    def wrong(self, m, build):
        return build.attention(m.q, m.k, m.v, None, scale=m.c.item())


def scaled_product(dtype: str) -> ScratchGraph:
    """0.5 * x @ w + 3 * b: what Gemm says with alpha and beta."""
    m = Maker(dtype)
    x = m.input(3, 4)
    y = m.add("mul", m.add("matmul", x, m.weight(4, 4), shape=(3, 4)), m.full(0.5), shape=(3, 4))
    return m.done(m.add("add", y, m.weight(4), shape=(3, 4)))


class _Gemm:
    graph = scaled_product

    def pattern(self, op, x, w, b, c):
        return op.add(op.mul(op.matmul(x, const(w)), const(c)), const(b))

    def right(self, m, build):
        return build.linear(m.x, m.w * m.c, m.b, trans_w=False)


@pair("alpha-ignored", contract=Rounding())
class _Alpha(_Gemm):
    def wrong(self, m, build):
        return build.linear(m.x, m.w, m.b, trans_w=False)


@pair("alpha-on-the-bias-too", contract=Rounding())
class _AlphaOnBias(_Gemm):
    def wrong(self, m, build):
        return build.linear(m.x, m.w * m.c, m.b * m.c, trans_w=False)


def one(
    op: str,
    *shape: int,
    out: tuple[int, ...] | None = None,
    operands: Callable[[Maker], Any] = lambda m: (),
    **fields: Any,
):
    """A graph of one op on one input, and whatever further operands are made for it."""

    def graph(dtype: str) -> ScratchGraph:
        m = Maker(dtype)
        x = m.input(*shape)
        return m.done(m.add(op, x, *operands(m), shape=out or shape, **fields))

    return staticmethod(graph)


def again(op: str, *names: str, **change: Any) -> Callable[..., Any]:
    """A rewrite of the call named "call" into itself, with some operands and fields changed."""

    def rewrite(self, m, build):
        operands = [getattr(m, name) for name in names]
        return getattr(build, op)(*operands, **dict(m.call.fields) | change)

    return rewrite


@pair("copied-size-taken-from-another-tensor", storages=("onnx",))
class _ReshapeZero:
    """reshape(reshape(x, (6, 4)), (0, 2, 2)): the 0 copies a size of the inner result, not of x."""

    def graph(dtype: str) -> ScratchGraph:
        m = Maker(dtype)
        inner = m.graph.append("reshape", m.input(4, 6), None, types=[TensorType(dtype, (6, 4))], shape=(6, 4))
        outer = m.graph.append("reshape", inner, None, types=[TensorType(dtype, (6, 2, 2))], shape=(6, 2, 2))
        return m.done(m.add("neg", outer, shape=(6, 2, 2)))

    def pattern(self, op, x):
        return op.reshape(op.reshape(x, shape=any_).named("inner"), shape=any_).named("outer")

    def wrong(self, m, build):
        return build.reshape(m.x, ArrayRef(np.array([0, -1, 2])), shape=None)

    def right(self, m, build):
        return build.reshape(m.x, shape=m.outer.fields["shape"])


@pair("bounds-swapped")
class _Bounds:
    graph = one("clamp", 4, 4, operands=lambda m: (m.full(-0.5), m.full(0.75)))
    wrong = again("clamp", "x", "high", "low")
    right = again("clamp", "x", "low", "high")

    def pattern(self, op, x, low, high):
        return op.clamp(x, const(low), const(high)).named("call")


@pair("far-bound-dropped")
class _FarBound:
    """No ordinary number reaches the bound."""

    graph = one("clamp", 4, 4, operands=lambda m: (m.full(-60000.0), m.full(60000.0)))
    right = again("clamp", "x", "low", "high")

    def pattern(self, op, x, low, high):
        return op.clamp(x, const(low), const(high)).named("call")

    def wrong(self, m, build):
        return m.x


def centred(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(4, 4)
    mean = m.add("reduce_mean", x, shape=(4, 1), axes=(1,), keepdims=True)
    return m.done(m.add("sub", x, mean, shape=(4, 4)))


@pair("kept-dimension-dropped", contract=Rounding())
class _Keepdims:
    """x - mean(x) on a square: without the kept dimension rows are subtracted from columns."""

    graph = centred

    def pattern(self, op, x):
        return op.sub(x, op.reduce_mean(x, axes=any_, keepdims=True).named("mean"))

    def wrong(self, m, build):
        return build.sub(m.x, build.reduce_mean(m.x, axes=m.mean.fields["axes"], keepdims=False))

    def right(self, m, build):
        total = build.reduce_sum(m.x, axes=(1,), keepdims=True, like=m.mean.outputs[0])
        size = build.const(4.0, dtype=m.type(m.x).dtype)
        return build.sub(m.x, build.div(total, size, like=m.mean.outputs[0]))


@pair("value-of-padding-ignored", storages=("onnx",))
class _PadValue:
    graph = one("pad", 3, 4, out=(5, 4), operands=lambda m: (m.full(1.5),), pads=(1, 0, 1, 0), mode="constant")
    right = again("pad", "x", "v")

    def pattern(self, op, x, v):
        return op.pad(x, const(v), pads=any_, mode=any_).named("call")

    def wrong(self, m, build):
        return build.pad(m.x, None, **m.call.fields)


@pair("padding-moved-into-pool")
class _PadIntoPool:
    """A pool pads with minus infinity, not with zeros."""

    def graph(dtype: str) -> ScratchGraph:
        m = Maker(dtype)
        x = m.add("pad", m.input(1, 2, 4, 4), None, shape=(1, 2, 6, 6), pads=(0, 0, 1, 1, 0, 0, 1, 1), mode="constant")
        return m.done(
            m.add("max_pool", x, shape=(1, 2, 4, 4), kernel=(3, 3), stride=(1, 1), pads=(0, 0, 0, 0), dilation=(1, 1))
        )

    def pattern(self, op, x):
        padded = op.pad(x, pads=any_, mode=any_).named("pad")
        return op.max_pool(padded, kernel=any_, stride=any_, pads=any_, dilation=any_).named("call")

    def wrong(self, m, build):
        return build.max_pool(m.x, **dict(m.call.fields) | {"pads": (1, 1, 1, 1)})

    def right(self, m, build):
        return build.max_pool(build.pad(m.x, None, **m.pad.fields, like=m.pad.outputs[0]), **m.call.fields)


@pair("count-of-padding-ignored", contract=Rounding())
class _CountPad:
    graph = one(
        "avg_pool", 1, 2, 4, 4, kernel=(3, 3), stride=(1, 1), pads=(1, 1, 1, 1), dilation=(1, 1), count_include_pad=True
    )
    wrong = again("avg_pool", "x", count_include_pad=False)
    right = again("avg_pool", "x")

    def pattern(self, op, x):
        fields = dict.fromkeys(("kernel", "stride", "pads", "dilation", "count_include_pad"), any_)
        return op.avg_pool(x, **fields).named("call")


def transposed_conv(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    geometry = {"stride": (2, 2), "pads": (0, 0, 0, 0), "dilation": (1, 1), "output_padding": (0, 0), "groups": 2}
    y = m.add("conv_transpose", m.input(1, 4, 3, 3), m.weight(4, 2, 2, 2), m.weight(4), shape=(1, 4, 6, 6), **geometry)
    scale, shift, mean, var = m.weight(4, low=0.5), m.weight(4), m.weight(4), m.weight(4, low=0.02)
    return m.done(m.add("batch_norm", y, scale, shift, mean, var, shape=(1, 4, 6, 6), eps=1e-2))


@pair("groups-of-a-transposed-convolution-ignored", contract=Rounding())
class _TransposedGroups:
    """Its weight is [in, out / groups, ...]: the outputs of a group are in its second axis."""

    graph = transposed_conv

    def pattern(self, op, x, w, b, scale, shift, mean, var):
        fields = dict.fromkeys(("stride", "pads", "dilation", "output_padding", "groups"), any_)
        conv = op.conv_transpose(x, const(w), const(b), **fields).named("conv")
        return op.batch_norm(conv, const(scale), const(shift), const(mean), const(var), eps=any_).named("bn")

    def wrong(self, m, build):
        s = m.scale / (m.var + m.bn.fields["eps"]).sqrt()
        return build.conv_transpose(m.x, m.w * s.reshape(-1, 1, 1, 1), (m.b - m.mean) * s + m.shift, **m.conv.fields)

    def right(self, m, build):
        s = m.scale / (m.var + m.bn.fields["eps"]).sqrt()
        w = (m.w.reshape(2, 2, 2, 2, 2) * s.reshape(2, 1, 2, 1, 1)).reshape(4, 2, 2, 2)
        return build.conv_transpose(m.x, w, (m.b - m.mean) * s + m.shift, **m.conv.fields)


def norm_before_conv(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(1, 3, 5, 5)
    scale, shift, mean, var = m.weight(3, low=0.5), m.weight(3), m.weight(3), m.weight(3, low=0.02)
    y = m.add("batch_norm", x, scale, shift, mean, var, shape=(1, 3, 5, 5), eps=1e-2)
    geometry = {"stride": (1, 1), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    return m.done(m.add("conv", y, m.weight(2, 3, 3, 3), m.weight(2), shape=(1, 2, 5, 5), **geometry))


@pair("shift-moved-past-padding", contract=Rounding())
class _ShiftPastPadding:
    """A norm in front of a padded convolution: the border sees zeros, not shifted zeros."""

    graph = norm_before_conv

    def pattern(self, op, x, w, b, scale, shift, mean, var):
        bn = op.batch_norm(x, const(scale), const(shift), const(mean), const(var), eps=any_).named("bn")
        fields = dict.fromkeys(("stride", "pads", "dilation", "groups"), any_)
        return op.conv(bn, const(w), const(b), **fields).named("conv")

    def wrong(self, m, build):
        s = m.scale / (m.var + m.bn.fields["eps"]).sqrt()
        t = (m.shift - m.mean * s).reshape(1, 3, 1, 1)
        b = m.b + (m.w * t).call("reduce_sum", axes=(1, 2, 3), keepdims=False)
        return build.conv(m.x, m.w * s.reshape(1, 3, 1, 1), b, **m.conv.fields)

    def right(self, m, build):
        s = m.scale / (m.var + m.bn.fields["eps"]).sqrt()
        t = (m.shift - m.mean * s).reshape(1, 3, 1, 1)
        y = build.add(build.mul(m.x, s.reshape(1, 3, 1, 1), like=m.x), t, like=m.x)
        return build.conv(y, m.w, m.b, **m.conv.fields)


@pair("number-of-groups-changed", contract=Rounding())
class _Groups:
    graph = one("group_norm", 2, 4, 3, operands=lambda m: (m.weight(4), m.weight(4)), groups=2, eps=1e-3)
    wrong = again("group_norm", "x", "s", "b", groups=4)
    right = again("group_norm", "x", "s", "b")

    def pattern(self, op, x, s, b):
        return op.group_norm(x, const(s), const(b), groups=any_, eps=any_).named("call")


@pair("normalised-over-another-axis", contract=Rounding())
class _NormAxis:
    graph = one("layer_norm", 2, 4, 4, axis=-1, eps=1e-3)
    wrong = again("layer_norm", "x", axis=-2)
    right = again("layer_norm", "x", "s", "b")

    def pattern(self, op, x, s, b):
        return op.layer_norm(x, opt(const(s)), opt(const(b)), axis=any_, eps=any_).named("call")


@pair("softmax-over-all-that-follows", contract=Rounding())
class _OldSoftmax:
    """Before opset 13 softmax flattened all axes from the one given."""

    graph = one("softmax", 2, 3, 4, axis=1)
    right = again("softmax", "x")

    def pattern(self, op, x):
        return op.softmax(x, axis=any_).named("call")

    def wrong(self, m, build):
        flat = build.reshape(m.x, shape=(2, 12))
        return build.reshape(build.softmax(flat, axis=1), shape=(2, 3, 4))


def choice(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x, y = m.input(4, 4), m.input(4, 4)
    bigger = m.graph.append("greater", x, y, types=[TensorType("bool", (4, 4))])
    return m.done(m.add("where", bigger, x, m.full(0.0), shape=(4, 4)))


@pair("choices-swapped", contract=Rounding())
class _Choices:
    """Rounding, since onnxruntime's kernel takes the sign of a zero from the operand that it looks at first."""

    graph = choice

    def pattern(self, op, x, y, z):
        return op.where(op.greater(x, y).named("condition"), x, const(z))

    def wrong(self, m, build):
        return build.where(m.condition.outputs[0], m.z, m.x)

    def right(self, m, build):
        condition = build.greater(m.x, m.y, like=m.condition.outputs[0])
        return build.where(build.logical_not(condition, like=m.condition.outputs[0]), m.z, m.x)


@pair("comparison-negated-without-nan", contract=Rounding())
class _Negated:
    """not (x > y) is y >= x only for numbers."""

    graph = choice
    pattern = _Choices.pattern
    right = _Choices.right

    def wrong(self, m, build):
        return build.where(build.less_equal(m.x, m.y, like=m.condition.outputs[0]), m.z, m.x)


def places(m: Maker) -> tuple[ArrayRef]:
    return (ArrayRef(np.array([2, -1, 0, 1])),)


@pair("gathered-along-another-axis")
class _GatherAxis:
    graph = one("gather", 4, 4, operands=places, axis=0)
    wrong = again("gather", "x", "i", axis=1)
    right = again("gather", "x", "i")

    def pattern(self, op, x, i):
        return op.gather(x, const(i), axis=any_).named("call")


@pair("negative-place-taken-for-the-first")
class _NegativePlace:
    graph = _GatherAxis.graph
    pattern = _GatherAxis.pattern

    def wrong(self, m, build):
        return build.gather(m.x, ArrayRef(np.maximum(m.i.numpy(), 0)), **m.call.fields)

    def right(self, m, build):
        return build.gather(m.x, ArrayRef(m.i.numpy() % 4), **m.call.fields)


@pair("step-dropped")
class _Step:
    graph = one("slice", 8, 3, out=(2, 3), starts=(1,), ends=(5,), axes=(0,), steps=(2,))
    right = again("slice", "x")

    def pattern(self, op, x):
        return op.slice(x, starts=any_, ends=any_, axes=any_, steps=any_).named("call")

    def wrong(self, m, build):
        return build.slice(m.x, starts=(1,), ends=(3,), axes=(0,), steps=(1,))


def halves(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(4, 2)
    types = [TensorType(dtype, (2, 2))] * 2
    a, b = m.graph.append("split", x, types=types, sizes=(2, 2), axis=0)
    return m.done(m.add("concat", b, a, shape=(4, 2), axis=0))


@pair("halves-joined-in-their-old-order")
class _Halves:
    """concat(b, a) of split(x) = (a, b) is not x."""

    graph = halves

    def pattern(self, op, xs):
        return op.concat(many(xs), axis=0).named("call")

    def wrong(self, m, build):
        return build.concat(*reversed(m.xs), axis=0)

    def right(self, m, build):
        return build.concat(*m.xs, axis=0)


@pair("truncation-dropped")
class _Truncation:
    """A float cast to an integer and back."""

    def graph(dtype: str) -> ScratchGraph:
        m = Maker(dtype)
        whole = m.graph.append("cast", m.input(4, 4), types=[TensorType("int32", (4, 4))], dtype="int32")
        return m.done(m.add("cast", whole, shape=(4, 4), dtype=dtype))

    def pattern(self, op, x):
        return op.cast(op.cast(x, dtype=any_).named("inner"), dtype=any_).named("outer")

    def wrong(self, m, build):
        return m.x

    def right(self, m, build):
        return build.cast(build.cast(m.x, dtype="int32", like=m.inner.outputs[0]), dtype=m.outer.fields["dtype"])


def narrowed(through: str) -> Callable[[str], ScratchGraph]:
    def graph(dtype: str) -> ScratchGraph:
        m = Maker(dtype)
        narrow = m.graph.append("cast", m.input(4, 4), types=[TensorType(through, (4, 4))], dtype=through)
        return m.done(m.add("cast", narrow, shape=(4, 4), dtype=dtype))

    return graph


@pair("wrapping-of-integers-dropped", dtypes=("int64",))
class _Wrapping:
    """int64 -> int32 -> int64 changes what is beyond 31 bits."""

    graph = narrowed("int32")
    pattern = _Truncation.pattern
    wrong = _Truncation.wrong
    right = _Truncation.right


@pair("rounding-of-integers-dropped", dtypes=("int64",))
class _RoundedIntegers:
    """int64 -> float32 -> int64 changes what is beyond 24 bits."""

    graph = narrowed("float32")
    pattern = _Truncation.pattern
    wrong = _Truncation.wrong

    def right(self, m, build):
        return build.cast(build.cast(m.x, dtype="float32", like=m.inner.outputs[0]), dtype="int64")


@pair("bound-of-integers-dropped", dtypes=("int64", "int32"))
class _IntegerBound:
    graph = one("clamp", 4, 4, operands=lambda m: (m.full(-1000), m.full(1000)))
    pattern = _Bounds.pattern
    wrong = _FarBound.wrong
    right = _Bounds.right


def integer_halves(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    doubled = m.add("mul", m.input(4, 4), m.full(2), shape=(4, 4))
    return m.done(m.add("div", doubled, m.full(2), shape=(4, 4), rounding="trunc"))


@pair("overflow-of-integers-ignored", dtypes=("int32",))
class _Overflow:
    """2 * x / 2 is not x where 2 * x wraps around."""

    graph = integer_halves

    def pattern(self, op, x, a, b):
        return op.div(op.mul(x, const(a)).named("product"), const(b), rounding="trunc")

    def wrong(self, m, build):
        return m.x

    def right(self, m, build):
        return build.div(build.add(m.x, m.x, like=m.x), m.b, rounding="trunc")


@pair("accumulation-includes-itself", contract=Rounding(), dtypes=("float32",), storages=("onnx",))
class _Exclusive:
    graph = one("cumsum", 4, 4, axis=0, exclusive=True, reverse=False)
    wrong = again("cumsum", "x", exclusive=False)
    right = again("cumsum", "x")

    def pattern(self, op, x):
        return op.cumsum(x, axis=any_, exclusive=any_, reverse=any_).named("call")


@pair("equation-transposed", contract=Rounding(), dtypes=("float32",))
class _Equation:
    def graph(dtype: str) -> ScratchGraph:
        m = Maker(dtype)
        return m.done(m.add("einsum", m.input(3, 4, 4), m.input(3, 4, 4), shape=(3, 4, 4), equation="bqd,bkd->bqk"))

    def pattern(self, op, xs):
        return op.einsum(many(xs), equation=any_)

    def wrong(self, m, build):
        return build.matmul(*m.xs)

    def right(self, m, build):
        return build.matmul(m.xs[0], build.transpose(m.xs[1], perm=(0, 2, 1), like=m.xs[1]))


def applied(planted: Pair, rewrite: Callable[..., Any], storage: str, dtype: str) -> tuple[Any, Any, str]:
    graph = from_scratch(planted.graph(dtype), storage, opset=23).main
    before = graph.fingerprint()
    ledger = Ledger(1)
    ledger.open_pass("test")
    Driver([planted.rule(rewrite)], Editor(graph, ledger, MatchVerifier())).run()
    return ledger.applications, graph, before


CASES = [pytest.param(p, s, d, id=f"{p.name}-{s}-{d}") for p in PAIRS for s in p.storages for d in p.dtypes]


@pytest.mark.parametrize(("planted", "storage", "dtype"), CASES)
def test_the_wrong_rewrite_is_undone(planted: Pair, storage: str, dtype: str):
    applications, graph, before = applied(planted, planted.wrong, storage, dtype)
    assert [a.status for a in applications] == ["undone"], applications
    # It was written and judged, and did not fail on the way.
    assert not applications[0].reason.startswith(("cannot be written", "the rewrite raised")), applications
    assert graph.fingerprint() == before


@pytest.mark.parametrize(("planted", "storage", "dtype"), CASES)
def test_the_right_rewrite_is_kept(planted: Pair, storage: str, dtype: str):
    applications, _, _ = applied(planted, planted.right, storage, dtype)
    assert [a.status for a in applications] == ["kept"], applications
    assert applications[0].evidence.kind in ("bit-equal", "executed")


def test_enough_is_planted():
    assert len(PAIRS) >= 25
