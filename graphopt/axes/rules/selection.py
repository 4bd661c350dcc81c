"""Ops that pick elements by number: the axis from which they pick must stay, all others pass."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.axes.analysis import Axes, Dims, rule
from graphopt.ir.graph import Call, Value

PICKED = "elements of it are picked by number"


@rule("gather")
def gather(axes: Axes, call: Call) -> Sequence[Dims]:
    x, indices = axes.dims(call.operands[0]), axes.dims(call.operands[1])
    axis = call.fields["axis"] % len(x)
    axes.freeze([x[axis]], PICKED)
    return [(*x[:axis], *indices, *x[axis + 1 :])]


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
