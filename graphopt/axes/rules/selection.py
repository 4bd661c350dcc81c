"""Ops that pick elements by number: the axis from which they pick must stay, all others pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.axes.analysis import Axes, Dims, Kept, NoRule, rule
from graphopt.axes.picks import PICKED, pick
from graphopt.axes.terms import Term
from graphopt.ir.graph import Call, Literal, Value
from graphopt.ir.weights import Array


@rule("gather")
def gather(axes: Axes, call: Call) -> Sequence[Dims]:
    """By numbers that are known, what is picked may have the axes of what it is picked from."""
    x, indices = axes.dims(call.operands[0]), axes.dims(call.operands[1])
    axis = call.fields["axis"] % len(x)
    known = _picked_by_number(axes, call, x[axis])
    if known is None:
        axes.freeze([x[axis]], PICKED)
    return [(*x[:axis], *(indices if known is None else known), *x[axis + 1 :])]


def _picked_by_number(axes: Axes, call: Call, term: Term) -> Dims | None:
    """The dimensions of what constant indices pick; the indices follow what is kept."""
    value, size = call.operands[1], axes.space.size(term)
    data = None if value is None or isinstance(value, Literal) else axes.graph.constant(value)
    if data is None or not isinstance(size, int) or not data.size:
        return None
    picked = pick(axes.space, term, data.numpy().reshape(-1) % size)
    if picked is None:
        return None
    dims = axes.fresh(data.shape)
    axes.unify(tuple(axis for own in dims for axis in own), picked)
    axes.moves.add(call.node)
    axes.constants[call.node][1] = lambda kept, indices: _renumbered(kept, indices, term, dims)
    return dims


def _renumbered(kept: Kept, indices: Array, term: Term, dims: Dims) -> Array:
    """The numbers that what stays has among what stays."""
    if not any(kept.touches(own) for own in (term, *dims)):
        return indices
    mask = kept.mask(term)
    stay = indices[np.ix_(*(np.flatnonzero(kept.mask(own)) for own in dims))] % mask.size
    renumbered: Array = np.cumsum(mask) - 1
    return renumbered[stay].astype(indices.dtype, copy=False)


@rule("gather_nd")
def gather_nd(axes: Axes, call: Call) -> Sequence[Dims]:
    """The last dimension of the indices are places in as many dimensions, after those that go together."""
    x, (*outer, row) = axes.dims(call.operands[0]), axes.dims(call.operands[1])
    together = call.fields["batch_dims"]
    picked = together + _rows(axes, row)
    for a, b in zip(x[:together], outer[:together], strict=True):
        axes.unify(a, b)
    axes.freeze([*x[together:picked], row], PICKED)
    return [(*outer, *x[picked:])]


def _rows(axes: Axes, row: Term) -> int:
    size = axes.space.size(row)
    if not isinstance(size, int):
        raise NoRule("it is not known how many dimensions are picked from")
    return size


@rule("scatter_nd")
def scatter_nd(axes: Axes, call: Call) -> Sequence[Dims]:
    x, (*outer, row), updates = (axes.dims(o) for o in call.operands)
    picked = _rows(axes, row)
    axes.freeze([*x[:picked], row], PICKED)
    for a, b in zip((*outer, *x[picked:]), updates, strict=True):
        axes.unify(a, b)
    return [x]


@rule("gather_elements")
def gather_elements(axes: Axes, call: Call) -> Sequence[Dims]:
    x, indices = axes.dims(call.operands[0]), axes.dims(call.operands[1])
    _along(axes, call, x, indices)
    return [indices]


@rule("scatter_elements")
def scatter_elements(axes: Axes, call: Call) -> Sequence[Dims]:
    x, indices, updates = (axes.dims(o) for o in call.operands)
    for a, b in zip(indices, updates, strict=True):
        axes.unify(a, b)
    _along(axes, call, x, indices)
    return [x]


def _along(axes: Axes, call: Call, x: Dims, indices: Dims) -> None:
    """Places are picked along one axis; others go together, from the first on if the indices are fewer."""
    axis = call.fields["axis"] % len(x)
    for i, (a, b) in enumerate(zip(x, indices, strict=True)):
        if i == axis:
            axes.freeze([a], PICKED)
        elif axes.space.size(a) == axes.space.size(b) is not None:
            axes.unify(a, b)
        else:
            axes.freeze([a, b], PICKED)


@rule("one_hot")
def one_hot(axes: Axes, call: Call) -> Sequence[Dims]:
    indices = axes.dims(call.operands[0])
    axis = call.fields["axis"] % (len(indices) + 1)
    depth = axes.space.term(axes.result(call)[axis], PICKED)
    axes.freeze(axes.dims(call.operands[2]), "it is one number and another")
    return [(*indices[:axis], depth, *indices[axis:])]


@rule("topk")
def topk(axes: Axes, call: Call) -> Sequence[Dims]:
    x, sizes = axes.dims(call.operands[0]), axes.result(call)
    axis = call.fields["axis"] % len(x)
    axes.freeze([x[axis]], PICKED)
    found = (*x[:axis], axes.space.term(sizes[axis], PICKED), *x[axis + 1 :])
    return [found, found]


@rule("arg_max", "arg_min")
def arg_max(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    axis = call.fields["axis"] % len(x)
    axes.freeze([x[axis]], "its elements are numbered")
    return [(*x[:axis], *([()] if call.fields["keepdims"] else []), *x[axis + 1 :])]


@rule("cumsum")
def cumsum(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    axes.freeze([x[call.fields["axis"] % len(x)]], "it is summed up to each place")
    return [x]


@rule("trilu")
def trilu(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    axes.freeze(x[-2:], "its elements are numbered")
    return [x]


@rule("shape")
def shape(axes: Axes, call: Call) -> Sequence[Dims]:
    """Sizes that the graph computes with must stay. Where only some are picked, only those."""
    x = axes.dims(call.operands[0])
    places = range(len(x))[call.fields["start"] : call.fields["end"]]
    read = _places_read(axes, call.outputs[0], len(places))
    axes.freeze([x[places[i]] for i in read], "the graph computes with its size")
    return [axes.fresh([len(places)], "it numbers dimensions")]


def _places_read(axes: Axes, value: Value | None, size: int) -> list[int]:
    """The elements of a list of sizes that anything reads."""
    if value is None:
        return []
    graph = axes.graph
    found: set[int] = set()
    everything = list(range(size))
    if graph.is_output(value):
        return everything
    for user in graph.users(value):
        call = graph.call(user)
        op = call.op if isinstance(call, Call) else ""
        if isinstance(call, Call) and op == "gather" and call.operands[0] == value:
            index = None if call.operands[1] is None else graph.constant(call.operands[1])
            if index is None:
                return everything
            found.update(int(i) % size for i in index.numpy().reshape(-1))
        elif isinstance(call, Call) and op == "slice":
            fields = call.fields
            found.update(everything[fields["starts"][0] : fields["ends"][0] : fields["steps"][0]])
        else:
            return everything
    return sorted(found)


@rule("range")
def range_(axes: Axes, call: Call) -> Sequence[Dims]:
    return [axes.fresh(axes.result(call), "it counts")]
