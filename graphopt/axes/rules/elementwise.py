"""Ops that treat every element alike: aligned dimensions are the same."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.axes.analysis import Axes, Dims, rule
from graphopt.ir.graph import Call

UNARY = (
    "abs", "cast", "ceil", "cos", "elu", "erf", "exp", "floor", "gelu", "hard_sigmoid", "hard_swish", "identity",
    "is_nan", "leaky_relu", "log", "logical_not", "mish", "neg", "reciprocal", "relu", "round", "rsqrt", "sigmoid",
    "sign", "silu", "sin", "softplus", "softsign", "sqrt", "tanh",
)  # fmt: skip
BROADCAST = (
    "add", "clamp", "div", "equal", "greater", "greater_equal", "less", "less_equal", "logical_and", "logical_or",
    "logical_xor", "maximum", "minimum", "mod", "mul", "not_equal", "pow", "prelu", "sub", "where",
)  # fmt: skip


@rule(*UNARY, *BROADCAST)
def aligned(axes: Axes, call: Call) -> Sequence[Dims]:
    """Dimensions are aligned at the last one; those of size 1 are repeated."""
    return [broadcast(axes, [axes.dims(o) for o in call.operands if o is not None])]


def broadcast(axes: Axes, shapes: Sequence[Dims]) -> Dims:
    """The dimensions that `shapes` broadcast to, aligned ones unified."""
    found = []
    for place in range(-max((len(s) for s in shapes), default=0), 0):
        first, *others = [s[place] for s in shapes if -place <= len(s) and s[place]] or [()]
        for other in others:
            axes.unify(first, other)
        found.append(first)
    return tuple(found)
