"""What small integer tensors hold, as far as types tell: the arithmetic that models do with shapes, done on
names.

An element is a number, a truth value, a `Size` (a size that has no number, of which equal ones are equal),
or None when nothing is known. Sizes are never negative, which is all that is assumed of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from graphopt.ir.graph import Call, Dim, Graph, Literal, Value
from graphopt.ir.weights import Array
from graphopt.verify.inputs import multiple_of

LIMIT = 64
"""Most elements of a tensor that is followed."""
FOLLOWED = frozenset({"int64", "int32", "bool"})


@dataclass(frozen=True, slots=True)
class Size:
    """A multiple of a size that is not known as a number: of a named one, or of an axis of a value."""

    identity: Hashable
    factor: int = 1


Element: TypeAlias = int | bool | Size | None
Content: TypeAlias = Array
"""An array of elements, of numpy dtype object."""


def size_at(value: Value, axis: int, size: Dim) -> Element:
    """The size of `value` along `axis` as an element."""
    if isinstance(size, int):
        return size
    if size is None:
        return Size((value, axis))
    factor, name = multiple_of(size)
    return Size(name, factor)


def is_number(element: Element) -> bool:
    return isinstance(element, int)


def is_known(content: Content | None) -> bool:
    """Whether every element is a number or a truth value."""
    return content is not None and all(is_number(e) for e in content.reshape(-1))


class ShapeValues:
    """The contents of the values of one region, computed in one sweep."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._contents: dict[Value, Content] = {}
        for node in graph.nodes():
            meaning = MEANINGS.get(graph.key(node))
            call = graph.call(node) if meaning is not None else None
            if meaning is not None and isinstance(call, Call) and self._is_followed(call):
                self._compute(call, meaning)

    def _is_followed(self, call: Call) -> bool:
        type_ = None if call.outputs[0] is None else self._graph.type(call.outputs[0])
        return type_ is None or type_.dtype in FOLLOWED

    def _compute(self, call: Call, meaning: Meaning) -> None:
        try:
            result = meaning(self, call)
        except Unknown:
            return
        if result.size <= LIMIT and any(e is not None for e in result.reshape(-1)):
            self._contents[call.outputs[0]] = result

    def computed(self, value: Value | None) -> Content | None:
        """What is known of a value that this region computes; None if nothing."""
        return None if value is None or isinstance(value, Literal) else self._contents.get(value)

    def content(self, value: Value | None) -> Content:
        """What is known of any value. Raises Unknown if nothing."""
        found = self.computed(value)
        if found is not None:
            return found
        data = None if value is None else self._graph.constant(value)
        if data is None or data.size > LIMIT or data.dtype not in FOLLOWED:
            raise Unknown
        return as_content(data.numpy())

    def shape(self, value: Value | None) -> tuple[Element, ...]:
        """The sizes of a value. Raises Unknown if not even their number is known."""
        type_ = None if value is None else self._graph.type(value)
        if type_ is None or type_.shape is None:
            raise Unknown
        return tuple(size_at(value, axis, size) for axis, size in enumerate(type_.shape))


class Unknown(Exception):
    """Nothing is known of a value."""


Meaning: TypeAlias = Callable[[ShapeValues, Call], Content]


def as_content(values: Any) -> Content:
    """Plain numbers as elements."""
    array = np.asarray(values)
    content = np.empty(array.shape, object)
    content.reshape(-1)[:] = array.reshape(-1).tolist()
    return content


def _elements(values: tuple[Element, ...]) -> Content:
    content = np.empty(len(values), object)
    content[:] = values
    return content


def _shape(values: ShapeValues, call: Call) -> Content:
    return _elements(values.shape(call.operands[0])[call.fields["start"] : call.fields["end"]])


def _same(values: ShapeValues, call: Call) -> Content:
    return values.content(call.operands[0])


def _cast(values: ShapeValues, call: Call) -> Content:
    content = values.content(call.operands[0])
    if call.fields["dtype"] != "int64" or any(isinstance(e, bool) for e in content.reshape(-1)):
        raise Unknown
    return content


def _gather(values: ShapeValues, call: Call) -> Content:
    content, indices = values.content(call.operands[0]), values.content(call.operands[1])
    if not is_known(indices) or any(not -len(content) <= i < len(content) for i in indices.reshape(-1)):
        raise Unknown
    return np.asarray(np.take(content, indices.astype(np.int64), axis=call.fields["axis"]), object)


def _slice(values: ShapeValues, call: Call) -> Content:
    content, fields = values.content(call.operands[0]), call.fields
    index: list[slice] = [slice(None)] * content.ndim
    for axis, start, end, step in zip(*(fields[k] for k in ("axes", "starts", "ends", "steps")), strict=True):
        index[axis] = slice(start, end, step)
    return np.asarray(content[tuple(index)], object)


def _concat(values: ShapeValues, call: Call) -> Content:
    parts = []
    for operand in call.operands:
        try:
            parts.append(values.content(operand))
        except Unknown:
            sizes = values.shape(operand)
            numbers = [s for s in sizes if isinstance(s, int)]
            if len(numbers) < len(sizes) or math.prod(numbers) > LIMIT:
                raise
            parts.append(np.full(tuple(numbers), None, object))
    return np.concatenate(parts, axis=call.fields["axis"])


def _unsqueeze(values: ShapeValues, call: Call) -> Content:
    return np.expand_dims(values.content(call.operands[0]), call.fields["axes"])


def _squeeze(values: ShapeValues, call: Call) -> Content:
    return np.squeeze(values.content(call.operands[0]), axis=call.fields["axes"])


def _reshape(values: ShapeValues, call: Call) -> Content:
    shape = call.fields["shape"]
    if shape is None:
        raise Unknown
    return values.content(call.operands[0]).reshape(shape)


def _fill(values: ShapeValues, call: Call) -> Content:
    shape = call.fields["shape"]
    if shape is None:
        known = values.content(call.operands[0])
        if not is_known(known):
            raise Unknown
        shape = tuple(int(s) for s in known)
    if call.fields["dtype"] not in FOLLOWED or any(s > LIMIT for s in shape):
        raise Unknown
    return np.full(shape, call.fields["value"], object)


def _where(values: ShapeValues, call: Call) -> Content:
    def pick(condition: Element, x: Element, y: Element) -> Element:
        return (x if condition else y) if isinstance(condition, bool) else (x if x == y else None)

    return _elementwise(values, call, pick)


def _elementwise(values: ShapeValues, call: Call, compute: Callable[..., Element]) -> Content:
    contents = np.broadcast_arrays(*(values.content(o) for o in call.operands))
    result = np.empty(contents[0].shape, object)
    flat = [compute(*elements) for elements in zip(*(c.reshape(-1) for c in contents), strict=True)]
    result.reshape(-1)[:] = flat
    return result


def _binary(on_numbers: Callable[[int, int], Element], otherwise: Callable[[Element, Element], Element]) -> Meaning:
    def compute(x: Element, y: Element) -> Element:
        if x is None or y is None or isinstance(x, bool) or isinstance(y, bool):
            return None
        if isinstance(x, int) and isinstance(y, int):
            return on_numbers(x, y)
        return otherwise(x, y)

    return lambda values, call: _elementwise(values, call, compute)


def _div(values: ShapeValues, call: Call) -> Content:
    if call.fields["rounding"] not in ("trunc", "floor"):
        raise Unknown

    def on_numbers(x: int, y: int) -> Element:
        return x // y if x >= 0 and y > 0 else None

    return _binary(on_numbers, lambda x, y: x if y == 1 else None)(values, call)


def _scaled(size: Element, number: Element) -> Element:
    """A positive multiple of a size."""
    if isinstance(size, Size) and isinstance(number, int) and number > 0:
        return Size(size.identity, size.factor * number)
    return None


def _never_equal(x: Element, y: Element) -> Element:
    """Equality where one side is a size: certain for the same size, impossible for a negative number."""
    if x == y:
        return True
    number = x if isinstance(x, int) else y
    return False if isinstance(number, int) and number < 0 else None


MEANINGS: Mapping[str, Meaning] = {
    "shape": _shape,
    "identity": _same,
    "cast": _cast,
    "gather": _gather,
    "slice": _slice,
    "concat": _concat,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "fill": _fill,
    "where": _where,
    "add": _binary(lambda x, y: x + y, lambda x, y: x if y == 0 else y if x == 0 else None),
    "sub": _binary(lambda x, y: x - y, lambda x, y: 0 if x == y else x if y == 0 else None),
    "mul": _binary(lambda x, y: x * y, lambda x, y: _scaled(x, y) or _scaled(y, x)),
    "div": _div,
    "equal": _binary(lambda x, y: x == y, _never_equal),
}
"""What is followed, by op of the vocabulary. Integers that could overflow int32 are not told apart: shapes
are small.
"""
