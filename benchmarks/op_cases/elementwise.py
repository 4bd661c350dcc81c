"""Cases: elementwise ops, at NaN and the infinities too."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.op_cases.runtimes import Case, Node, Sampler

sample = Sampler(1)
nan, inf = float("nan"), float("inf")


def f32(*values: float) -> np.ndarray:
    return np.asarray(values, dtype=np.float32)


X = np.concatenate([3 * sample.normal(40), f32(0.0, -0.0, 0.5, 1.5, -2.5, 1e-7, -1e-7, 30.0, -30.0)])
SPECIAL = f32(nan, inf, -inf)
EVERY = np.concatenate([X, SPECIAL])
POSITIVE = np.concatenate([sample.positive(20), f32(1e-30, 1e30)])
ROWS, COLUMN = sample.normal(3, 4), sample.normal(3, 1)
PAIRS = [
    np.ravel(t) for t in np.meshgrid(f32(nan, inf, -inf, 0.0, 1.0, -2.5), f32(nan, inf, -inf, 0.0, 1.0, -2.5))
]
INTEGERS = sample.integers(-20, 20, 50)
DIVISORS = np.where(sample.bools(50), -1, 1) * sample.integers(1, 7, 50)
BYTES = sample.integers(0, 256, 20, dtype="uint8")
TRUTHS = (np.asarray([True, True, False, False]), np.asarray([True, False, True, False]))

UNARY = [
    Case("relu", [EVERY], onnx=Node("Relu"), torch=torch.relu),
    Case("relu", [INTEGERS.astype(np.int32)], onnx=Node("Relu"), torch=torch.relu),
    Case("sigmoid", [EVERY], onnx=Node("Sigmoid"), torch=torch.sigmoid),
    Case("tanh", [EVERY], onnx=Node("Tanh"), torch=torch.tanh),
    Case("exp", [EVERY], onnx=Node("Exp"), torch=torch.exp),
    Case("log", [EVERY], onnx=Node("Log"), torch=torch.log),
    Case("sqrt", [EVERY], onnx=Node("Sqrt"), torch=torch.sqrt),
    Case("rsqrt", [EVERY], torch=torch.rsqrt),
    Case("reciprocal", [EVERY], onnx=Node("Reciprocal"), torch=torch.reciprocal),
    Case("neg", [EVERY], onnx=Node("Neg"), torch=torch.neg),
    Case("neg", [INTEGERS], onnx=Node("Neg"), torch=torch.neg),
    Case("abs", [EVERY], onnx=Node("Abs"), torch=torch.abs),
    Case("abs", [INTEGERS], onnx=Node("Abs"), torch=torch.abs),
    Case("floor", [EVERY], onnx=Node("Floor"), torch=torch.floor),
    Case("ceil", [EVERY], onnx=Node("Ceil"), torch=torch.ceil),
    Case("round", [EVERY], onnx=Node("Round"), torch=torch.round),
    Case("erf", [EVERY], onnx=Node("Erf"), torch=torch.erf),
    Case("sin", [EVERY], onnx=Node("Sin"), torch=torch.sin),
    Case("cos", [EVERY], onnx=Node("Cos"), torch=torch.cos),
    Case("sign", [EVERY], onnx=Node("Sign")),
    Case("sign", [np.concatenate([X, f32(inf, -inf)])], torch=torch.sign),  # torch's sign of NaN is 0
    Case("sign", [INTEGERS], onnx=Node("Sign"), torch=torch.sign),
    Case("silu", [EVERY], onnx=Node("Swish", opset=24), torch=F.silu),
    Case("mish", [EVERY], onnx=Node("Mish"), torch=F.mish),
    Case("softsign", [EVERY], onnx=Node("Softsign"), torch=F.softsign),
    Case("logical_not", [TRUTHS[0]], onnx=Node("Not"), torch=torch.logical_not),
    Case("is_nan", [EVERY], onnx=Node("IsNaN"), torch=torch.isnan),
    Case("identity", [EVERY], onnx=Node("Identity"), torch=torch.clone),
    Case("identity", [INTEGERS], onnx=Node("Identity"), torch=torch.clone),
    Case("relu", [np.zeros((0, 3), np.float32)], onnx=Node("Relu"), torch=torch.relu),
    Case("gelu", [EVERY], onnx=Node("Gelu", opset=20)),
    Case("gelu", [np.concatenate([X, f32(nan, 1e30, -1e30)])], torch=F.gelu),  # torch's gelu of inf is NaN
    Case(
        "gelu",
        [EVERY],
        {"approximate": "tanh"},
        onnx=Node("Gelu", {"approximate": "tanh"}, opset=20),
        torch=lambda x: F.gelu(x, approximate="tanh"),
    ),
    Case("leaky_relu", [EVERY], onnx=Node("LeakyRelu"), torch=F.leaky_relu),
    Case(
        "leaky_relu",
        [EVERY],
        {"slope": 0.3},
        onnx=Node("LeakyRelu", {"alpha": 0.3}),
        torch=lambda x: F.leaky_relu(x, 0.3),
    ),
    Case("elu", [EVERY], onnx=Node("Elu"), torch=F.elu),
    Case("elu", [EVERY], {"alpha": 0.7}, onnx=Node("Elu", {"alpha": 0.7}), torch=lambda x: F.elu(x, 0.7)),
    Case("softplus", [EVERY], onnx=Node("Softplus")),
    Case("softplus", [EVERY], {"threshold": 20.0}, torch=F.softplus),
    Case(
        "softplus",
        [EVERY],
        {"beta": 2.0, "threshold": 1.5},
        torch=lambda x: F.softplus(x, 2.0, threshold=1.5),
    ),
    Case(
        "hard_sigmoid",
        [EVERY],
        {"alpha": 0.3, "beta": 0.4},
        onnx=Node("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    ),
    Case("hard_sigmoid", [EVERY], {"alpha": 1 / 6, "beta": 0.5}, torch=F.hardsigmoid),
    Case("hard_swish", [EVERY], onnx=Node("HardSwish"), torch=F.hardswish),
    Case("prelu", [ROWS, COLUMN], onnx=Node("PRelu")),
    Case("prelu", [ROWS, f32(0.2)], onnx=Node("PRelu"), torch=F.prelu),
    Case("prelu", [EVERY, f32(0.2)], onnx=Node("PRelu"), torch=F.prelu),
]

LOW, HIGH = np.float32(-1), np.float32(2)
# onnxruntime clamps infinities to the greatest finite number where a bound is absent.
FINITE = np.concatenate([X, f32(nan)])
CLAMP = [
    Case("clamp", [EVERY, LOW, HIGH], onnx=Node("Clip"), torch=lambda x, a, b: x.clamp(-1, 2)),
    Case("clamp", [X, HIGH, LOW], onnx=Node("Clip"), torch=lambda x, a, b: x.clamp(2, -1)),
    Case("clamp", [FINITE, None, HIGH], onnx=Node("Clip")),
    Case("clamp", [FINITE, LOW], onnx=Node("Clip")),
    Case("clamp", [FINITE], onnx=Node("Clip")),
    Case("clamp", [EVERY, None, HIGH], torch=lambda x, a, b: x.clamp(max=2)),
    Case("clamp", [EVERY, LOW], torch=lambda x, a: x.clamp(min=-1)),
    Case(
        "clamp",
        [INTEGERS, np.int64(-3), np.int64(5)],
        onnx=Node("Clip"),
        torch=lambda x, a, b: x.clamp(-3, 5),
    ),
    Case("clamp", [ROWS, COLUMN, COLUMN + 1], torch=torch.clamp),
]


def to(dtype: int) -> Node:
    return Node("Cast", {"to": dtype})


WHOLE = f32(-130.7, -3.9, -0.5, 0.0, 0.5, 2.5, 99.99)
CAST = [
    Case("cast", [WHOLE], {"dtype": "int64"}, onnx=to(7), torch=lambda x: x.to(torch.int64)),
    Case("cast", [WHOLE], {"dtype": "int32"}, onnx=to(6), torch=lambda x: x.to(torch.int32)),
    Case("cast", [np.abs(WHOLE)], {"dtype": "uint8"}, onnx=to(2), torch=lambda x: x.to(torch.uint8)),
    Case("cast", [EVERY], {"dtype": "bool"}, onnx=to(9), torch=lambda x: x.to(torch.bool)),
    Case("cast", [INTEGERS], {"dtype": "bool"}, onnx=to(9), torch=lambda x: x.to(torch.bool)),
    Case("cast", [INTEGERS], {"dtype": "float32"}, onnx=to(1), torch=lambda x: x.to(torch.float32)),
    Case("cast", [TRUTHS[0]], {"dtype": "float32"}, onnx=to(1), torch=lambda x: x.to(torch.float32)),
    Case("cast", [TRUTHS[0]], {"dtype": "int64"}, onnx=to(7), torch=lambda x: x.to(torch.int64)),
    Case("cast", [INTEGERS * 1000], {"dtype": "int8"}, onnx=to(3), torch=lambda x: x.to(torch.int8)),
]


def both(op: str, onnx: str, function: object, *operands: np.ndarray) -> Case:
    return Case(op, operands, onnx=Node(onnx), torch=function)  # type: ignore[arg-type]


BINARY = [
    case
    for op, onnx, function in (
        ("add", "Add", torch.add),
        ("sub", "Sub", torch.sub),
        ("mul", "Mul", torch.mul),
        ("maximum", "Max", torch.maximum),
        ("minimum", "Min", torch.minimum),
        ("equal", "Equal", torch.eq),
        ("less", "Less", torch.lt),
        ("less_equal", "LessOrEqual", torch.le),
        ("greater", "Greater", torch.gt),
        ("greater_equal", "GreaterOrEqual", torch.ge),
    )
    for case in (
        both(op, onnx, function, ROWS, COLUMN),
        both(op, onnx, function, *PAIRS),
        both(op, onnx, function, INTEGERS, DIVISORS),
        both(op, onnx, function, ROWS, np.zeros((0, 1, 1), np.float32)),
    )
]
BINARY += [
    Case("not_equal", PAIRS, torch=torch.ne),
    Case("not_equal", [INTEGERS, DIVISORS], torch=torch.ne),
    both("div", "Div", torch.div, ROWS, COLUMN),
    both("div", "Div", torch.div, *PAIRS),
    Case("div", [INTEGERS, DIVISORS], torch=torch.div),
    Case(
        "div",
        [INTEGERS, DIVISORS],
        {"rounding": "trunc"},
        onnx=Node("Div"),
        torch=lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    ),
    Case("div", [BYTES, BYTES // 40 + 1], {"rounding": "trunc"}, onnx=Node("Div")),
    Case(
        "div",
        [INTEGERS, DIVISORS],
        {"rounding": "floor"},
        torch=lambda x, y: torch.div(x, y, rounding_mode="floor"),
    ),
    Case(
        "div",
        [ROWS * 9, COLUMN],
        {"rounding": "floor"},
        torch=lambda x, y: torch.div(x, y, rounding_mode="floor"),
    ),
    Case(
        "div",
        [ROWS * 9, COLUMN],
        {"rounding": "trunc"},
        torch=lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    ),
    Case("pow", [POSITIVE[:20], X[:20]], onnx=Node("Pow"), torch=torch.pow, bound=64),
    Case("pow", PAIRS, onnx=Node("Pow"), torch=torch.pow),
    Case("pow", [INTEGERS, np.abs(DIVISORS)], onnx=Node("Pow"), torch=torch.pow),
    Case("pow", [INTEGERS.clip(-2, 2), DIVISORS], torch=torch.pow),
    Case("pow", [X, np.float32(2.0)], onnx=Node("Pow"), torch=lambda x, y: x**2),
    Case("mod", [INTEGERS, DIVISORS], onnx=Node("Mod"), torch=torch.remainder),
    Case("mod", [INTEGERS, DIVISORS], {"fmod": True}, onnx=Node("Mod", {"fmod": 1}), torch=torch.fmod),
    Case("mod", [X, f32(0.75)], torch=torch.remainder),
    Case("mod", [X, f32(-0.75)], {"fmod": True}, onnx=Node("Mod", {"fmod": 1}), torch=torch.fmod),
    both("logical_and", "And", torch.logical_and, *TRUTHS),
    both("logical_or", "Or", torch.logical_or, *TRUTHS),
    both("logical_xor", "Xor", torch.logical_xor, *TRUTHS),
    both("where", "Where", torch.where, sample.bools(3, 1), ROWS, COLUMN),
    both("where", "Where", torch.where, np.isnan(PAIRS[0]), *PAIRS),
    both("where", "Where", torch.where, sample.bools(50), INTEGERS, DIVISORS),
]
CASES = UNARY + CLAMP + CAST + BINARY
