"""Rules that remove moves of elements which lead back, or which one move can make.

All are `Exact`: no number is computed. Source: the operators' definitions; the same rewrites are known from
onnxoptimizer (eliminate_nop_transpose, fuse_consecutive_transposes ...) and XLA's algebraic simplifier.
"""

from __future__ import annotations

from typing import Any

from graphopt.ir.graph import Dim, TensorType
from graphopt.ir.ops import OPS
from graphopt.passes.identities import require_removable
from graphopt.rewrite.builder import Builder
from graphopt.rewrite.change import escapes
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_, any_of, many, opt
from graphopt.rewrite.rule import Match, rule

WHOLE = 2**63 - 1
"""The end of a slice that takes everything, whatever the size is."""
UNARY = (
    "relu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "reciprocal", "neg", "abs", "floor", "ceil",
    "round", "erf", "sin", "cos", "sign", "silu", "mish", "softsign", "gelu", "leaky_relu", "elu", "softplus",
    "hard_sigmoid", "hard_swish", "cast", "logical_not", "is_nan",
)  # fmt: skip
"""Ops that treat every element alike and have one operand."""


def same_shape(a: TensorType | None, b: TensorType | None) -> bool:
    """Whether two tensors of equally many elements certainly have one shape.

    Sizes are equal as numbers or by name; one pair may be unknown if all others are equal and not zero, for
    then the number of elements decides it.
    """
    if a is None or b is None or a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    open_pairs = [(x, y) for x, y in zip(a.shape, b.shape, strict=True) if x is None or x != y]
    if not open_pairs:
        return True
    contradiction = all(isinstance(d, int) for d in open_pairs[0])
    others_static = all(isinstance(x, int) and x > 0 for x, y in zip(a.shape, b.shape, strict=True) if x == y)
    return len(open_pairs) == 1 and not contradiction and others_static


def target_shape(shape: tuple[Dim, ...] | None) -> tuple[int, ...] | None:
    """`shape` as the constant target of a reshape: its one unknown size becomes -1. None if that cannot be
    said.
    """
    if shape is None or sum(not isinstance(d, int) for d in shape) > 1 or 0 in shape:
        return None
    return tuple(d if isinstance(d, int) else -1 for d in shape)


def with_any_fields(op: PatternOps, name: str, operand: OpPattern) -> OpPattern:
    pattern: OpPattern = getattr(op, name)(operand, **dict.fromkeys(OPS[name].fields, any_))
    return pattern


class _Removed:
    """What is left of the pattern is `x`."""

    def rewrite(self, m: Match, build: Builder) -> Any:
        return m.x


# ---- transpose ---


@rule(contract=Exact())
class TransposeNothing(_Removed):
    """transpose(x, (0, 1, ..., n-1)) = x."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.transpose(x, perm=any_).named("transpose")

    def check(self, m: Match) -> None:
        if not _is_identity(m.transpose.fields["perm"]):
            m.fail("perm is {}", m.transpose.fields["perm"])
        require_removable(m, m.x)


@rule(contract=Exact(), keep_shared=True)
class TransposeTwice:
    """transpose(transpose(x, p), q) = transpose(x, r) with r[i] = p[q[i]], and = x if r is the identity."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.transpose(op.transpose(x, perm=any_).named("inner"), perm=any_).named("outer")

    def check(self, m: Match) -> None:
        if _is_identity(_composed(m)):
            require_removable(m, m.x)

    def rewrite(self, m: Match, build: Builder) -> Any:
        perm = _composed(m)
        return m.x if _is_identity(perm) else build.transpose(m.x, perm=perm, like=m.out)


@rule(contract=Exact(), keep_shared=True)
class TransposeAroundUnary:
    """transpose(f(transpose(x, p)), q) = f(x) for elementwise f when q undoes p and nothing else reads f."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        inner = op.transpose(x, perm=any_).named("inner")
        between = [with_any_fields(op, name, inner).named("unary") for name in UNARY]
        return op.transpose(any_of(*between), perm=any_).named("outer")

    def check(self, m: Match) -> None:
        if not _is_identity(_composed(m)):
            m.fail("the transposes compose to {}", _composed(m))
        if escapes(m.graph, m.unary.outputs, {m.outer.node}) is not None:
            m.fail("{} is read elsewhere too", m.graph.name(m.unary.outputs[0]))

    def rewrite(self, m: Match, build: Builder) -> Any:
        return getattr(build, m.unary.op)(m.x, like=m.out, **m.unary.fields)


def _composed(m: Match) -> tuple[int, ...]:
    inner = m.inner.fields["perm"]
    return tuple(inner[i] for i in m.outer.fields["perm"])


def _is_identity(perm: tuple[int, ...]) -> bool:
    return perm == tuple(range(len(perm)))


# ---- reshape, squeeze, unsqueeze ---


def require_stated_targets(m: Match) -> None:
    """Fail if a reshape computes its target: what types tell of it may be a declaration that nothing has checked.

    (A scratch graph holds what the vocabulary says.)
    """
    graph = m.graph
    for node in m.calls:
        targets = graph.raw_call(node).operands[1:] if graph.key(node) == "reshape" else ()
        if graph.storage != "scratch" and any(t is not None and graph.constant(t) is None for t in targets):
            m.fail("the target of {} is computed", graph.node_name(node))


class _SameShape(_Removed):
    """A move that keeps the order of elements and ends with the shape that it started with."""

    def check(self, m: Match) -> None:
        require_stated_targets(m)
        if not same_shape(m.type(m.x), m.type(m.out)):
            m.fail("{} becomes {}", m.type(m.x), m.type(m.out))
        require_removable(m, m.x)


@rule(contract=Exact())
class ReshapeToSameShape(_SameShape):
    """reshape(x, the shape of x) = x."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.reshape(x, shape=any_)


class _Refold:
    """Two moves that keep the order of elements are one reshape to the final shape.

    The final shape must be known up to one size, and none of its sizes be 0 (beside which -1 has no meaning).
    """

    def check(self, m: Match) -> None:
        require_stated_targets(m)
        if same_shape(m.type(m.x), m.type(m.out)):
            require_removable(m, m.x)
        elif self.final_shape(m) is None:
            m.fail("the shape of the result is {}", m.type(m.out))

    def rewrite(self, m: Match, build: Builder) -> Any:
        if same_shape(m.type(m.x), m.type(m.out)):
            return m.x
        return build.reshape(m.x, shape=self.final_shape(m), like=m.out)

    def final_shape(self, m: Match) -> tuple[int, ...] | None:
        return target_shape(m.type(m.out).shape)


def _flat_moves(op: PatternOps, x: Var) -> tuple[OpPattern, ...]:
    """The ops that keep the order of elements."""
    return (
        op.reshape(x, shape=any_),
        op.unsqueeze(x, axes=any_),
        op.squeeze(x, axes=any_),
    )


@rule(contract=Exact(), keep_shared=True)
class ReshapeAfterReshape(_Refold):
    """reshape(reshape(x, s), t) = reshape(x, t) for a constant t without zeros; so for squeeze and
    unsqueeze.
    """

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.reshape(any_of(*_flat_moves(op, x)), shape=any_).named("outer")

    def final_shape(self, m: Match) -> tuple[int, ...] | None:
        shape: tuple[int, ...] = m.outer.fields["shape"]
        return None if 0 in shape else shape


@rule(contract=Exact(), keep_shared=True)
class UnsqueezeAfterReshape(_Refold):
    """unsqueeze(reshape(x, s), axes) = reshape(x, final shape), or x; so after squeeze and unsqueeze."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.unsqueeze(any_of(*_flat_moves(op, x)), axes=any_)


@rule(contract=Exact(), keep_shared=True)
class SqueezeAfterReshape(_Refold):
    """squeeze(reshape(x, s), axes) = reshape(x, final shape), or x; so after squeeze and unsqueeze."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.squeeze(any_of(*_flat_moves(op, x)), axes=any_)


class _SameAxes(_Removed):
    """Axes of size 1 put in and taken out again."""

    def check(self, m: Match) -> None:
        if m.inner.fields["axes"] != m.outer.fields["axes"]:
            m.fail("axes {} and {}", m.inner.fields["axes"], m.outer.fields["axes"])
        require_removable(m, m.x)


@rule(contract=Exact(), keep_shared=True)
class SqueezeOfUnsqueeze(_SameAxes):
    """squeeze(unsqueeze(x, axes), axes) = x."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.squeeze(op.unsqueeze(x, axes=any_).named("inner"), axes=any_).named("outer")


@rule(contract=Exact(), keep_shared=True)
class UnsqueezeOfSqueeze(_SameAxes):
    """unsqueeze(squeeze(x, axes), axes) = x."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.unsqueeze(op.squeeze(x, axes=any_).named("inner"), axes=any_).named("outer")


# ---- parts and copies that are the whole ---


@rule(contract=Exact())
class SliceOfEverything(_Removed):
    """slice(x) that starts at 0, ends at or behind the end and takes every element = x."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.slice(x, starts=any_, ends=any_, axes=any_, steps=any_).named("slice")

    def check(self, m: Match) -> None:
        fields = m.slice.fields
        shape = m.type(m.x).shape
        for axis, start, end, step in zip(*(fields[k] for k in ("axes", "starts", "ends", "steps")), strict=True):
            size = None if shape is None or axis >= len(shape) else shape[axis]
            behind = end >= size if isinstance(size, int) else end >= WHOLE
            if step != 1 or start != 0 or not behind:
                m.fail("takes [{}:{}:{}] of axis {}", start, end, step, axis)
        require_removable(m, m.x)


@rule(contract=Exact())
class SliceAfterSlice:
    """slice(slice(x, axes A), axes B) = slice(x, axes A and B) when no axis is sliced twice."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        inner = op.slice(x, starts=any_, ends=any_, axes=any_, steps=any_).named("inner")
        return op.slice(inner, starts=any_, ends=any_, axes=any_, steps=any_).named("outer")

    def check(self, m: Match) -> None:
        if set(m.inner.fields["axes"]) & set(m.outer.fields["axes"]):
            m.fail("an axis is sliced twice")
        if (reason := m.graph.can_emit("slice", self._fields(m), [m.graph.type(m.x)])) is not None:
            m.fail("{}", reason)

    def rewrite(self, m: Match, build: Builder) -> Any:
        return build.slice(m.x, like=m.out, **self._fields(m))

    @staticmethod
    def _fields(m: Match) -> dict[str, Any]:
        return {name: m.inner.fields[name] + m.outer.fields[name] for name in ("starts", "ends", "axes", "steps")}


@rule(contract=Exact())
class ConcatOfOne:
    """concat(x) = x."""

    def pattern(self, op: PatternOps, xs: Var) -> OpPattern:
        return op.concat(many(xs), axis=any_)

    def check(self, m: Match) -> None:
        if len(m.xs) != 1:
            m.fail("{} tensors are joined", len(m.xs))
        require_removable(m, m.xs[0])

    def rewrite(self, m: Match, build: Builder) -> Any:
        return m.xs[0]


@rule(contract=Exact())
class SplitIntoOne(_Removed):
    """split(x) into one piece = x."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.split(x, sizes=any_, axis=any_).named("split")

    def check(self, m: Match) -> None:
        if len(m.split.outputs) != 1:
            m.fail("{} pieces", len(m.split.outputs))
        require_removable(m, m.x)


@rule(contract=Exact())
class PadByNothing(_Removed):
    """pad(x) by zero elements everywhere = x."""

    def pattern(self, op: PatternOps, x: Var, value: Var) -> OpPattern:
        return op.pad(x, opt(value), pads=any_, mode=any_).named("pad")

    def check(self, m: Match) -> None:
        if any(m.pad.fields["pads"]):
            m.fail("pads by {}", m.pad.fields["pads"])
        require_removable(m, m.x)


@rule(contract=Exact())
class TileOnce(_Removed):
    """tile(x, (1, ..., 1)) = x."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.tile(x, repeats=any_).named("tile")

    def check(self, m: Match) -> None:
        if any(r != 1 for r in m.tile.fields["repeats"]):
            m.fail("repeats by {}", m.tile.fields["repeats"])
        require_removable(m, m.x)


@rule(contract=Exact())
class ExpandToOwnShape(_Removed):
    """expand(x, target) = x when target is all ones and not longer than x's shape, or the result has x's
    type.
    """

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.expand(x, shape=any_).named("expand")

    def check(self, m: Match) -> None:
        shape = m.expand.fields["shape"]
        if any(s != 1 for s in shape) or len(shape) > m.rank(m.x):
            m.require_same_type(m.x, m.out)
        require_removable(m, m.x)


# mypy takes a decorated class for the class, not for the Rule that the decorator returns.
RULES: tuple[Any, ...] = (
    TransposeNothing, TransposeTwice, TransposeAroundUnary,
    ReshapeToSameShape, SqueezeOfUnsqueeze, UnsqueezeOfSqueeze,
    ReshapeAfterReshape, UnsqueezeAfterReshape, SqueezeAfterReshape,
    SliceOfEverything, SliceAfterSlice, ConcatOfOne, SplitIntoOne, PadByNothing, TileOnce,
    ExpandToOwnShape,
)  # fmt: skip
