"""Writers of elementwise ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphopt.ir.graph import CannotEmit
from graphopt.ir.onnx.drafting import Draft, Fields, PlainWriter, Slot, Writer
from graphopt.ir.onnx.dtypes import DATA_TYPES


def div(d: Draft, f: Fields) -> list[Slot]:
    """ONNX divides integers towards zero and has no other integer division."""
    x, rounding = d.operand(0, "x"), f["rounding"]
    integer = not d.dtype(x, "x").startswith(("float", "bfloat", "complex"))
    if rounding == "floor" or (rounding == "trunc") != integer:
        raise CannotEmit(f"Div of {d.dtype(x, 'x')} with rounding {rounding!r}")
    return d.node("Div", [x, d.operand(1, "y")], since=7)


def modulo(d: Draft, f: Fields) -> list[Slot]:
    x, fmod = d.operand(0, "x"), bool(f["fmod"])
    if not fmod and d.dtype(x, "x").startswith(("float", "bfloat")):
        raise CannotEmit("Mod of floats has the sign of the dividend")
    return d.node("Mod", [x, d.operand(1, "y")], {"fmod": int(fmod)}, since=10)


def leaky_relu(d: Draft, f: Fields) -> list[Slot]:
    return d.node("LeakyRelu", [d.operand(0, "x")], {"alpha": float(f["slope"])}, since=6)


def elu(d: Draft, f: Fields) -> list[Slot]:
    return d.node("Elu", [d.operand(0, "x")], {"alpha": float(f["alpha"])}, since=6)


def hard_sigmoid(d: Draft, f: Fields) -> list[Slot]:
    attributes = {"alpha": float(f["alpha"]), "beta": float(f["beta"])}
    return d.node("HardSigmoid", [d.operand(0, "x")], attributes, since=6)


def softplus(d: Draft, f: Fields) -> list[Slot]:
    if f["beta"] != 1.0 or f["threshold"] is not None:
        raise CannotEmit("Softplus has neither beta nor threshold")
    return d.node("Softplus", [d.operand(0, "x")])


def gelu(d: Draft, f: Fields) -> list[Slot]:
    return d.node("Gelu", [d.operand(0, "x")], {"approximate": str(f["approximate"])}, since=20)


def silu(d: Draft, f: Fields) -> list[Slot]:
    return d.node("Swish", [d.operand(0, "x")], since=24)


def clamp(d: Draft, f: Fields) -> list[Slot]:
    """Bounds are attributes before opset 11, so they cannot be operands there."""
    if d.opset < 11:
        d.absent(1, "low")
        d.absent(2, "high")
    return d.node("Clip", [d.operand(0, "x"), d.optional(1), d.optional(2)], since=6)


def cast(d: Draft, f: Fields) -> list[Slot]:
    dtype = DATA_TYPES.get(f["dtype"])
    if dtype is None:
        raise CannotEmit(f"ONNX has no type {f['dtype']!r}")
    return d.node("Cast", [d.operand(0, "x")], {"to": int(dtype)}, since=6)


_UNARY: Mapping[str, tuple[str, int]] = {
    "relu": ("Relu", 6), "sigmoid": ("Sigmoid", 6), "tanh": ("Tanh", 6), "exp": ("Exp", 6), "log": ("Log", 6),
    "sqrt": ("Sqrt", 6), "reciprocal": ("Reciprocal", 6), "neg": ("Neg", 6), "abs": ("Abs", 6),
    "floor": ("Floor", 6), "ceil": ("Ceil", 6), "round": ("Round", 11), "erf": ("Erf", 9), "sin": ("Sin", 7),
    "cos": ("Cos", 7), "sign": ("Sign", 9), "mish": ("Mish", 18), "logical_not": ("Not", 1),
    "is_nan": ("IsNaN", 9),
    "identity": ("Identity", 1), "softsign": ("Softsign", 1), "hard_swish": ("HardSwish", 14),
}  # fmt: skip
_BINARY: Mapping[str, tuple[str, int]] = {
    "add": ("Add", 7), "sub": ("Sub", 7), "mul": ("Mul", 7), "pow": ("Pow", 7), "prelu": ("PRelu", 7),
    "maximum": ("Max", 8), "minimum": ("Min", 8), "equal": ("Equal", 7), "less": ("Less", 7),
    "less_equal": ("LessOrEqual", 12), "greater": ("Greater", 7), "greater_equal": ("GreaterOrEqual", 12),
    "logical_and": ("And", 7), "logical_or": ("Or", 7), "logical_xor": ("Xor", 7),
}  # fmt: skip
_OTHER: Mapping[str, Callable[[Draft, Fields], list[Slot]]] = {
    "where": PlainWriter("Where", 9, 3),
    "div": div,
    "mod": modulo,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "hard_sigmoid": hard_sigmoid,
    "softplus": softplus,
    "gelu": gelu,
    "silu": silu,
    "clamp": clamp,
    "cast": cast,
}


def not_equal(d: Draft, f: Fields) -> list[Slot]:
    (equal,) = d.node("Equal", [d.operand(0, "x"), d.operand(1, "y")], since=7)
    return d.node("Not", [equal])


def rsqrt(d: Draft, f: Fields) -> list[Slot]:
    (root,) = d.node("Sqrt", [d.operand(0, "x")], since=6)
    return d.node("Reciprocal", [root], since=6)


WRITERS: Mapping[str, Writer] = {
    **{op: PlainWriter(name, since, 1) for op, (name, since) in _UNARY.items()},
    **{op: PlainWriter(name, since, 2) for op, (name, since) in _BINARY.items()},
    **_OTHER,
    "not_equal": not_equal,
    "rsqrt": rsqrt,
}
