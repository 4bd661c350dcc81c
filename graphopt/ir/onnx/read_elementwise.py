"""Readers of elementwise ops: activations, arithmetic, comparison, logic, casts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from graphopt.ir.onnx.dtypes import NAMES
from graphopt.ir.onnx.reading import AnyReader, CannotRead, PlainReader, Reader, Reading, Said
from graphopt.ir.ops.elementwise import LARGEST


def unary(n: Reading) -> Said:
    return (n.operand(0),), {}


def binary(n: Reading) -> Said:
    """Both operands have one element type by ONNX's own rules."""
    _numpy_broadcast(n)
    return (n.operand(0), n.operand(1)), {}


def _numpy_broadcast(n: Reading) -> None:
    """Before opset 7 broadcasting was an attribute: readable where it means what numpy does."""
    if n.opset >= 7:
        return
    if n.attr_flag("broadcast") and n.has_attribute("axis"):
        axis = n.attr_int("axis")
        suffix = n.rank(n.operand(0)) - n.rank(n.operand(1))
        if axis not in (suffix, -n.rank(n.operand(1))):
            raise CannotRead("broadcasts along a leading axis")
    n.ignore("axis")


def div(n: Reading) -> Said:
    operands, _ = binary(n)
    integer = not _is_float(n.dtype(n.operand(0)))
    return operands, {"rounding": "trunc" if integer else None}


def _is_float(dtype: str) -> bool:
    return dtype.startswith(("float", "bfloat", "complex"))


def power(n: Reading) -> Said:
    operands, fields = binary(n)
    _same_dtype(n)
    return operands, fields


def _same_dtype(n: Reading) -> None:
    a, b = n.dtype(n.operand(0)), n.dtype(n.operand(1))
    if a != b:
        raise CannotRead(f"operands are {a} and {b}")


def modulo(n: Reading) -> Said:
    operands, _ = binary(n)
    return operands, {"fmod": n.attr_flag("fmod")}


def variadic_pair(n: Reading) -> Said:
    """Sum, Max and Min take any number of operands; two are a binary op."""
    operands = n.operands()
    if len(operands) != 2:
        raise CannotRead(f"{len(operands)} operands")
    if n.opset < 8:
        a, b = n.shape(operands[0]), n.shape(operands[1])
        if a != b:
            raise CannotRead("operands of different shapes before opset 8")
    return operands, {}


def leaky_relu(n: Reading) -> Said:
    slope = n.attr_float("alpha", 0.01)
    # The default 0.01 is no float32 number; both spellings of it are the default.
    return (n.operand(0),), {"slope": 0.01 if slope == float(np.float32(0.01)) else slope}


def elu(n: Reading) -> Said:
    return (n.operand(0),), {"alpha": n.attr_float("alpha", 1.0)}


def softplus(n: Reading) -> Said:
    return (n.operand(0),), {"beta": 1.0, "threshold": None}


def hard_sigmoid(n: Reading) -> Said:
    return (n.operand(0),), {"alpha": n.attr_float("alpha", 0.2), "beta": n.attr_float("beta", 0.5)}


def prelu(n: Reading) -> Said:
    x, slope = n.operand(0), n.operand(1)
    if n.opset < 7 and any(d != 1 for d in n.shape(slope)):
        raise CannotRead("slope per channel before opset 7")
    return (x, slope), {}


def gelu(n: Reading) -> Said:
    return (n.operand(0),), {"approximate": n.attr_string("approximate", "none")}


def gelu_microsoft(n: Reading) -> Said:
    return (n.operand(0),), {"approximate": "none"}


def fast_gelu(n: Reading) -> Said:
    if n.has(1):
        raise CannotRead("FastGelu with a bias")
    return (n.operand(0),), {"approximate": "tanh"}


def swish(n: Reading) -> Said:
    n.only("alpha", 1.0)
    return (n.operand(0),), {}


def quick_gelu(n: Reading) -> Said:
    if n.attr_float("alpha", 1.702) != 1.0:
        raise CannotRead("QuickGelu with alpha other than 1")
    return (n.operand(0),), {}


def clip(n: Reading) -> Said:
    x = n.operand(0)
    if n.opset >= 11:
        return (x, n.optional(1), n.optional(2)), {}
    low, high = n.attr_float("min", -LARGEST), n.attr_float("max", LARGEST)
    return (
        x,
        None if low <= -LARGEST else n.literal(low, x),
        None if high >= LARGEST else n.literal(high, x),
    ), {}


def cast(n: Reading) -> Said:
    dtype = NAMES.get(n.attr_int("to"))
    return _cast(n, dtype)


def cast_like(n: Reading) -> Said:
    return _cast(n, n.dtype(n.operand(1)))


def _cast(n: Reading, dtype: str | None) -> Said:
    if dtype is None:
        raise CannotRead("casts to a type that is no number")
    if dtype.startswith("float8"):
        n.only("saturate", 1)
    n.only("saturate", 1, 0)
    n.only("round_mode", "up")
    n.dtype(n.operand(0))
    return (n.operand(0),), {"dtype": dtype}


def where(n: Reading) -> Said:
    return (n.operand(0), n.operand(1), n.operand(2)), {}


def dropout(n: Reading) -> Said:
    """Dropout at inference time passes its operand through."""
    n.ignore("seed", "ratio")
    n.optional(1)
    if n.opset < 7 and n.attr_int("is_test", 0) == 0:
        raise CannotRead("Dropout in training mode")
    if n.has(2) and n.constant(2, "training_mode").any():
        raise CannotRead("Dropout in training mode")
    return (n.operand(0),), {}


_UNARY = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Exp": "exp", "Log": "log", "Sqrt": "sqrt",
    "Reciprocal": "reciprocal", "Neg": "neg", "Abs": "abs", "Floor": "floor", "Ceil": "ceil",
    "Round": "round",
    "Erf": "erf", "Sin": "sin", "Cos": "cos", "Sign": "sign", "Mish": "mish", "Not": "logical_not",
    "IsNaN": "is_nan", "Identity": "identity", "Softsign": "softsign", "HardSwish": "hard_swish",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Equal": "equal", "Less": "less", "LessOrEqual": "less_equal",
    "Greater": "greater", "GreaterOrEqual": "greater_equal", "And": "logical_and", "Or": "logical_or",
    "Xor": "logical_xor",
}  # fmt: skip
_OTHER: Mapping[str, tuple[str, Callable[[Reading], Said]]] = {
    "Div": ("div", div),
    "Pow": ("pow", power),
    "Mod": ("mod", modulo),
    "Sum": ("add", variadic_pair),
    "Max": ("maximum", variadic_pair),
    "Min": ("minimum", variadic_pair),
    "LeakyRelu": ("leaky_relu", leaky_relu),
    "Elu": ("elu", elu),
    "Softplus": ("softplus", softplus),
    "HardSigmoid": ("hard_sigmoid", hard_sigmoid),
    "PRelu": ("prelu", prelu),
    "Gelu": ("gelu", gelu),
    "Swish": ("silu", swish),
    "Clip": ("clamp", clip),
    "Cast": ("cast", cast),
    "CastLike": ("cast", cast_like),
    "Where": ("where", where),
    "Dropout": ("identity", dropout),
}

READERS: Mapping[tuple[str, str], AnyReader] = {
    **{("", name): PlainReader(op, 1, Reader(op, unary)) for name, op in _UNARY.items()},
    **{("", name): PlainReader(op, 2, Reader(op, binary)) for name, op in _BINARY.items()},
    **{("", name): Reader(op, read) for name, (op, read) in _OTHER.items()},
    ("com.microsoft", "Gelu"): Reader("gelu", gelu_microsoft),
    ("com.microsoft", "FastGelu"): Reader("gelu", fast_gelu),
    ("com.microsoft", "QuickGelu"): Reader("silu", quick_gelu),
}
