"""Bounds that the numbers of a value certainly keep, told from how they are computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

from graphopt.ir.graph import Call, Graph, Node, Value
from graphopt.ir.weights import FLOATS

Range: TypeAlias = tuple[float, float]
"""The least and the greatest number that may occur, both finite."""
SAME_NUMBERS = frozenset({
    "identity", "reshape", "transpose", "expand", "squeeze", "unsqueeze", "slice", "split", "tile", "gather",
    "gather_elements", "gather_nd", "repeat_interleave", "roll",
})  # fmt: skip
"""Ops whose result holds numbers of their first operand only."""
JOINING = frozenset({"concat", "stack"})
"""Ops whose result holds numbers of all their operands and no others."""
SELECTING = {
    "topk": 1, "sort": 1, "arg_max": 0, "arg_min": 0, "ai.onnx::TopK": 1,
    **dict.fromkeys(("aten.topk.default", "aten.max.dim", "aten.min.dim"), 1),
}  # fmt: skip
"""Which result counts along an axis: ops, and operators of a storage that no op says."""
INTEGERS = frozenset({"int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"})
DEEPEST = 32
"""Longest chain of ops that is followed."""
LARGEST = 1 << 16
"""Most elements of a constant that is looked at."""


def value_range(graph: Graph, value: Value | None, depth: int = DEEPEST) -> Range | None:
    """Bounds of `value` if they follow from constants, integers and truth values; None if it may be anything, NaN and
    infinities included."""
    type_ = None if value is None else graph.type(value)
    if type_ is None or depth == 0:
        return None
    if (data := graph.constant(value)) is not None:
        return _of_array(np.asarray(data.numpy(), np.float64)) if 0 < data.size <= LARGEST else None
    node = graph.producer(value)
    found = None if node is None else _of_node(graph, node, value, depth - 1)
    limits = _of_dtype(type_.dtype)
    if found is None or (limits is not None and not limits[0] <= found[0] <= found[1] <= limits[1]):
        return limits
    return found if type_.dtype not in FLOATS or _fits(found, type_.dtype) else None


def _of_array(data: np.ndarray) -> Range | None:
    low, high = float(data.min()), float(data.max())
    return (low, high) if np.isfinite([low, high]).all() else None


def _of_dtype(dtype: str) -> Range | None:
    if dtype == "bool":
        return 0.0, 1.0
    if dtype not in INTEGERS:
        return None
    limits = np.iinfo(dtype)
    return float(limits.min), float(limits.max)


def _fits(found: Range, dtype: str) -> bool:
    """Whether a float dtype holds all numbers of the range, rounding included."""
    largest = float(np.finfo(dtype if dtype in ("float16", "float64") else "float32").max)
    return dtype != "bfloat16" and max(abs(found[0]), abs(found[1])) <= largest


def _of_node(graph: Graph, node: Node, value: Value, depth: int) -> Range | None:
    call, raw = graph.call(node), graph.raw_call(node)
    if not isinstance(call, Call):
        fields = raw.fields
        return _of_axis(graph, graph.raw_name(node), raw, value, fields.get("dim", fields.get("axis", -1)))
    return _of_axis(graph, call.op, call, value, call.fields.get("axis")) or _of_call(graph, call, depth)


def _of_axis(graph: Graph, name: str, call: Call, value: Value, axis: Any) -> Range | None:
    """Bounds of `value` if it numbers the elements along an axis of the first operand."""
    index = SELECTING.get(name)
    if index is None or axis is None or call.outputs[index] != value:
        return None
    type_ = graph.type(call.operands[0])
    size = type_.shape[int(axis)] if type_ is not None and type_.shape else None
    return (0.0, size - 1.0) if isinstance(size, int) and size > 0 else None


def _of_call(graph: Graph, call: Call, depth: int) -> Range | None:
    def of(index: int) -> Range | None:
        return value_range(graph, call.operands[index], depth)

    if call.op in SAME_NUMBERS:
        return of(0)
    if call.op == "cast":
        return _cast(of(0), call.fields["dtype"])
    if call.op == "where":
        return _hull(of(1), of(2))
    if call.op in JOINING:
        return reduce(_hull, [of(index) for index in range(len(call.operands))])
    if call.op in ("add", "sub", "mul"):
        a, b = of(0), of(1)
        return None if a is None or b is None else _combined(call.op, a, b)
    if call.op in ("mod", "div"):
        return _divided(graph, call, of(0), of(1))
    return _bounded(call, of) if call.op in ("clamp", "minimum", "maximum") else None


def _cast(found: Range | None, dtype: str) -> Range | None:
    """Casting keeps the order of numbers, so that bounds are cast as numbers are."""
    if found is None or dtype in ("bool", "bfloat16"):
        return None if dtype == "bool" else found
    if dtype not in FLOATS:
        return float(np.trunc(found[0])), float(np.trunc(found[1]))
    with np.errstate(over="ignore"):
        return float(np.dtype(dtype).type(found[0])), float(np.dtype(dtype).type(found[1]))


def _divided(graph: Graph, call: Call, x: Range | None, divisor: Range | None) -> Range | None:
    """Quotients and remainders of integers and positive integers."""
    type_ = graph.type(call.outputs[0])
    if x is None or divisor is None or divisor[0] < 1 or type_ is None or type_.dtype not in INTEGERS:
        return None
    if call.op == "mod":
        return None if call.fields["fmod"] else (0.0, divisor[1] - 1.0)
    return (x[0] // divisor[1], x[1] // divisor[0]) if x[0] >= 0 and call.fields["rounding"] else None


def _bounded(call: Call, of: Callable[[int], Range | None]) -> Range | None:
    """Numbers that are cut off below, above or both."""
    steps = {"clamp": (max, min), "maximum": (max,), "minimum": (min,)}[call.op]
    found = of(0)
    for index, extreme in enumerate(steps, start=1):
        if call.operands[index] is None:
            continue
        bound = of(index)
        found = None if found is None or bound is None else (extreme(found[0], bound[0]), extreme(found[1], bound[1]))
    return found


def _hull(a: Range | None, b: Range | None) -> Range | None:
    return None if a is None or b is None else (min(a[0], b[0]), max(a[1], b[1]))


def _combined(op: str, a: Range, b: Range) -> Range | None:
    if op == "add":
        low, high = a[0] + b[0], a[1] + b[1]
    elif op == "sub":
        low, high = a[0] - b[1], a[1] - b[0]
    else:
        products = [x * y for x in a for y in b]
        low, high = min(products), max(products)
    return (low, high) if np.isfinite([low, high]).all() else None
