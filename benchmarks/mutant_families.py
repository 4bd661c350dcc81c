"""Ops that take the same operands, so that one may stand where another stood by mistake."""

from __future__ import annotations

import random

UNARY = (
    "identity", "neg", "abs", "relu", "exp", "log", "sqrt", "rsqrt", "reciprocal", "sigmoid", "tanh", "silu", "erf",
    "sin", "cos", "floor", "ceil", "round", "sign", "softplus", "mish", "softsign", "hard_swish",
)  # fmt: skip
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum", "pow", "mod")
COMPARE = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")
REDUCE = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l2")
NORMS = ("softmax", "log_softmax")
FAMILIES = (UNARY, BINARY, COMPARE, REDUCE, NORMS, ("logical_and", "logical_or", "logical_xor"))


def other_op(op: str, rng: random.Random) -> str | None:
    """Another op of the family of `op`; None if it has none."""
    family = next((f for f in FAMILIES if op in f), ())
    others = [o for o in family if o != op]
    return rng.choice(others) if others else None
