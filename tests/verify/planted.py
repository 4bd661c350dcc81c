"""Wrong rewrites, planted on purpose: every one must be caught and undone alone.

Each entry is a graph, the pattern that a correct rule would have, and a rewrite with one mistake of a kind that real
tools have shipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef, numpy_dtype
from graphopt.rewrite.contract import Exact, Rounding
from graphopt.rewrite.pattern import any_, const, many, opt
from graphopt.rewrite.rule import Rule, rule


@dataclass(frozen=True)
class Planted:
    name: str
    graph: Callable[[str], ScratchGraph]
    rule: Rule
    storages: tuple[str, ...] = ("onnx", "fx")


class Maker:
    """A scratch graph of one dtype with seeded weights; every op's output type is given by its shape."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.graph = ScratchGraph()
        self.rng = np.random.default_rng(7)

    def input(self, *shape: int) -> Any:
        return self.graph.add_input(TensorType(self.dtype, shape))

    def weight(self, *shape: int, low: float | None = None) -> ArrayRef:
        data = self.rng.standard_normal(shape) if low is None else self.rng.uniform(low, low + 1, shape)
        return ArrayRef(data.astype(numpy_dtype(self.dtype)))

    def full(self, value: float, *shape: int) -> ArrayRef:
        return ArrayRef(np.full(shape, value, numpy_dtype(self.dtype)))

    def add(self, op: str, *operands: Any, shape: tuple[int, ...], **fields: Any) -> Any:
        return self.graph.append(op, *operands, types=[TensorType(self.dtype, shape)], **fields)

    def done(self, *outputs: Any) -> ScratchGraph:
        for output in outputs:
            self.graph.add_output(output)
        return self.graph


def conv_bn(dtype: str, *, training: bool = False, relu: bool = False) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(2, 4, 9, 9)
    geometry = {"stride": (2, 2), "pads": (1, 1, 1, 1), "dilation": (1, 1), "groups": 2}
    y = m.add("conv", x, m.weight(4, 2, 3, 3), m.weight(4), shape=(2, 4, 5, 5), **geometry)
    if not relu:
        y = m.add(
            "batch_norm", y, m.weight(4, low=0.5), m.weight(4), m.weight(4), m.weight(4, low=0.02),
            shape=(2, 4, 5, 5), eps=1e-2, training=training,
        )  # fmt: skip
    else:
        y = m.add("relu", y, shape=(2, 4, 5, 5))
    return m.done(m.add("sigmoid", y, shape=(2, 4, 5, 5)))


def conv_relu(dtype: str) -> ScratchGraph:
    return conv_bn(dtype, relu=True)


def conv_bn_training(dtype: str) -> ScratchGraph:
    return conv_bn(dtype, training=True)


def dilated_conv_bn(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(1, 3, 9, 9)
    y = m.add(
        "conv", x, m.weight(3, 3, 3, 3), m.weight(3), shape=(1, 3, 5, 5),
        stride=(1, 1), pads=(0, 0, 0, 0), dilation=(2, 2), groups=1,
    )  # fmt: skip
    y = m.add(
        "batch_norm",
        y,
        m.weight(3, low=0.5),
        m.weight(3),
        m.weight(3),
        m.weight(3, low=0.02),
        shape=(1, 3, 5, 5),
        eps=1e-2,
    )
    return m.done(m.add("sigmoid", y, shape=(1, 3, 5, 5)))


class _ConvBn:
    def pattern(self, op, x, w, b, scale, shift, mean, var):
        conv = op.conv(x, const(w), opt(const(b)), stride=any_, pads=any_, dilation=any_, groups=any_).named("conv")
        return op.batch_norm(conv, const(scale), const(shift), const(mean), const(var), eps=any_, training=any_).named(
            "bn"
        )

    def scale_of(self, m):
        return m.scale / (m.var + m.bn.fields["eps"]).sqrt()

    def weight_of(self, m, s):
        return m.w * s.reshape(-1, 1, 1, 1)

    def bias_of(self, m, s):
        return (m.b - m.mean) * s + m.shift

    def fields_of(self, m):
        return dict(m.conv.fields)

    def rewrite(self, m, build):
        s = self.scale_of(m)
        return build.conv(m.x, self.weight_of(m, s), self.bias_of(m, s), **self.fields_of(m))


PLANTED: list[Planted] = []


def plant(
    name: str, graph: Callable[[str], ScratchGraph], *, contract: Any = None, storages: tuple[str, ...] = ("onnx", "fx")
) -> Callable[[type], type]:
    def decorate(definition: type) -> type:
        made = rule(contract=contract or Rounding(), name=name)(definition)
        PLANTED.append(Planted(name, graph, made, storages))
        return definition

    return decorate


def _conv_bn_mutant(name: str, graph: Callable[[str], ScratchGraph] = conv_bn, **methods: Any) -> None:
    plant(name, graph)(type("Mutant", (_ConvBn,), methods))


def _with_field(**change: Any) -> Callable[..., dict[str, Any]]:
    return lambda self, m: dict(m.conv.fields) | change


_conv_bn_mutant("epsilon-dropped", scale_of=lambda self, m: m.scale / m.var.sqrt())
_conv_bn_mutant("epsilon-tenfold", scale_of=lambda self, m: m.scale / (m.var + 10 * m.bn.fields["eps"]).sqrt())
_conv_bn_mutant("epsilon-outside-the-root", scale_of=lambda self, m: m.scale / (m.var.sqrt() + m.bn.fields["eps"]))
_conv_bn_mutant("root-forgotten", scale_of=lambda self, m: m.scale / (m.var + m.bn.fields["eps"]))
_conv_bn_mutant(
    "mean-and-variance-swapped", scale_of=lambda self, m: m.scale / (m.mean * m.mean + m.bn.fields["eps"]).sqrt()
)
_conv_bn_mutant("scale-off-by-1e-3", weight_of=lambda self, m, s: m.w * s.reshape(-1, 1, 1, 1) * 1.001)
_conv_bn_mutant("scale-off-by-1e-6", weight_of=lambda self, m, s: m.w * s.reshape(-1, 1, 1, 1) * (1 + 1e-6))
_conv_bn_mutant("scale-on-the-wrong-axis", dilated_conv_bn, weight_of=lambda self, m, s: m.w * s.reshape(1, -1, 1, 1))
_conv_bn_mutant(
    "weight-transposed",
    dilated_conv_bn,
    weight_of=lambda self, m, s: (m.w * s.reshape(-1, 1, 1, 1)).transpose(1, 0, 2, 3),
)
_conv_bn_mutant("kernel-transposed", weight_of=lambda self, m, s: (m.w * s.reshape(-1, 1, 1, 1)).transpose(0, 1, 3, 2))
_conv_bn_mutant("mean-added", bias_of=lambda self, m, s: (m.b + m.mean) * s + m.shift)
_conv_bn_mutant("bias-not-scaled", bias_of=lambda self, m, s: m.b - m.mean * s + m.shift)
_conv_bn_mutant("shift-lost", bias_of=lambda self, m, s: (m.b - m.mean) * s)
_conv_bn_mutant("old-bias-lost", bias_of=lambda self, m, s: m.shift - m.mean * s)
_conv_bn_mutant("pads-off-by-one", fields_of=_with_field(pads=(0, 0, 2, 2)))
_conv_bn_mutant("pads-dropped", fields_of=_with_field(pads=(0, 0, 0, 0)))
_conv_bn_mutant("stride-dropped", fields_of=_with_field(stride=(1, 1)))
_conv_bn_mutant("dilation-dropped", dilated_conv_bn, fields_of=_with_field(dilation=(1, 1)))
_conv_bn_mutant("groups-ignored", fields_of=_with_field(groups=1))
# The functional torch form has no training-mode batch_norm that the vocabulary could write; see test_torch_traps.py.
plant("training-mode-folded", conv_bn_training, storages=("onnx",))(type("Mutant", (_ConvBn,), {}))
_conv_bn_mutant(
    "weight-rounded-through-float16",
    weight_of=lambda self, m, s: ArrayRef(
        (m.w * s.reshape(-1, 1, 1, 1)).numpy().astype(np.float16).astype(numpy_dtype(m.w.dtype))
    ),
)


@plant("relu-lost", conv_relu)
class _ReluLost:
    def pattern(self, op, x, w, b):
        return op.relu(op.conv(x, const(w), const(b), stride=any_, pads=any_, dilation=any_, groups=any_).named("conv"))

    def rewrite(self, m, build):
        return build.conv(m.x, m.w, m.b, **m.conv.fields)


def linear_chain(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(3, 5)
    y = m.add("matmul", x, m.weight(5, 5), shape=(3, 5))
    return m.done(m.add("sigmoid", m.add("add", y, m.weight(5), shape=(3, 5)), shape=(3, 5)))


class _MatmulAdd:
    def pattern(self, op, x, w, b):
        return op.add(op.matmul(x, const(w)), const(b))


@plant("square-weight-transposed", linear_chain)
class _TransposedLinear(_MatmulAdd):
    def rewrite(self, m, build):
        return build.linear(m.x, m.w, m.b)


@plant("bias-dropped", linear_chain)
class _BiasDropped(_MatmulAdd):
    def rewrite(self, m, build):
        return build.linear(m.x, m.w, None, trans_w=False)


@plant("shared-weight-edited", linear_chain)
class _EditsWeight(_MatmulAdd):
    def rewrite(self, m, build):
        m.w.numpy()[...] = 0
        return build.linear(m.x, m.w, m.b, trans_w=False)


@plant("operands-swapped", linear_chain)
class _Swapped(_MatmulAdd):
    def check(self, m):
        if m.type(m.x).shape != m.w.shape and m.w.shape[0] != m.w.shape[1]:
            m.fail("not square")

    def rewrite(self, m, build):
        return build.linear(m.x, m.w.transpose(1, 0) * m.b, m.b, trans_w=False)


def difference(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x, y = m.input(3, 4), m.input(3, 4)
    return m.done(m.add("sigmoid", m.add("sub", x, y, shape=(3, 4)), shape=(3, 4)))


@plant("subtraction-reversed", difference, contract=Exact())
class _Reversed:
    def pattern(self, op, x, y):
        return op.sub(x, y)

    def rewrite(self, m, build):
        return build.sub(m.y, m.x)


def small_addition(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(3, 4)
    return m.done(m.add("sigmoid", m.add("add", x, m.full(0.03125, 3, 4), shape=(3, 4)), shape=(3, 4)))


@plant("constant-taken-for-zero", small_addition, contract=Exact())
class _NotZero:
    def pattern(self, op, x, c):
        return op.add(x, const(c))

    def rewrite(self, m, build):
        return m.x


def broadcast(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(4, 4)
    return m.done(m.add("sigmoid", m.add("mul", x, m.weight(4, 1), shape=(4, 4)), shape=(4, 4)))


@plant("broadcast-changed", broadcast, contract=Exact())
class _Broadcast:
    def pattern(self, op, x, w):
        return op.mul(x, const(w))

    def rewrite(self, m, build):
        return build.mul(m.x, m.w.reshape(1, 4))


@plant("dtype-changed", difference, contract=Exact())
class _Dtype:
    def pattern(self, op, x, y):
        return op.sub(x, y)

    def rewrite(self, m, build):
        return build.cast(build.sub(m.x, m.y), dtype="float64")


def normalised(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(3, 8)
    y = m.add("layer_norm", x, m.weight(8), m.weight(8), shape=(3, 8), axis=-1, eps=1e-2)
    y = m.add("softmax", y, shape=(3, 8), axis=1)
    return m.done(m.add("sigmoid", y, shape=(3, 8)))


@plant("layer-norm-epsilon", normalised)
class _LayerNormEps:
    def pattern(self, op, x, scale, shift):
        return op.layer_norm(x, const(scale), const(shift), axis=-1, eps=any_).named("norm")

    def rewrite(self, m, build):
        return build.layer_norm(m.x, m.scale, m.shift, axis=-1, eps=1e-5)


@plant("softmax-axis", normalised)
class _SoftmaxAxis:
    def pattern(self, op, x):
        return op.softmax(x, axis=1)

    def rewrite(self, m, build):
        return build.softmax(m.x, axis=0)


def transposes(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(2, 2, 2)
    y = m.add("transpose", x, shape=(2, 2, 2), perm=(1, 2, 0))
    y = m.add("transpose", y, shape=(2, 2, 2), perm=(0, 2, 1))
    return m.done(m.add("sigmoid", y, shape=(2, 2, 2)))


@plant("permutations-composed-backwards", transposes, contract=Exact())
class _Composition:
    def pattern(self, op, x):
        return op.transpose(op.transpose(x, perm=any_).named("inner"), perm=any_).named("outer")

    def rewrite(self, m, build):
        outer, inner = m.outer.fields["perm"], m.inner.fields["perm"]
        return build.transpose(m.x, perm=tuple(outer[i] for i in inner))


@plant("transpose-as-reshape", transposes, contract=Exact())
class _AsReshape:
    def pattern(self, op, x):
        return op.transpose(x, perm=(1, 2, 0))

    def rewrite(self, m, build):
        return build.reshape(m.x, shape=(2, 2, 2))


def joined(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x, y = m.input(2, 3), m.input(2, 3)
    y = m.add("concat", x, y, shape=(2, 6), axis=1)
    return m.done(m.add("reduce_sum", y, shape=(2, 1), axes=(1,), keepdims=True), y)


@plant("concatenation-reordered", joined, contract=Exact())
class _Reordered:
    def pattern(self, op, xs):
        return op.concat(many(xs), axis=1)

    def check(self, m):
        return True

    def rewrite(self, m, build):
        return build.concat(*reversed(m.xs), axis=1)


@plant("sum-as-mean", joined)
class _SumAsMean:
    def pattern(self, op, x):
        return op.reduce_sum(x, axes=any_, keepdims=True).named("sum")

    def rewrite(self, m, build):
        return build.reduce_mean(m.x, **m.sum.fields)


def clipped(dtype: str) -> ScratchGraph:
    m = Maker(dtype)
    x = m.input(4, 4)
    y = m.add("clamp", x, m.full(0.0), m.full(1.5), shape=(4, 4))
    y = m.add("leaky_relu", y, shape=(4, 4), slope=0.25)
    return m.done(m.add("neg", y, shape=(4, 4)))


@plant("upper-bound-lost", clipped, contract=Exact())
class _UpperLost:
    def pattern(self, op, x, high):
        return op.clamp(x, const(0.0), const(high))

    def rewrite(self, m, build):
        return build.relu(m.x)


@plant("nan-swallowed", difference, contract=Exact())
class _NanSwallowed:
    """x - y written so that NaN becomes a number."""

    def pattern(self, op, x, y):
        return op.sub(x, y)

    def rewrite(self, m, build):
        d = build.sub(m.x, m.y)
        zero = build.sub(m.x, m.x)
        return build.where(build.equal(zero, zero), d, build.const(np.zeros((3, 4)), dtype=m.type(m.x).dtype))
