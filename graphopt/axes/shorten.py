"""Removing indices of axes: stored tensors sliced, literals that are sizes counted anew, types brought up to date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from graphopt.axes.analysis import Axes, Kept, Shortened
from graphopt.axes.terms import Axis, Mask
from graphopt.ir.graph import Call, CannotEmit, Literal, Node, TensorType, Value
from graphopt.ir.weights import Array, ArrayRef, SlicedRef, TensorRef
from graphopt.rewrite.journal import Journal


def shorten(
    axes: Axes, keep: Mapping[Axis, Mask], values: Sequence[Value], nodes: Sequence[Node], journal: Journal
) -> Shortened:
    """Let only the indices in `keep` stay.

    Args:
        axes: of the graph as it is.
        keep: which indices of some free leaves stay, at least one each.
        values: the stored tensors that have these leaves.
        nodes: the nodes that these leaves touch, in topological order.
        journal: of the same graph.

    Returns:
        What was written anew, for `Axes.follow` once the journal is committed.

    Raises:
        CannotEmit: the storage cannot say a node with its new literals.
    """
    return _Shortening(axes, Kept(axes.space, keep), journal, Shortened(keep)).run(values, nodes)


class _Shortening:
    def __init__(self, axes: Axes, kept: Kept, journal: Journal, edit: Shortened) -> None:
        self._axes = axes
        self._kept = kept
        self._journal = journal
        self._edit = edit
        self._current: dict[Value, Value] = {}
        """What replaced a result whose node was written anew."""

    def run(self, values: Sequence[Value], nodes: Sequence[Node]) -> Shortened:
        graph = self._axes.graph
        calls = [graph.call(node) for node in nodes]
        stored: dict[object, TensorRef] = {}
        for value in values:
            self._store(value, stored)
        for node, call in zip(nodes, calls, strict=True):
            if isinstance(call, Call):
                self._settle(node, call)
        return self._edit

    def _store(self, value: Value, stored: dict[object, TensorRef]) -> None:
        """Slice a tensor; what is stored once under several names stays stored once."""
        graph = self._axes.graph
        data = graph.constant(value)
        assert data is not None
        if data.identity in stored:
            self._journal.store(value, stored[data.identity])
            return
        self._journal.store(value, sliced(self._axes, self._kept, value, data))
        now = graph.constant(value)
        assert now is not None
        stored[data.identity] = now

    def _settle(self, node: Node, call: Call) -> None:
        """Bring a node up to date: its types alone if it says the same, else by writing it anew."""
        graph, axes = self._axes.graph, self._axes
        types = [None if o is None else self._type(o) for o in call.outputs]
        fields, constants = literals(axes, self._kept, call)
        fills = _filled(axes, self._kept, call)
        now = graph.call(node)
        if not constants and not fills and isinstance(now, Call) and dict(now.fields) == fields:
            with suppress(CannotEmit):  # a storage may have literals that the vocabulary does not need
                self._journal.retype(node, types)
                return
        self._rewrite(call, fields, constants, fills, types)

    def _rewrite(
        self,
        call: Call,
        fields: Mapping[str, Any],
        constants: Mapping[int, Array],
        fills: Mapping[int, tuple[int, ...]],
        types: Sequence[TensorType | None],
    ) -> None:
        journal, edit = self._journal, self._edit
        operands = [o if isinstance(o, Literal) else self._current.get(o, o) for o in call.operands]
        for i, shape in fills.items():
            operands[i] = self._fill(call, call.operands[i], shape)
        for i, array in constants.items():
            old = operands[i]
            operands[i] = journal.add_constant(ArrayRef(array), self._axes.graph.name(old))
            if self._axes.is_copied(old):
                edit.copies[operands[i]] = call.node, old
        written = len(journal.inserted)
        results = journal.insert(call.op, operands, fields, before=call.node, types=types)
        if len(journal.inserted) != written + 1:
            raise CannotEmit(f"{call.op} takes several nodes")
        edit.nodes[call.node] = journal.inserted[-1]
        for old, new in zip(call.outputs, results, strict=True):
            if old is not None:
                journal.replace(old, new, resized=True)
                self._current[old] = new
                edit.values.append((old, new))
        journal.doom([call.node])

    def _fill(self, call: Call, old: Value | None, shape: tuple[int, ...]) -> Value:
        """What `call` reads instead of `old`, which others read too."""
        made = self._axes.copied_fill(old)
        assert old is not None and made is not None
        written = len(self._journal.inserted)
        type_ = TensorType(made.fields["dtype"], shape)
        (value,) = self._journal.insert(
            "fill", made.operands, {**made.fields, "shape": shape}, before=call.node, types=[type_]
        )
        self._edit.fills[call.node] += self._journal.inserted[written:]
        self._edit.copies[value] = call.node, old
        self._journal.doom([made.node])
        return value

    def _type(self, value: Value) -> TensorType | None:
        type_, dims = self._axes.graph.type(value), self._axes.dims_or_none(value)
        if type_ is None or type_.shape is None or dims is None:
            return type_
        pairs = zip(type_.shape, dims, strict=True)
        return TensorType(type_.dtype, tuple(self._kept.count(t) if self._kept.touches(t) else n for n, t in pairs))


def sliced(axes: Axes, kept: Kept, value: Value, data: TensorRef, node: Node | None = None) -> TensorRef:
    """What stays of a stored tensor, as `node` reads it."""
    indices = [np.flatnonzero(kept.mask(t)) if kept.touches(t) else None for t in axes.dims(value, node)]
    return SlicedRef(data, indices)


def literals(axes: Axes, kept: Kept, call: Call) -> tuple[dict[str, Any], dict[int, Array]]:
    """The fields of a call with its literals counted anew, and the constant operands that must be others: a shape,
    numbers by which elements are picked, and what the call is given a copy of."""
    fields = dict(call.fields) | {k: count(kept) for k, count in axes.literals.get(call.node, {}).items()}
    constants = {
        i: sliced(axes, kept, o, data, call.node).numpy()
        for i, o in enumerate(call.operands)
        if o is not None and axes.is_copied(o) and (data := axes.graph.constant(o)) is not None
        if any(kept.touches(t) for t in axes.dims(o, call.node))
    }
    for i, recount in axes.constants.get(call.node, {}).items():
        operand = call.operands[i]
        data = None if operand is None else axes.graph.constant(operand)
        assert data is not None
        old = data.numpy()
        new = recount(kept, old)
        if not np.array_equal(old, new):
            constants[i] = new
    return fields, constants


def _filled(axes: Axes, kept: Kept, call: Call) -> dict[int, tuple[int, ...]]:
    """Operands that others read too and are made by filling, where the call needs others: how large they must be."""
    found = {}
    for i, operand in enumerate(call.operands):
        if axes.copied_fill(operand) is None:
            continue
        dims = axes.dims(operand, call.node)
        if any(kept.touches(t) for t in dims):
            found[i] = tuple(kept.count(t) for t in dims)
    return found
