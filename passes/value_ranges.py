"""Bounds that the numbers of a value certainly keep, told from how they are computed."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from graphopt.ir.graph import Call, Graph, Value
from graphopt.ir.weights import FLOATS

Range: TypeAlias = tuple[float, float]
"""The least and the greatest number that may occur, both finite."""
SAME_NUMBERS = frozenset({
    "identity", "reshape", "transpose", "expand", "squeeze", "unsqueeze", "slice", "split", "tile", "gather",
    "repeat_interleave", "roll",
})  # fmt: skip
"""Ops whose result holds numbers of their first operand only."""
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
    call = None if node is None else graph.call(node)
    found = _of_call(graph, call, depth - 1) if isinstance(call, Call) else None
    if found is None:
        return _of_dtype(type_.dtype)
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


def _of_call(graph: Graph, call: Call, depth: int) -> Range | None:
    def of(index: int) -> Range | None:
        return value_range(graph, call.operands[index], depth)

    if call.op in SAME_NUMBERS or call.op == "cast":
        return of(0)
    if call.op == "where":
        return _hull(of(1), of(2))
    if call.op in ("add", "sub", "mul"):
        a, b = of(0), of(1)
        return None if a is None or b is None else _combined(call.op, a, b)
    return None


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
