"""The rewrites: a layer whose weight is a product of factors is a chain of thinner layers.

A rule holds the factors of one layer. `declared` is their product, in the shape of the layer's weight: with it in the
place of the weight, the rewrite is exact up to rounding, and that is how it is verified.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from graphopt.ir.graph import TensorType, Value
from graphopt.ir.weights import FLOATS, TensorRef
from graphopt.passes.fuse_conv_bn import bias_of, weight_is_transposed
from graphopt.rewrite.contract import Contract
from graphopt.rewrite.matcher import Name
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, const, opt
from graphopt.rewrite.rule import Match, Rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder


class Split(ABC):
    """A layer as a chain of layers. `factors` are in the order in which the layers run; empty to look for layers."""

    name: ClassVar[str]
    """Name of the rule."""

    def __init__(self, factors: Sequence[TensorRef] = ()) -> None:
        self.factors = tuple(factors)

    @abstractmethod
    def pattern(self, *variables: Any) -> OpPattern:
        """The layer, its weight bound as `w`."""

    @abstractmethod
    def declared(self, m: Match) -> TensorRef:
        """The product of the factors as the weight of the matched layer."""

    @staticmethod
    @abstractmethod
    def cost(shape: Sequence[int], ranks: Sequence[int], rows: Sequence[float]) -> float:
        """Multiply-adds of the chain for a weight of `shape` (as `Layer.shape` has it).

        `rows` counts positions: of the output, of the input, and of rows that are of the output and columns that are
        of the input.
        """

    @classmethod
    def parameters(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        """Elements of all factors."""
        return round(cls.cost(shape, ranks, (1.0, 1.0, 1.0)))

    def rule(self, contract: Contract) -> Rule:
        """This split as a rule."""
        return Rule(self, contract, self.name, keep_shared=False)


def check_weight(m: Match) -> None:
    """Refuse a weight that is no matrix of real numbers, or that stays in the model for somebody else."""
    if m.w.dtype not in FLOATS:
        m.fail("the weight is {}, not real", m.w.dtype)
    if 0 in m.w.shape:
        m.fail("the weight of shape {} is empty", list(m.w.shape))
    weight = m.bindings.values["w"]
    users = [u for u in m.graph.users(weight) if u not in m.calls]
    if users:
        names = Name(m.graph.name(weight)), Name(m.graph.node_name(users[0]))
        m.fail("the weight {} is shared with {}: it would stay beside its factors", *names)
    if m.graph.is_output(weight):
        m.fail("the weight {} is an output of the graph: it would stay beside its factors", Name(m.graph.name(weight)))


class SplitLinear(Split):
    """linear(x, F S, b) is linear(linear(x, F), S, b).

    Factors: F [in, r] and S [r, out]. Preconditions: a constant matrix that nothing else reads. Source: Denton et al.,
    "Exploiting Linear Structure Within Convolutional Networks", NeurIPS 2014.
    """

    name: ClassVar[str] = "split-linear"

    def pattern(self, op: PatternOps, x: Var, w: Var, b: Var) -> OpPattern:
        return op.linear(x, const(w), opt(const(b)), trans_w=any_).named("linear")

    def check(self, m: Match) -> None:
        check_weight(m)
        if m.w.ndim != 2:
            m.fail("the weight has {} axes, not two", m.w.ndim)

    def declared(self, m: Match) -> TensorRef:
        first, second = self.factors
        product = first @ second
        return product.transpose(1, 0) if weight_is_transposed(m) else product

    @staticmethod
    def cost(shape: Sequence[int], ranks: Sequence[int], rows: Sequence[float]) -> float:
        return rows[0] * ranks[0] * sum(shape)

    def rewrite(self, m: Match, build: Builder) -> Value:
        first, second = self.factors
        known = m.graph.type(m.x)
        shape = None if known is None or known.shape is None else (*known.shape[:-1], first.shape[1])
        hidden = _product(m, build, m.x, first, None, TensorType(m.w.dtype, shape))
        return _product(m, build, hidden, second, bias_of(m), m.out)


class SplitMatmul(SplitLinear):
    """matmul(x, F S) is matmul(matmul(x, F), S); as for a linear layer."""

    name: ClassVar[str] = "split-matmul"

    def pattern(self, op: PatternOps, x: Var, w: Var) -> OpPattern:  # type: ignore[override]
        return op.matmul(x, const(w)).named("linear")


def _product(m: Match, build: Builder, x: Value, weight: TensorRef, bias: TensorRef | None, like: Any) -> Value:
    """x @ weight + bias, with weight [in, out], by the op of the matched layer where the storage can say it."""
    transposed = weight_is_transposed(m)
    stored = weight.transpose(1, 0) if transposed else weight
    if m.linear.op == "linear" and build.can("linear", x, stored, bias, trans_w=transposed):
        return build.linear(x, stored, bias, like=like, trans_w=transposed)
    product = build.matmul(x, weight, like=like)
    return product if bias is None else build.add(product, bias, like=like)


class SplitGather(Split):
    """gather(F S, i) is gather(F, i) @ S: a table of embeddings as a narrower one and a projection.

    Factors: F [entries, r] and S [r, width]. Preconditions: a constant matrix, indexed along its first axis, that
    nothing else reads. Source: Chen et al., "GroupReduce", NeurIPS 2018.
    """

    name: ClassVar[str] = "split-gather"

    def pattern(self, op: PatternOps, w: Var, i: Var) -> OpPattern:
        return op.gather(const(w), i, axis=0).named("layer")

    def check(self, m: Match) -> None:
        check_weight(m)
        if m.w.ndim != 2:
            m.fail("the table has {} axes, not two", m.w.ndim)

    def declared(self, m: Match) -> TensorRef:
        return self.factors[0] @ self.factors[1]

    @staticmethod
    def cost(shape: Sequence[int], ranks: Sequence[int], rows: Sequence[float]) -> float:
        return rows[0] * ranks[0] * shape[1]

    @classmethod
    def parameters(cls, shape: Sequence[int], ranks: Sequence[int]) -> int:
        return ranks[0] * sum(shape)

    def rewrite(self, m: Match, build: Builder) -> Value:
        first, second = self.factors
        known = m.graph.type(m.i)
        shape = None if known is None or known.shape is None else (*known.shape, first.shape[1])
        hidden = build.gather(first, m.i, axis=0, like=TensorType(m.w.dtype, shape))
        return build.matmul(hidden, second, like=m.out)


class SplitConv(Split):
    """Base of the splits of a convolution: the bias stays with the last, strides, padding and dilation go to the
    convolutions along whose axes they act. Zeros that are padded behind a bias-free convolution are what it makes of
    padded zeros, so padding may be divided among them."""

    def pattern(self, op: PatternOps, x: Var, w: Var, b: Var) -> OpPattern:
        fields = {"stride": any_, "pads": any_, "dilation": any_, "groups": any_}
        return op.conv(x, const(w), opt(const(b)), **fields).named("conv")

    def check(self, m: Match) -> None:
        check_weight(m)
        if m.conv.fields["groups"] != 1:
            m.fail("the convolution has {} groups: its channels are split already", m.conv.fields["groups"])

    @abstractmethod
    def windows(self, fields: Any) -> Sequence[dict[str, tuple[int, ...]]]:
        """stride, pads and dilation of each convolution of the chain, from those of the one that is split."""

    def rewrite(self, m: Match, build: Builder) -> Value:
        value, last = m.x, len(self.factors) - 1
        for position, (factor, window) in enumerate(zip(self.factors, self.windows(m.conv.fields), strict=True)):
            bias, like = (m.b, m.out) if position == last else (None, None)
            value = build.conv(value, factor, bias, like=like, groups=1, **window)
        return value


def _whole(fields: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(fields[name]) for name in ("stride", "pads", "dilation")}


def _point(fields: Any) -> dict[str, tuple[int, ...]]:
    n = len(fields["stride"])
    return {"stride": (1,) * n, "pads": (0,) * (2 * n), "dilation": (1,) * n}


class SplitChannels(SplitConv):
    """conv(x, W, b) is a convolution of the same kernel to r channels, then one of 1 x 1 to all of them.

    Factors: F [r, in, *kernel] and S [out, r, 1, ..]: W[o] = sum of S[o, r] F[r]. Source: Zhang et al., "Accelerating
    Very Deep Convolutional Networks", TPAMI 2016.
    """

    name: ClassVar[str] = "split-channels"

    def declared(self, m: Match) -> TensorRef:
        first, second = self.factors
        rank = first.shape[0]
        return (second.reshape(-1, rank) @ first.reshape(rank, -1)).reshape(*m.w.shape)

    @staticmethod
    def cost(shape: Sequence[int], ranks: Sequence[int], rows: Sequence[float]) -> float:
        out, into, *kernel = shape
        return rows[0] * ranks[0] * (into * math.prod(kernel) + out)

    def windows(self, fields: Any) -> Sequence[dict[str, tuple[int, ...]]]:
        return [_whole(fields), _point(fields)]


class SplitSpatial(SplitConv):
    """conv2d(x, W, b) with a kernel of h x w is a convolution of h x 1 to r channels, then one of 1 x w.

    Factors: F [r, in, h, 1] and S [out, r, 1, w]: W[o, i, y, x] = sum of S[o, r, x] F[r, i, y]. Source: Jaderberg et
    al., "Speeding up Convolutional Neural Networks with Low Rank Expansions", BMVC 2014.
    """

    name: ClassVar[str] = "split-spatial"

    def check(self, m: Match) -> None:
        super().check(m)
        if m.w.ndim != 4 or 1 in m.w.shape[2:]:
            m.fail("a kernel of {} has no two axes to separate", list(m.w.shape[2:]))

    def declared(self, m: Match) -> TensorRef:
        first, second = self.factors
        out, into, height, width = m.w.shape
        rank = first.shape[0]
        rows = second.reshape(out, rank, width).transpose(0, 2, 1).reshape(out * width, rank)
        product = rows @ first.reshape(rank, into * height)
        return product.reshape(out, width, into, height).transpose(0, 2, 3, 1)

    @staticmethod
    def cost(shape: Sequence[int], ranks: Sequence[int], rows: Sequence[float]) -> float:
        out, into, height, width = shape
        return ranks[0] * (rows[2] * into * height + rows[0] * out * width)

    def windows(self, fields: Any) -> Sequence[dict[str, tuple[int, ...]]]:
        (down, across), (top, left, bottom, right), (dy, dx) = fields["stride"], fields["pads"], fields["dilation"]
        return [
            {"stride": (down, 1), "pads": (top, 0, bottom, 0), "dilation": (dy, 1)},
            {"stride": (1, across), "pads": (0, left, 0, right), "dilation": (1, dx)},
        ]


class SplitTucker(SplitConv):
    """conv(x, W, b) is a convolution of 1 x 1 to q channels, one of the same kernel from q to p channels, and one of
    1 x 1 to all of them.

    Factors: B [q, in, 1, ..], G [p, q, *kernel] and A [out, p, 1, ..]. Source: Kim et al., "Compression of Deep
    Convolutional Neural Networks for Fast and Low Power Mobile Applications", ICLR 2016.
    """

    name: ClassVar[str] = "split-tucker"

    def check(self, m: Match) -> None:
        super().check(m)
        if math.prod(m.w.shape[2:]) == 1:
            m.fail("a kernel of 1 has no core")

    def declared(self, m: Match) -> TensorRef:
        first, core, last = self.factors
        out, into, *kernel = m.w.shape
        p, q, size = core.shape[0], core.shape[1], math.prod(kernel)
        spread = (last.reshape(out, p) @ core.reshape(p, q * size)).reshape(out, q, size).transpose(0, 2, 1)
        product = spread.reshape(out * size, q) @ first.reshape(q, into)
        return product.reshape(out, size, into).transpose(0, 2, 1).reshape(*m.w.shape)

    @staticmethod
    def cost(shape: Sequence[int], ranks: Sequence[int], rows: Sequence[float]) -> float:
        (out, into, *kernel), (q, p) = shape, ranks
        return rows[1] * q * into + rows[0] * p * (q * math.prod(kernel) + out)

    def windows(self, fields: Any) -> Sequence[dict[str, tuple[int, ...]]]:
        return [_point(fields), _whole(fields), _point(fields)]
