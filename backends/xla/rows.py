"""Whether padding an axis can reach what is kept, read off the program that is compiled.

The function is traced at the size that is asked for, n, and at the size that it is padded to, N. The two programs have
to be the same op by op, but for sizes. So every dimension that is larger in the second is the padded axis, alone or
with axes inside of it, and its first part, as long as in the first program, is what is kept. By induction over the ops:
if the kept parts of the operands are those of the program at n, so are those of the results, as long as every op treats
the indices of the padded axis apart from each other. That is what `RULES` say of each; an op without a rule is refused,
and so is one that sums, sorts or normalises over the axis. Numbers that are computed from the size are literals here,
and literals have to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from graphopt.errors import UnsupportedError

Rule: TypeAlias = Callable[[Any, list["int | None"], "int | None"], bool]
"""Of an equation, the padded dimension of each operand and that of the results (None: there is none): whether indices
of it stay apart."""

ELEMENTWISE = frozenset({
    "iota", "device_put", "add", "sub", "mul", "div", "rem", "max", "min", "pow", "integer_pow", "exp", "exp2", "log",
    "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "erf_inv", "rsqrt", "sqrt", "cbrt", "square", "neg", "sign",
    "abs", "floor", "ceil", "round", "nextafter", "is_finite", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "asinh", "acosh", "atanh", "atan2", "select_n", "clamp", "eq", "ne", "lt", "le", "gt", "ge", "and", "or",
    "xor", "not", "shift_left", "shift_right_logical", "shift_right_arithmetic", "convert_element_type",
    "bitcast_convert_type", "reduce_precision", "stop_gradient", "copy", "copy_p", "add_any",
})  # fmt: skip
"""Each element of a result is made of the elements at its place (and of its place, for iota)."""
CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat",
                   "checkpoint"})  # fmt: skip
"""What runs a program of its own on its operands."""
OTHER = "is another program at another size; add the size to the buckets"
SIZES = {
    "broadcast_in_dim": "shape", "reshape": "new_sizes", "iota": "shape", "slice": "limit_indices",
    "gather": "slice_sizes", "dynamic_slice": "slice_sizes",
}  # fmt: skip
"""Parameters that are sizes; all others have to be equal."""


def _shape(variable: Any) -> tuple[int, ...]:
    return tuple(getattr(variable.aval, "shape", ()))


def _reduction(equation: Any, dims: list[int | None], _: int | None) -> bool:
    return all(d is None or d not in equation.params["axes"] for d in dims)


def _along(name: str) -> Rule:
    """Works along the axis that a parameter names."""

    def apart(equation: Any, dims: list[int | None], result: int | None) -> bool:
        return all(d is None or d != equation.params[name] for d in (*dims, result))

    return apart


def _broadcast(equation: Any, dims: list[int | None], result: int | None) -> bool:
    places = equation.params["broadcast_dimensions"]
    return dims[0] is None or bool(places[dims[0]] == result)


def _reshape(equation: Any, dims: list[int | None], result: int | None) -> bool:
    """What stands outside of the axis stays outside."""
    if dims[0] is None or result is None:
        return False
    return math.prod(_shape(equation.invars[0])[: dims[0]]) == math.prod(_shape(equation.outvars[0])[:result])


def _transpose(equation: Any, dims: list[int | None], result: int | None) -> bool:
    return result is not None and bool(equation.params["permutation"][result] == dims[0])


def _squeeze(equation: Any, dims: list[int | None], _: int | None) -> bool:
    return dims[0] not in equation.params["dimensions"]


def _product(equation: Any, dims: list[int | None], _: int | None) -> bool:
    """The axis is no sum's; one that both operands have is one over which there is a product for each index."""
    contracted, batches = equation.params["dimension_numbers"]
    if any(d is not None and d in summed for d, summed in zip(dims, contracted, strict=True)):
        return False
    if None in dims:
        return not any(d is not None and d in batch for d, batch in zip(dims, batches, strict=True))
    return tuple(dims) in set(zip(*batches, strict=True))


def _convolution(equation: Any, dims: list[int | None], _: int | None) -> bool:
    batch = equation.params["dimension_numbers"].lhs_spec[0]
    return bool(dims[1] is None and dims[0] == batch and equation.params["batch_group_count"] == 1)


def _pad(equation: Any, dims: list[int | None], _: int | None) -> bool:
    return dims[0] is not None and tuple(equation.params["padding_config"][dims[0]]) == (0, 0, 0)


def _slice(equation: Any, dims: list[int | None], result: int | None) -> bool:
    """All of the axis, or of something else the first part, of the length of the axis."""
    if dims[0] not in (None, result) or result is None:
        return False
    strides = equation.params["strides"] or (1,) * len(_shape(equation.outvars[0]))
    whole = dims[0] is None or _shape(equation.invars[0])[result] == _shape(equation.outvars[0])[result]
    return bool(whole and equation.params["start_indices"][result] == 0 and strides[result] == 1)


def _gather(equation: Any, dims: list[int | None], result: int | None) -> bool:
    """The padded axis is one of indices, of an operand that is taken whole, or of both in step."""
    numbers, (operand, indices) = equation.params["dimension_numbers"], dims
    batches = [i for i in range(len(_shape(equation.outvars[0]))) if i not in numbers.offset_dims]
    if operand is None:
        return indices is not None and indices < len(batches) and batches[indices] == result
    if indices is not None:
        pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        return (operand, indices) in set(pairs) and batches[indices] == result
    dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [i for i in range(len(_shape(equation.invars[0]))) if i not in dropped]
    whole = equation.params["slice_sizes"][operand] == _shape(equation.invars[0])[operand]
    return operand in kept and bool(whole and numbers.offset_dims[kept.index(operand)] == result)


def _window(equation: Any, dims: list[int | None], _: int | None) -> bool:
    """Every window is one wide along the axis."""
    named = equation.params
    return all(
        d is None or (named["window_dimensions"][d] == named["window_strides"][d] == 1 and not any(named["padding"][d]))
        for d in dims
    )


def _top(equation: Any, dims: list[int | None], _: int | None) -> bool:
    rank = len(_shape(equation.invars[0]))
    return bool(dims[0] != equation.params.get("axis", rank - 1) % rank)


RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast, "reshape": _reshape, "transpose": _transpose, "squeeze": _squeeze,
    "dot_general": _product, "conv_general_dilated": _convolution, "pad": _pad, "slice": _slice, "gather": _gather,
    "concatenate": _along("dimension"), "sort": _along("dimension"), "split": _along("axis"), "top_k": _top,
    "rev": lambda equation, dims, _: dims[0] not in equation.params["dimensions"],
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"], _along("axis")),
    **{f"reduce_{name}": _reduction for name in ("sum", "max", "min", "prod", "and", "or")},
    **dict.fromkeys(["argmax", "argmin"], _reduction),
    **{f"reduce_window_{name}": _window for name in ("sum", "max", "min")},
}  # fmt: skip


def require_apart(asked: ClosedJaxpr, padded: ClosedJaxpr, axis: str) -> None:
    """`axis` is what the two programs differ in, as it is called in messages.

    Raises:
        UnsupportedError: padding could reach what is kept, naming the node where.
    """
    _compare(asked, padded, axis, "the program")


def _equal(a: Any, b: Any) -> bool:
    x, y = np.asarray(a), np.asarray(b)
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def _compare(asked: ClosedJaxpr, padded: ClosedJaxpr, axis: str, around: str) -> None:
    """`around` is the node that runs the two."""
    own, other = asked.jaxpr, padded.jaxpr
    counts = [(len(j.invars), len(j.constvars), len(j.eqns), len(j.outvars)) for j in (own, other)]
    if counts[0] != counts[1]:
        raise _refused(axis, around, OTHER)
    for variable, a, b in zip(other.constvars, asked.consts, padded.consts, strict=True):
        if not _equal(a, b):
            readers = [_node(e, around) for e in other.eqns if any(v is variable for v in e.invars)]
            raise _refused(axis, [*readers, around][0], "reads a constant that depends on the size")
    for a, b in zip(own.eqns, other.eqns, strict=True):
        node = _node(b, around)
        if (reason := _reason(a, b)) is not None:
            raise _refused(axis, node, reason)
        for inner_a, inner_b in zip(_inner(a.params), _inner(b.params), strict=True):
            _compare(inner_a, inner_b, axis, node)
    for variables in (zip(own.invars, other.invars, strict=True), zip(own.outvars, other.outvars, strict=True)):
        try:
            for a, b in variables:
                _padded_dim(a, b)
        except ValueError as error:
            raise _refused(axis, around, str(error)) from None


def _node(equation: Any, around: str) -> str:
    return str(equation.source_info.name_stack).rpartition("/")[2] or around


def _refused(axis: str, node: str, reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"backend 'xla': {axis} cannot be padded: {node} {reason}; lower the model without buckets for it, which "
        "compiles it for each size"
    )


def _reason(a: Any, b: Any) -> str | None:
    """Why the op `b` may let padding through; `a` is the same op at the size that is asked for."""
    name = b.primitive.name
    if a.primitive is not b.primitive:
        return OTHER
    try:
        dims = [_padded_dim(x, y) for x, y in zip(a.invars, b.invars, strict=True)]
        results = {_padded_dim(x, y) for x, y in zip(a.outvars, b.outvars, strict=True)}
    except ValueError as error:
        return f"({name}) {error}"
    if (differing := _differing(a.params, b.params, SIZES.get(name))) is not None:
        return f"({name}) has another {differing} at another size"
    if all(d is None for d in (*dims, *results)) or name in ELEMENTWISE or name in CALLS:
        return None
    if name not in RULES:
        return f"({name}) says nothing about axes"
    if any(d is not None for d in dims) and None in results:
        return f"({name}) makes one result of all of its indices"
    return None if all(RULES[name](b, dims, result) for result in results) else f"({name}) couples its indices"


def _padded_dim(a: Any, b: Any) -> int | None:
    """The dimension in which the variable `b` is larger than `a`."""
    if isinstance(a, Literal) or isinstance(b, Literal):
        if not (isinstance(a, Literal) and isinstance(b, Literal) and _equal(a.val, b.val)):
            raise ValueError("computes with a number that depends on the size")
        return None
    own, other = _shape(a), _shape(b)
    found = [i for i, (m, n) in enumerate(zip(own, other, strict=True)) if m != n]
    if len(found) > 1:
        raise ValueError("has the size in two dimensions")
    return found[0] if found else None


def _differing(a: dict[str, Any], b: dict[str, Any], sizes: str | None) -> str | None:
    """A parameter that differs and is no size. Programs are compared by themselves, functions are what made them."""
    for key in b.keys() - {sizes}:
        x, y = a.get(key), b[key]
        if not (callable(y) or list(_inner({key: y}))) and repr(x) != repr(y):
            return key
    return None


def _inner(params: dict[str, Any]) -> Iterator[ClosedJaxpr]:
    for value in params.values():
        for item in value if isinstance(value, Sequence) and not isinstance(value, str) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, ())
