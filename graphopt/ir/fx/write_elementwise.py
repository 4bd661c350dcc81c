"""Writers of elementwise ops."""

from __future__ import annotations

import torch

from graphopt.ir.fx.tensors import TORCH_DTYPES
from graphopt.ir.fx.write import SAME_TYPE, Plan, Writing, writes
from graphopt.ir.weights import FLOATS

aten = torch.ops.aten

_UNARY = {
    name: getattr(aten, name).default
    for name in (
        "relu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "reciprocal", "neg", "abs", "floor", "ceil",
        "round", "erf", "sin", "cos", "sign", "silu", "mish", "logical_not",
    )
}  # fmt: skip
_UNARY |= {"hard_swish": aten.hardswish.default, "is_nan": aten.isnan.default, "identity": aten.clone.default}
_TO_BOOL = frozenset({"logical_not", "is_nan"})
_REAL = frozenset(
    {"sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "reciprocal", "erf", "sin", "cos", "silu", "mish"}
)
"""Ops that torch promotes from integers to reals."""
SAME_TYPE.update({op: target for op, target in _UNARY.items() if op not in _TO_BOOL})


@writes(*_UNARY)
def unary(w: Writing) -> Plan:
    if w.op in _REAL:
        w.require(w.type("x").dtype in FLOATS, "torch would promote")
    if w.op == "logical_not":
        w.require(w.type("x").dtype == "bool", "x is no truth value")
    return Plan(_UNARY[w.op], (w.tensor("x"),))


@writes("cast")
def cast(w: Writing) -> Plan:
    dtype = w.field("dtype")
    w.require(dtype in TORCH_DTYPES, f"torch has no {dtype}")
    return Plan(aten._to_copy.default, (w.tensor("x"),), {"dtype": TORCH_DTYPES[dtype]})


@writes("gelu")
def gelu(w: Writing) -> Plan:
    return Plan(aten.gelu.default, (w.tensor("x"),), {"approximate": w.field("approximate")})


@writes("leaky_relu")
def leaky_relu(w: Writing) -> Plan:
    return Plan(aten.leaky_relu.default, (w.tensor("x"), w.field("slope")))


@writes("elu")
def elu(w: Writing) -> Plan:
    return Plan(aten.elu.default, (w.tensor("x"), w.field("alpha")))


@writes("softplus")
def softplus(w: Writing) -> Plan:
    threshold = w.field("threshold")
    w.require(threshold is not None, "torch has a linear tail")
    return Plan(aten.softplus.default, (w.tensor("x"), w.field("beta"), threshold))


@writes("hard_sigmoid")
def hard_sigmoid(w: Writing) -> Plan:
    w.require((w.field("alpha"), w.field("beta")) == (1 / 6, 0.5), "torch has alpha 1/6 and beta 1/2 only")
    return Plan(aten.hardsigmoid.default, (w.tensor("x"),))


@writes("prelu")
def prelu(w: Writing) -> Plan:
    w.one_dtype()
    return Plan(aten._prelu_kernel.default, (w.tensor("x"), w.tensor("slope")))


@writes("clamp")
def clamp(w: Writing) -> Plan:
    w.one_dtype()
    x, low, high = w.tensor("x"), w.value("low"), w.value("high")
    w.require(low is not None or high is not None, "no bound")
    numbers = [v for v in (low, high) if isinstance(v, (int, float))]
    bounds = [v for v in (low, high) if v is not None]
    w.require(not numbers or len(numbers) == len(bounds), "one bound is a tensor, the other a number")
    return Plan(aten.clamp.default if numbers else aten.clamp.Tensor, (x, low, high))


_ARITHMETIC = {"add": aten.add.Tensor, "sub": aten.sub.Tensor, "mul": aten.mul.Tensor}
_COMPARISON = {
    "equal": ("eq", "eq"),
    "not_equal": ("ne", "ne"),
    "less": ("lt", "gt"),
    "less_equal": ("le", "ge"),
    "greater": ("gt", "lt"),
    "greater_equal": ("ge", "le"),
}
"""The ATen operator, and the one for swapped operands."""


def _is_number(value: object) -> bool:
    return isinstance(value, (bool, int, float))


@writes(*_ARITHMETIC)
def arithmetic(w: Writing) -> Plan:
    w.require(w.one_dtype() != "bool", "arithmetic of truth values")
    a, b = w.value(0), w.value(1)
    w.require(not (_is_number(a) and _is_number(b)), "two numbers")
    return Plan(_ARITHMETIC[w.op], (a, b))


@writes("div")
def div(w: Writing) -> Plan:
    dtype, rounding = w.one_dtype(), w.field("rounding")
    w.require(dtype in FLOATS or (rounding is not None and dtype != "bool"), "torch would promote")
    a, b = w.value(0), w.value(1)
    w.require(not (_is_number(a) and _is_number(b)), "two numbers")
    if rounding is None:
        return Plan(aten.div.Tensor, (a, b))
    return Plan(aten.div.Tensor_mode, (a, b), {"rounding_mode": rounding})


@writes("pow")
def power(w: Writing) -> Plan:
    w.require(w.one_dtype() in FLOATS, "powers of integers")
    a, b = w.value(0), w.value(1)
    if _is_number(a):
        w.require(not _is_number(b), "two numbers")
        return Plan(aten.pow.Scalar, (a, b))
    return Plan(aten.pow.Tensor_Scalar if _is_number(b) else aten.pow.Tensor_Tensor, (a, b))


@writes("maximum", "minimum")
def extreme(w: Writing) -> Plan:
    w.one_dtype()
    a, b = w.value(0), w.value(1)
    if _is_number(a):
        a, b = b, a
    w.require(not _is_number(a), "two numbers")
    if _is_number(b):
        return Plan(aten.clamp.default, (a, b) if w.op == "maximum" else (a, None, b))
    return Plan(getattr(aten, w.op).default, (a, b))


@writes("mod")
def mod(w: Writing) -> Plan:
    w.one_dtype()
    a, b = w.tensor(0), w.value(1)
    operator = aten.fmod if w.field("fmod") else aten.remainder
    return Plan(operator.Scalar if _is_number(b) else operator.Tensor, (a, b))


@writes(*_COMPARISON)
def comparison(w: Writing) -> Plan:
    w.one_dtype()
    a, b = w.value(0), w.value(1)
    name, mirrored = _COMPARISON[w.op]
    if _is_number(a):
        a, b, name = b, a, mirrored
    w.require(not _is_number(a), "two numbers")
    operator = getattr(aten, name)
    return Plan(operator.Scalar if _is_number(b) else operator.Tensor, (a, b))


@writes("logical_and", "logical_or", "logical_xor")
def logical(w: Writing) -> Plan:
    w.require(w.one_dtype() == "bool", "the operands are no truth values")
    return Plan(getattr(aten, w.op).default, (w.tensor(0), w.tensor(1)))


@writes("where")
def where(w: Writing) -> Plan:
    condition, x, y = w.tensor("condition"), w.value("x"), w.value("y")
    w.require(w.type("condition").dtype == "bool", "the condition is no truth value")
    w.require(not (_is_number(x) and _is_number(y)), "two numbers")
    overload = "ScalarSelf" if _is_number(x) else "ScalarOther" if _is_number(y) else "self"
    return Plan(getattr(aten.where, overload), (condition, x, y))
