"""Experts that are two products with an activation between them, read from what is computed with picked weights:

    y = act(x @ W1^T + b1) @ W2^T + b2;  act is one function, or silu(a) * b of two halves or of two products
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from graphopt.ir.graph import Call, Literal, Value
from graphopt.ir.weights import Array, SlicedRef, TensorRef
from graphopt.passes.lower_moe.picked import NotPicked, Picked
from graphopt.passes.lower_moe.stacks import Stack

KINDS = frozenset({"relu", "gelu", "silu", "identity", "swiglu"})
"""Activations that the node has; gelu with tanh."""


@dataclass(frozen=True)
class Rows:
    """What the experts read."""

    value: Value


@dataclass(frozen=True, eq=False)
class Product:
    """x @ w^T + b with w[E, out, in], b[E, out]."""

    x: Rows | Activated
    w: TensorRef
    b: TensorRef | None = None

    def alike(self, other: Product) -> bool:
        """Whether both have as many columns, and biases or none."""
        return self.w.shape == other.w.shape and (self.b is None) == (other.b is None)

    def part(self, kept: Array) -> Product:
        """Some of its columns."""
        b = None if self.b is None else SlicedRef(self.b, [None, kept])
        return replace(self, w=SlicedRef(self.w, [None, kept, None]), b=b)


@dataclass(frozen=True, eq=False)
class Activated:
    """A function of `a`: relu, gelu, silu, identity or sigmoid; or swiglu, silu(a) * b."""

    kind: str
    a: Product
    b: Product | None = None


Role: TypeAlias = Rows | Product | Activated


def two_products(picked: Picked) -> tuple[Value, Product, Value]:
    """The rows that the experts of `picked` read, what they make of them, and its value. Raises NotPicked."""
    reader = _Reader(picked)
    for call in picked.calls:
        reader.read(call)
    (value, *more) = picked.outputs
    role = reader.roles.get(value)
    if more or not isinstance(role, Product) or not isinstance(role.x, Activated):
        raise NotPicked("its experts are not two products with an activation between them")
    if role.x.kind not in KINDS:
        raise NotPicked(f"an activation {role.x.kind}, which the node has not")
    return role.x.a.x.value, role, value  # type: ignore[union-attr]


class _Reader:
    def __init__(self, picked: Picked) -> None:
        self.graph = picked.graph
        self.stacks = dict(picked.stacks)
        self.roles: dict[Value, Role] = {v: Rows(v) for v in picked.inputs}

    def read(self, call: Call) -> None:
        role = RULES.get(call.op, _unknown)(self, call)
        if role is None:
            raise NotPicked(f"{self.graph.node_name(call.node)}: {call.op} is no part of two products")
        for output, found in zip(call.outputs, role if isinstance(role, list) else [role], strict=True):
            if output is not None:
                self.roles[output] = found

    def role(self, value: Value | None) -> Role | None:
        return None if value is None or isinstance(value, Literal) else self.roles.get(value)


def _unknown(reader: _Reader, call: Call) -> None:
    return None


def _product(reader: _Reader, call: Call) -> Role | None:
    left, right = call.operands
    stack, x = reader.stacks.get(left), reader.role(right)
    if stack is None:
        stack, x = reader.stacks.get(right), reader.role(left)
        stack = None if stack is None else Stack(stack.data, (*stack.perm[:-2], stack.perm[-1], stack.perm[-2]))
    if isinstance(x, Product):
        x = Activated("identity", x)
    return None if stack is None or x is None or len(stack.shape) != 3 else Product(x, _weight(stack))


def _weight(stack: Stack) -> TensorRef:
    return stack.data if stack.perm == tuple(range(len(stack.perm))) else stack.data.transpose(*stack.perm)


def _add(reader: _Reader, call: Call) -> Role | None:
    for product, bias in (call.operands, call.operands[::-1]):
        role, stack = reader.role(product), reader.stacks.get(bias)
        if isinstance(role, Product) and role.b is None and stack is not None and len(stack.shape) == 2:
            return replace(role, b=_weight(stack))
    return None


def _mul(reader: _Reader, call: Call) -> Role | None:
    """x * sigmoid(x), or silu(a) * b."""
    for x, y in (call.operands, call.operands[::-1]):
        first, second = reader.role(x), reader.role(y)
        if isinstance(first, Activated) and isinstance(second, Product):
            if first.kind == "sigmoid" and first.a is second:
                return Activated("silu", second)
            if first.kind == "silu" and second.x == first.a.x and second.alike(first.a):
                return Activated("swiglu", first.a, second)
    return None


def _function(kind: str) -> Callable[[_Reader, Call], Role | None]:
    def rule(reader: _Reader, call: Call) -> Role | None:
        role = reader.role(call.operands[0])
        if kind == "gelu" and call.fields["approximate"] != "tanh":
            return None
        return Activated(kind, role) if isinstance(role, Product) and isinstance(role.x, Rows) else None

    return rule


def _halves(reader: _Reader, call: Call) -> list[Role] | None:
    role, sizes, axis = reader.role(call.operands[0]), call.fields["sizes"], call.fields["axis"]
    type_ = reader.graph.type(call.operands[0])
    if not isinstance(role, Product) or type_ is None or axis != (type_.rank or 0) - 1:
        return None
    ends = np.cumsum(sizes)
    return [role.part(np.arange(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def _same(reader: _Reader, call: Call) -> Role | None:
    """Axes of size 1 come and go; those of weights too."""
    value = call.operands[0]
    if value in reader.stacks:
        reader.stacks[call.outputs[0]] = reader.stacks[value]
        return Rows(value)
    types = [reader.graph.type(v) for v in (value, call.outputs[0])]
    sizes = [[d for d in (t.shape or ())[1:] if d != 1] if t is not None else None for t in types]
    return reader.role(value) if sizes[0] is not None and sizes[0] == sizes[1] else None


RULES: Mapping[str, Callable[[_Reader, Call], Role | list[Role] | None]] = {
    "matmul": _product,
    "add": _add,
    "mul": _mul,
    "split": _halves,
    **{name: _function(name) for name in ("relu", "gelu", "silu", "sigmoid")},
    **dict.fromkeys(("identity", "squeeze", "unsqueeze", "reshape"), _same),
}
