"""Readers of elementwise operators."""

from __future__ import annotations

from graphopt.ir.fx.read import Reading, Said, reads
from graphopt.ir.graph import Value

_UNARY = (
    "relu", "sigmoid", "tanh", "exp", "log", "sqrt", "rsqrt", "reciprocal", "neg", "abs", "floor", "ceil",
    "erf", "sin", "cos", "sign", "silu", "mish",
)  # fmt: skip


def unary(r: Reading) -> Said:
    x = r.node.args[0] if r.node.args else r["self"]
    r.require(r.type(x).dtype == r.result().dtype, "type promotion")
    return Said((x,))


for _name in _UNARY:
    reads(_name, f"{_name}.default", plain=True)(unary)
reads("round", "round.default", plain=True)(unary)
reads("hard_swish", "hardswish.default", plain=True)(unary)


@reads("is_nan", "isnan.default")
def is_nan(r: Reading) -> Said:
    return Said((r["self"],))


@reads("logical_not", "logical_not.default", "bitwise_not.default")
def logical_not(r: Reading) -> Said:
    r.require(r.type(r["self"]).dtype == "bool", "bits of integers")
    return Said((r["self"],))


@reads(
    "identity", "clone.default", "contiguous.default", "alias.default", "detach.default",
    "lift_fresh_copy.default",
)  # fmt: skip
def identity(r: Reading) -> Said:
    r.type(r["self"])
    return Said((r["self"],))


@reads("identity", "dropout.default", "native_dropout.default")
def dropout(r: Reading) -> Said:
    r.require(not r["train"] or r["p"] == 0, "dropout is in training mode")
    r.type(r["input"])
    return Said((r["input"],))


@reads("cast", "_to_copy.default", "to.dtype", "to.dtype_layout", "to.device")
def cast(r: Reading) -> Said:
    x = r.node.args[0]
    r.require(r.args.get("layout") is None or "strided" in str(r["layout"]), "changes the layout")
    r.require(r.args.get("device") in (None, x.meta["val"].device), "changes the device")
    r.type(x)
    return Said((x,), {"dtype": r.result().dtype})


@reads("cast", "type_as.default")
def type_as(r: Reading) -> Said:
    r.require(r["self"].meta["val"].device == r["other"].meta["val"].device, "changes the device")
    r.type(r["self"])
    return Said((r["self"],), {"dtype": r.result().dtype})


@reads("gelu", "gelu.default")
def gelu(r: Reading) -> Said:
    r.keeps_dtype(r["self"])
    return Said((r["self"],), {"approximate": r["approximate"]})


@reads("leaky_relu", "leaky_relu.default")
def leaky_relu(r: Reading) -> Said:
    r.keeps_dtype(r["self"])
    return Said((r["self"],), {"slope": float(r.number("negative_slope"))})


@reads("elu", "elu.default")
def elu(r: Reading) -> Said:
    r.keeps_dtype(r["self"])
    r.require(r["scale"] == 1 and r["input_scale"] == 1, "scaled elu")
    return Said((r["self"],), {"alpha": float(r.number("alpha"))})


@reads("softplus", "softplus.default")
def softplus(r: Reading) -> Said:
    r.keeps_dtype(r["self"])
    return Said((r["self"],), {"beta": float(r.number("beta")), "threshold": float(r.number("threshold"))})


@reads("hard_sigmoid", "hardsigmoid.default")
def hard_sigmoid(r: Reading) -> Said:
    r.keeps_dtype(r["self"])
    return Said((r["self"],), {"alpha": 1 / 6, "beta": 0.5})


@reads("prelu", "prelu.default", "_prelu_kernel.default")
def prelu(r: Reading) -> Said:
    x, slope = r["self"], r["weight"]
    r.keeps_dtype(x, slope)
    # One slope a channel lies along axis 1, which is the last one only of a matrix.
    if "_prelu_kernel" not in str(r.node.target):
        one = r.dims(slope) in ((), (1,))
        r.require(one or r.rank(x) == 2, "one slope per channel (axis 1)")
    return Said((x, slope))


@reads("clamp", "clamp.default", "clamp_min.default", "clamp_max.default", "hardtanh.default")
def clamp_numbers(r: Reading) -> Said:
    dtype = r.keeps_dtype(r["self"])
    low, high = r.args.get("min", r.args.get("min_val")), r.args.get("max", r.args.get("max_val"))
    bounds = [None if v is None else r.literal(v, dtype) for v in (low, high)]
    return Said((r["self"], *bounds))


@reads("clamp", "relu6.default")
def relu6(r: Reading) -> Said:
    dtype = r.keeps_dtype(r["self"])
    return Said((r["self"], r.literal(0, dtype), r.literal(6, dtype)))


@reads("clamp", "clamp.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def clamp_tensors(r: Reading) -> Said:
    operands = (r["self"], r.args.get("min"), r.args.get("max"))
    r.keeps_dtype(*operands)
    return Said(operands)


def operands_of(r: Reading, *values: Value) -> list[Value]:
    """Operands of one dtype: a Python number becomes a Literal of the tensors' dtype, without promotion."""
    tensors = [v for v in values if hasattr(v, "meta")]
    dtype = r.one_dtype(*tensors)
    return [v if hasattr(v, "meta") else r.literal(v, dtype) for v in values]


def arithmetic(r: Reading) -> Said:
    operands = operands_of(r, r["self"], r["exponent"] if "exponent" in r.args else r["other"])
    dtype = r.keeps_dtype(*operands)
    r.require(dtype != "bool", "arithmetic of truth values")
    r.require(r.args.get("alpha", 1) == 1, "alpha is not 1")
    return Said(operands)


for _name, _overloads in {
    "add": ("add.Tensor", "add.Scalar"),
    "sub": ("sub.Tensor", "sub.Scalar"),
    "mul": ("mul.Tensor", "mul.Scalar"),
    "pow": ("pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar"),
    "maximum": ("maximum.default", "max.other"),
    "minimum": ("minimum.default", "min.other"),
}.items():
    reads(_name, *_overloads)(arithmetic)


@reads("sub", "rsub.Scalar", "rsub.Tensor")
def rsub(r: Reading) -> Said:
    said = arithmetic(r)
    return Said(tuple(reversed(said.operands)))


@reads("div", "div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode", "true_divide.Tensor")
def div(r: Reading) -> Said:
    return Said(arithmetic(r).operands, {"rounding": r.args.get("rounding_mode")})


@reads("div", "floor_divide.default", "floor_divide.Scalar")
def floor_divide(r: Reading) -> Said:
    return Said(arithmetic(r).operands, {"rounding": "floor"})


@reads("mod", "remainder.Tensor", "remainder.Scalar")
def remainder(r: Reading) -> Said:
    return Said(arithmetic(r).operands, {"fmod": False})


@reads("mod", "fmod.Tensor", "fmod.Scalar")
def fmod(r: Reading) -> Said:
    return Said(arithmetic(r).operands, {"fmod": True})


def comparison(r: Reading) -> Said:
    return Said(operands_of(r, r["self"], r["other"]))


for _name, _aten in {
    "equal": "eq",
    "not_equal": "ne",
    "less": "lt",
    "less_equal": "le",
    "greater": "gt",
    "greater_equal": "ge",
}.items():
    reads(_name, f"{_aten}.Tensor", f"{_aten}.Scalar")(comparison)


def logical(r: Reading) -> Said:
    operands = operands_of(r, r["self"], r["other"])
    r.require(r.one_dtype(*operands) == "bool", "bits of integers")
    return Said(operands)


for _name in ("and", "or", "xor"):
    reads(
        f"logical_{_name}", f"logical_{_name}.default", f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar",
        f"__{_name}__.Tensor", f"__{_name}__.Scalar",
    )(logical)  # fmt: skip


@reads("where", "where.self", "where.ScalarOther", "where.ScalarSelf")
def where(r: Reading) -> Said:
    r.require(r.type(r["condition"]).dtype == "bool", "the condition is no truth value")
    choices = operands_of(r, r["self"], r["other"])
    r.keeps_dtype(*choices)
    return Said((r["condition"], *choices))


@reads("where", "masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(r: Reading) -> Said:
    r.require(r.type(r["mask"]).dtype == "bool", "the mask is no truth value")
    value, x = operands_of(r, r["value"], r["self"])
    r.keeps_dtype(value, x)
    return Said((r["mask"], value, x))
