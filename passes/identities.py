"""Rules that remove arithmetic which changes nothing: adding nothing, multiplying by one, casting to and fro.

Contracts are `Exact` wherever the result is the same to the bit. Signed zeros decide about sums: -0.0 + 0.0
is +0.0, so of the constants only -0.0 can be added, and only +0.0 be subtracted, without a trace (IEEE
754-2019, section 6.3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from graphopt.ir.graph import Value
from graphopt.ir.weights import FLOATS, TensorRef
from graphopt.rewrite.builder import Builder
from graphopt.rewrite.contract import Exact, Rounding
from graphopt.rewrite.matcher import is_uniform
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, const
from graphopt.rewrite.rule import Match, rule

BITS = {
    "bool": (0, 1), "uint8": (0, 8), "uint16": (0, 16), "uint32": (0, 32), "uint64": (0, 64),
    "int8": (1, 7), "int16": (1, 15), "int32": (1, 31), "int64": (1, 63),
}  # fmt: skip
"""Integer dtypes: whether there is a sign, and how many bits the magnitude has."""
MANTISSA = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
"""Bits of precision: every integer of at most that many bits is exact."""
WIDER_FLOATS = {
    "float16": ("float32", "float64"),
    "bfloat16": ("float32", "float64"),
    "float32": ("float64",),
    "float64": (),
}


def require_removable(m: Match, kept: Value) -> None:
    """Fail if `kept` cannot stand for the root.

    An output of an ONNX graph keeps its name, which takes a node that computes it; an output of a torch
    graph keeps memory of its own, and so does one that is a view of the root. A scratch graph promises neither.
    """
    graph = m.graph
    if graph.storage == "scratch":
        return
    if graph.would_share(m.out, kept):
        m.fail("an output of the graph may be a view of {} and needs memory of its own", graph.name(m.out))
    if not graph.is_output(m.out):
        return
    if graph.storage == "fx" or graph.producer(kept) is None or graph.is_output(kept):
        m.fail("{} is an output of the graph and needs a node of its own", graph.name(m.out))


def require_no_broadcast(m: Match, x: Value, constant: TensorRef) -> None:
    """Fail unless `x` combined with `constant` certainly has the shape and dtype of `x`."""
    if constant.size == 1 and (constant.ndim == 0 or constant.ndim <= m.rank(x)):
        if m.type(x).dtype != m.type(m.out).dtype:
            m.fail("{} is promoted to {}", m.graph.name(x), m.type(m.out))
    else:
        m.require_same_type(x, m.out)


def require_uniform(m: Match, constant: TensorRef, value: float) -> None:
    if not is_uniform(constant, value):
        m.fail("the constant is not {} throughout", value)


def is_float(m: Match, value: Value) -> bool:
    return m.type(value).dtype in FLOATS


def has_sign(constant: TensorRef, negative: bool) -> bool:
    """Whether every element of a floating-point constant has this sign bit (zeros have one too)."""
    return bool(np.all(np.signbit(constant.numpy().astype(np.float64)) == negative))


class _WithConstant:
    """x combined with a constant that leaves it as it is."""

    neutral: float

    def check(self, m: Match) -> None:
        require_uniform(m, m.c, self.neutral)
        require_no_broadcast(m, m.x, m.c)
        require_removable(m, m.x)
        self.check_zero(m)

    def check_zero(self, m: Match) -> None:
        """What is asked of the signs of zeros; nothing unless the op is a sum."""

    def rewrite(self, m: Match, build: Builder) -> Any:
        return m.x


@rule(contract=Exact())
class RemoveIdentity:
    """identity(x) = x; dropout outside of training is read as an identity too."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.identity(x)

    def check(self, m: Match) -> None:
        m.rank(m.x)
        require_removable(m, m.x)

    def rewrite(self, m: Match, build: Builder) -> Any:
        return m.x


@rule(contract=Exact())
class AddZero(_WithConstant):
    """x + 0 = x for integers, and x + (-0.0) = x for floats. A zero that broadcasts x is refused."""

    neutral = 0.0

    def pattern(self, op: PatternOps, x: Var, c: Var) -> OpPattern:
        return op.add(x, const(c))

    def check_zero(self, m: Match) -> None:
        if is_float(m, m.x) and not has_sign(m.c, negative=True):
            m.fail("x + 0.0 turns -0.0 into +0.0")


@rule(contract=Rounding())
class AddFloatZero(_WithConstant):
    """x + 0.0 = x for floats up to the sign of a zero."""

    neutral = 0.0

    def pattern(self, op: PatternOps, x: Var, c: Var) -> OpPattern:
        return op.add(x, const(c))

    def check_zero(self, m: Match) -> None:
        if not is_float(m, m.x):
            m.fail("not a float")


@rule(contract=Exact())
class SubtractZero(_WithConstant):
    """x - 0 = x for integers, and x - (+0.0) = x for floats."""

    neutral = 0.0

    def pattern(self, op: PatternOps, x: Var, c: Var) -> OpPattern:
        return op.sub(x, const(c))

    def check_zero(self, m: Match) -> None:
        if is_float(m, m.x) and not has_sign(m.c, negative=False):
            m.fail("x - (-0.0) turns -0.0 into +0.0")


@rule(contract=Exact())
class MultiplyByOne(_WithConstant):
    """x * 1 = x."""

    neutral = 1.0

    def pattern(self, op: PatternOps, x: Var, c: Var) -> OpPattern:
        return op.mul(x, const(c))


@rule(contract=Exact())
class DivideByOne(_WithConstant):
    """x / 1 = x, unless the quotient of floats is rounded to an integer."""

    neutral = 1.0

    def pattern(self, op: PatternOps, x: Var, c: Var) -> OpPattern:
        return op.div(x, const(c), rounding=any_).named("div")

    def check_zero(self, m: Match) -> None:
        if is_float(m, m.x) and m.div.fields["rounding"] is not None:
            m.fail("the quotient is rounded")


@rule(contract=Exact())
class PowerOfOne(_WithConstant):
    """x ** 1 = x, also for NaN, infinities and zeros (C11, F.10.4.4)."""

    neutral = 1.0

    def pattern(self, op: PatternOps, x: Var, c: Var) -> OpPattern:
        return op.pow(x, const(c))


class _Involution:
    """An op that undoes itself."""

    op_name: str

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        make = getattr(op, self.op_name)
        twice: OpPattern = make(make(x))
        return twice

    def check(self, m: Match) -> None:
        require_removable(m, m.x)

    def rewrite(self, m: Match, build: Builder) -> Any:
        return m.x


@rule(contract=Exact(), keep_shared=True)
class NegateTwice(_Involution):
    """-(-x) = x."""

    op_name = "neg"


@rule(contract=Exact(), keep_shared=True)
class NotTwice(_Involution):
    """not (not x) = x."""

    op_name = "logical_not"


class _Idempotent:
    """An op that does nothing to its own results."""

    op_name: str

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        make = getattr(op, self.op_name)
        twice: OpPattern = make(make(x).named("inner"))
        return twice

    def check(self, m: Match) -> None:
        require_removable(m, m.inner.outputs[0])

    def rewrite(self, m: Match, build: Builder) -> Any:
        return m.inner.outputs[0]


@rule(contract=Exact(), keep_shared=True)
class ReluTwice(_Idempotent):
    """relu(relu(x)) = relu(x)."""

    op_name = "relu"


@rule(contract=Exact(), keep_shared=True)
class AbsTwice(_Idempotent):
    """abs(abs(x)) = abs(x)."""

    op_name = "abs"


@rule(contract=Exact(), keep_shared=True)
class FloorTwice(_Idempotent):
    """floor(floor(x)) = floor(x)."""

    op_name = "floor"


@rule(contract=Exact(), keep_shared=True)
class CeilTwice(_Idempotent):
    """ceil(ceil(x)) = ceil(x)."""

    op_name = "ceil"


@rule(contract=Exact(), keep_shared=True)
class RoundTwice(_Idempotent):
    """round(round(x)) = round(x)."""

    op_name = "round"


# ---- casts ---


@rule(contract=Exact())
class CastToSameType:
    """cast(x, the dtype of x) = x."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.cast(x, dtype=any_).named("cast")

    def check(self, m: Match) -> None:
        if m.type(m.x).dtype != m.cast.fields["dtype"]:
            m.fail("{} is cast to {}", m.type(m.x), m.cast.fields["dtype"])
        m.rank(m.x)
        require_removable(m, m.x)

    def rewrite(self, m: Match, build: Builder) -> Any:
        return m.x


@rule(contract=Exact(), keep_shared=True)
class CastThroughWider:
    """cast(cast(x, wide), dtype) = cast(x, dtype), and = x if x had that dtype, when `wide` holds every
    value of x.

    Both casts see the same number then. A float that ends as an integer is refused: what becomes of numbers
    out of range is a matter of kernels, which may differ by the dtype that they start from.
    """

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.cast(op.cast(x, dtype=any_).named("inner"), dtype=any_).named("outer")

    def check(self, m: Match) -> None:
        source, middle, target = self._dtypes(m)
        m.rank(m.x)
        if not holds(middle, source):
            m.fail("{} does not hold every {}", middle, source)
        if source == target:
            require_removable(m, m.x)
        elif not _same_conversion(source, middle, target):
            m.fail("a cast of {} to {} may differ from one of {}", source, target, middle)

    def rewrite(self, m: Match, build: Builder) -> Any:
        source, _, target = self._dtypes(m)
        return m.x if source == target else build.cast(m.x, dtype=target, like=m.out)

    @staticmethod
    def _dtypes(m: Match) -> tuple[str, str, str]:
        return m.type(m.x).dtype, m.inner.fields["dtype"], m.outer.fields["dtype"]


def holds(wide: str, narrow: str) -> bool:
    """Whether dtype `wide` represents every value of dtype `narrow` exactly."""
    if wide == narrow:
        return True
    if narrow in BITS:
        signed, bits = BITS[narrow]
        if wide in MANTISSA:
            return bits <= MANTISSA[wide]
        wide_signed, wide_bits = BITS.get(wide, (0, 0))
        return wide_signed >= signed and wide_bits >= bits
    return wide in WIDER_FLOATS.get(narrow, ())


def _same_conversion(source: str, middle: str, target: str) -> bool:
    """Whether numbers of `source` become the same `target` with and without a stop at `middle`, which holds
    them.
    """
    if target == "bool" or holds(target, source):
        return True
    if source in BITS and middle in BITS:
        return target in BITS or target in MANTISSA
    return source in MANTISSA and middle in MANTISSA and target in MANTISSA


# mypy takes a decorated class for the class, not for the Rule that the decorator returns.
RULES: tuple[Any, ...] = (
    RemoveIdentity, AddZero, AddFloatZero, SubtractZero, MultiplyByOne, DivideByOne, PowerOfOne,
    NegateTwice, NotTwice, ReluTwice, AbsTwice, FloorTwice, CeilTwice, RoundTwice,
    CastToSameType, CastThroughWider,
)  # fmt: skip
