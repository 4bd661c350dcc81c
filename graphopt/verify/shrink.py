"""Proofs at smaller sizes: the rule itself is run again on a smaller copy of what it matched.

Channels, features and the like are made as small as they can be while they stay different from each other, so that a
rule that reads the wrong one is seen. That what holds there holds at the model's sizes rests on two things: each op
that is made smaller means the same at every size (`dimensions.py` lists them), and the rule writes the same there.
The first is an argument and not a proof, which is why such a proof is called "proof@reduced"; the second is compared.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from graphopt.ir.graph import Call, CannotEmit, Literal, Node, TensorType, Value
from graphopt.ir.scratch import ScratchGraph, ScratchNode
from graphopt.ir.weights import FLOATS, Array, Deferred, Number, TensorRef, numpy_dtype
from graphopt.rewrite.change import Change
from graphopt.verify.dimensions import Dimensions, Shape, Size, Unknown
from graphopt.verify.fragment import Fragment
from graphopt.verify.inputs import Sizes
from graphopt.verify.rerun import rerun, twin

LARGE = 10**5
"""Multiplications of one side from which smaller sizes are tried first."""
FEW = 4
"""Different numbers up to which a constant that a rule writes is compared."""


class Corner(TensorRef):
    """The first elements of another tensor along each axis. Over a field it is a tensor of its own."""

    def __init__(self, data: TensorRef, shape: tuple[int, ...]) -> None:
        self._data = data
        self.dtype = data.dtype
        self.shape = shape

    def numpy(self) -> Array:
        found: Array = self._data.numpy()[tuple(map(slice, self.shape))]
        return found

    @property
    def whole(self) -> TensorRef:
        """What it is the corner of, whose other numbers it speaks for."""
        return self._data

    @property
    def identity(self) -> object:
        return "corner", self._data.identity, self.shape


def shrunk(change: Change, fragment: Fragment, sizes: Sizes) -> tuple[Fragment, list[Array]] | None:
    """What the rule of `change` makes of a smaller copy, and inputs for it; None if it is not worth it, if something
    is not known to allow it, or if the rule then writes anything else.

    Args:
        sizes: of the inputs, from which to start.
    """
    types = [fragment.graph.type(v) for v in fragment.inputs]
    if change.rule is None or change.match is None or any(t is None or t.dtype not in FLOATS for t in types):
        return None
    try:
        dimensions = Dimensions(fragment, sizes)
        smaller = dimensions.smaller() if dimensions.work > LARGE else {}
        if not smaller:
            return None
        copier = _Copier(dimensions, smaller)
        for value in fragment.inputs:
            copier.add_input(value)
        for node in fragment.before.nodes:
            copier.add_node(node)
        for value in fragment.before.outputs:
            copier.scratch.add_output(copier.value(value))
    except (Unknown, CannotEmit):
        return None
    made = rerun(change, copier.scratch, copier.nodes[next(iter(change.match.calls))])
    full = twin(change, fragment)
    if made is None or full is None or _form(full) != _form(made):
        return None
    feeds = [zeros(made.graph.type(v)) for v in made.inputs]
    return made, feeds


class _Copier:
    def __init__(self, dimensions: Dimensions, smaller: Mapping[Size, int]) -> None:
        self.dimensions = dimensions
        self.smaller = smaller
        self.scratch = ScratchGraph()
        self.nodes: dict[Node, ScratchNode] = {}
        self._values: dict[Value, Value] = {}

    def add_input(self, value: Value) -> None:
        self._values[value] = self.scratch.add_input(self._type(value), self.dimensions.graph.name(value))

    def add_node(self, node: Node) -> None:
        call = self.dimensions.graph.call(node)
        assert isinstance(call, Call)  # or there would be no dimensions
        operands = [None if o is None else self.value(o) for o in call.operands]
        types = [None if o is None else self._type(o) for o in call.outputs]
        copy = self.nodes[node] = self.scratch.append_call(call.op, operands, call.fields, types)
        self._values.update({o: c for o, c in zip(call.outputs, copy.call.outputs, strict=True) if o is not None})

    def value(self, value: Value) -> Value:
        if isinstance(value, Literal):
            return value
        if value not in self._values:
            dimensions = self.dimensions
            data = dimensions.side.declared.get(value) or dimensions.graph.constant(value)
            assert data is not None
            shape = self._lengths(dimensions.shape(value))
            kept = data if shape == data.shape else Corner(data, shape)
            self._values[value] = self.scratch.add_constant(kept, "c")[0]
        return self._values[value]

    def _lengths(self, shape: Shape) -> tuple[int, ...]:
        return tuple(self.smaller.get(s.root(), s.length) for s in shape)

    def _type(self, value: Value) -> TensorType | None:
        known = self.dimensions.graph.type(value)
        return None if known is None else TensorType(known.dtype, self._lengths(self.dimensions.shape(value)))


def zeros(type_: TensorType | None) -> Array:
    """An array of a static type that takes no memory."""
    assert type_ is not None and type_.shape is not None
    shape = tuple(int(n) for n in type_.shape if isinstance(n, int))
    return np.broadcast_to(np.zeros((), numpy_dtype(type_.dtype)), shape)


# ---- what a rule wrote, whatever the sizes ------------------------------------------------------------------------

SIZED = frozenset({"reshape", "expand", "split", "fill"})
"""Ops whose fields are sizes."""


def _form(fragment: Fragment) -> list[object]:
    """What the side after a change computes, without any size: ops, their fields, what they read, the numbers that the
    rule chose, and how new weights follow from those of the side before."""
    graph = fragment.graph
    names: dict[object, object] = {v: ("input", i) for i, v in enumerate(graph.inputs())}
    weights: dict[object, object] = {}
    for node in fragment.before.nodes:
        for operand in graph.raw_call(node).operands:
            data = None if operand is None or isinstance(operand, Literal) else graph.constant(operand)
            if data is not None:
                weights.setdefault(data.identity, ("weight", len(weights)))

    def expression(data: TensorRef) -> object:
        if data.identity in weights:
            return weights[data.identity]
        if isinstance(data, Deferred):
            return _fields(data.op, data.fields), [expression(o) for o in data.operands]
        return data.dtype, data.ndim, _numbers(data)

    def name(value: Value | None) -> object:
        if value is None or value in names:
            return names.get(value)
        if isinstance(value, Literal):
            return "literal", repr(value)
        data = graph.constant(value)
        return "outer" if data is None else expression(data)

    found: list[object] = []
    for i, node in enumerate(fragment.after.nodes):
        call = graph.raw_call(node)
        found.append((_fields(call.op, call.fields), [name(o) for o in call.operands]))
        names.update({o: (i, k) for k, o in enumerate(call.outputs) if o is not None})
    return [*found, [name(o) for o in fragment.after.outputs]]


def _fields(op: str, fields: Mapping[str, object]) -> object:
    return op, sorted((k, "" if op in SIZED else repr(v)) for k, v in fields.items())


def _numbers(data: TensorRef) -> object:
    """The numbers of a constant that has few; of others no two are the same."""
    if isinstance(data, Number):
        return repr(data.value)
    different = np.unique(data.numpy())
    return different.tolist() if different.size <= FEW else object()
