"""Claims that two expressions agree, made of vocabulary ops, and what proof says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from planted import Maker

from graphopt.ir.graph import TensorType
from graphopt.ir.weights import ArrayRef, numpy_dtype
from graphopt.rewrite.contract import Proof
from graphopt.verify.fragment import Fragment, Side
from graphopt.verify.prove import prove

Make = Callable[[Maker, Any, Any], Any]


def claim(before: Make, after: Make, *, shape: tuple[int, ...] = (2, 3), seed: int | None = None) -> Proof:
    """Whether two expressions in x and y agree."""
    m = Maker("float32")
    x, y = m.input(*shape), m.input(*shape)
    old, new = before(m, x, y), after(m, x, y)
    sides = []
    for root in (old, new):
        nodes = [n for n in m.graph.nodes()]
        sides.append(Side(tuple(nodes), (root,)))
    feeds = [np.zeros(shape, np.float32)] * 2
    return prove(Fragment(m.graph, (x, y), *sides), feeds, seed=seed)


def op(name: str, *arguments: Any, **fields: Any) -> Make:
    """An expression: "x", "y", a number, or an op of such."""

    def make(m: Maker, x: Any, y: Any) -> Any:
        def one(argument: Any) -> Any:
            if callable(argument):
                return argument(m, x, y)
            return {"x": x, "y": y}[argument] if isinstance(argument, str) else m.full(argument)

        return m.graph.append(name, *(one(a) for a in arguments), **fields)

    return make


def fragment_of(
    before: Make, after: Make, *, shapes: Sequence[tuple[int, ...]], dtypes: Sequence[str] = ("float32", "float32")
) -> Fragment:
    """Both expressions in inputs of these types."""
    m = Maker(dtypes[0])
    inputs = [m.graph.add_input(TensorType(d, s)) for d, s in zip(dtypes, shapes, strict=True)]
    sides = []
    for make in (before, after):
        known = set(m.graph.nodes())
        root = make(m, *inputs)
        sides.append(Side(tuple(n for n in m.graph.nodes() if n not in known), (root,)))
    return Fragment(m.graph, tuple(inputs), *sides)


def claim_of(
    before: Make,
    after: Make,
    *,
    shape: tuple[int, ...] = (1, 1),
    dtypes: Sequence[str] = ("float32", "float32"),
    seed: int | None = None,
    feeds: Sequence[Any] | None = None,
) -> Proof:
    """Whether two expressions in an x and a y of these dtypes agree."""
    fragment = fragment_of(before, after, shapes=[shape, shape], dtypes=dtypes)
    given = feeds or [np.zeros(shape, numpy_dtype(d)) for d in dtypes]
    return prove(fragment, [np.asarray(g) for g in given], seed=seed)


def constant(*values: Any, dtype: str = "float32", shape: tuple[int, ...] | None = None) -> Make:
    """A constant tensor within an expression."""
    array = np.asarray(values, numpy_dtype(dtype))
    return lambda m, x, y: m.graph.add_constant(ArrayRef(array if shape is None else array.reshape(shape)), "c")[0]
