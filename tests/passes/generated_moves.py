"""Graphs generated from a clean-up rule's own pattern: fields, constants, shapes and alternatives are drawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph, ScratchValue
from graphopt.ir.weights import ArrayRef, numpy_dtype
from graphopt.rewrite.pattern import AnyOf, Const, Many, OpPattern, Opt, Pattern, Var
from graphopt.rewrite.rule import Rule

DTYPES = {"logical_not": ("bool",), "cast": ("float32", "float16", "int32", "int64", "bool")}
"""What the operand of an op may be; float32 for all others."""


@st.composite
def graphs(draw: Any, rule: Rule) -> ScratchGraph:
    """A graph that holds the ops of `rule`'s pattern in its order, and a relu or not behind them."""
    generator = _Generator(draw, rule)
    result = generator.emit(rule.roots[0])
    graph = generator.graph
    # An output of the graph keeps a node of its own, so something else has to come last.
    last = {"bool": "logical_not", "float32": "relu", "float16": "relu"}.get(result.type.dtype, "neg")
    graph.add_output(graph.append(last, result, types=[result.type]))
    return graph


class _Generator:
    def __init__(self, draw: Any, rule: Rule) -> None:
        self.draw = draw
        self.graph = ScratchGraph()
        self.neutral = getattr(rule.definition, "neutral", 0.0)
        self.values: dict[str, ScratchValue] = {}

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def emit(self, pattern: Pattern, op: str = "") -> ScratchValue:
        """Append what `pattern` stands for; `op` reads its value."""
        match pattern:
            case AnyOf():
                return self.emit(self.pick(*pattern.alternatives), op)
            case Var() | Many():
                return self._input(pattern.name, op)
            case OpPattern():
                return self._op(pattern)
        raise AssertionError(pattern)

    def _input(self, name: str, op: str) -> ScratchValue:
        if name not in self.values:
            shape = tuple(self.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=4)))
            dtype = self.pick(*DTYPES.get(op, ("float32",)))
            self.values[name] = self.graph.add_input(TensorType(dtype, shape))
        return self.values[name]

    def _op(self, pattern: OpPattern) -> ScratchValue:
        x = self.emit(pattern.operands[0], pattern.op)
        operands: list[Any] = [x, *(self._constant(o, x) for o in pattern.operands[1:])]
        given = {k: v for k, v in pattern.fields.items() if k in dict(pattern.checks)}
        fields, shape = self._fields(pattern.op, x.type.shape)
        dtype = fields.get("dtype", x.type.dtype)
        result = self.graph.append(pattern.op, *operands, types=[TensorType(dtype, shape)], **fields | given)
        return result[0] if isinstance(result, tuple) else result

    def _constant(self, pattern: Pattern, x: ScratchValue) -> Any:
        if isinstance(pattern, Opt):
            return self._constant(pattern.inner, x) if isinstance(pattern.inner, Const) else None
        if not isinstance(pattern, Const):
            return None
        value = pattern.value if pattern.value is not None else self.pick(self.neutral, self.neutral, -0.0, 2.0)
        shape = self.pick((), x.type.shape, (1,) * len(x.type.shape))
        return ArrayRef(np.full(shape, value, numpy_dtype(x.type.dtype)))

    def _fields(self, op: str, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Fields that are legal for an operand of `shape`, and the shape of the result."""
        make = getattr(self, f"_{op}", None)
        return ({}, shape) if make is None else make(shape)

    def _transpose(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        perm = tuple(self.draw(st.permutations(range(len(shape)))))
        return {"perm": perm}, tuple(shape[p] for p in perm)

    def _reshape(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        size = math.prod(shape)
        result = self.pick(shape, (size,), (1, size), (shape[0], size // shape[0]))
        target = self.pick(result, (-1, *result[1:]))
        return {"shape": target}, result

    def _unsqueeze(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        axis = self.pick(*range(len(shape) + 1))
        return {"axes": (axis,)}, (*shape[:axis], 1, *shape[axis:])

    def _squeeze(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        ones = [i for i, s in enumerate(shape) if s == 1]
        self.draw(st.just(None).filter(lambda _: bool(ones)))
        axis = self.pick(*ones)
        return {"axes": (axis,)}, (*shape[:axis], *shape[axis + 1 :])

    def _cast(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        return {"dtype": self.pick("float32", "float64", "float16", "int32", "int64")}, shape

    def _slice(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        axis = self.pick(*range(len(shape)))
        start, end = self.pick((0, shape[axis]), (0, 2**63 - 1), (0, 1), (shape[axis] - 1, shape[axis]))
        length = len(range(shape[axis])[start:end])
        fields = {"starts": (start,), "ends": (end,), "axes": (axis,), "steps": (1,)}
        return fields, (*shape[:axis], length, *shape[axis + 1 :])

    def _concat(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        return {"axis": self.pick(*range(len(shape)))}, shape

    def _split(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        axis = self.pick(*range(len(shape)))
        return {"sizes": (shape[axis],), "axis": axis}, shape

    def _pad(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        behind = self.pick(0, 0, 1)
        pads = (*[0] * len(shape), *[0] * (len(shape) - 1), behind)
        return {"pads": pads, "mode": "constant"}, (*shape[:-1], shape[-1] + behind)

    def _tile(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        last = self.pick(1, 1, 2)
        return {"repeats": (*[1] * (len(shape) - 1), last)}, (*shape[:-1], shape[-1] * last)

    def _expand(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        result = self.pick(shape, tuple(3 if s == 1 else s for s in shape))
        return {
            "shape": self.pick(result, tuple(1 if a == b else a for a, b in zip(result, shape, strict=True)))
        }, result

    def _leaky_relu(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        return {"slope": self.pick(0.01, 0.5)}, shape

    def _hard_sigmoid(self, shape: tuple[int, ...]) -> tuple[dict[str, Any], tuple[int, ...]]:
        return {"alpha": 0.25, "beta": 0.5}, shape
