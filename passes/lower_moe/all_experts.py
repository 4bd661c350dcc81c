"""Rows that pick weights, with all experts computed for all tokens, where that is as fast as moving rows:

    y_e = f(x; W_e) of all tokens x;  what token t gets from its choice j is y[t, i[t, j]]

Nothing is weighted by zero, so that experts that were not picked may be infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ir.graph import Call, Graph, Literal, Node, TensorType, Value
from graphopt.passes.lower_moe.by_expert import ExpertWriter
from graphopt.passes.lower_moe.experts import Body
from graphopt.passes.lower_moe.picked import NotPicked, Picked
from graphopt.rewrite.journal import Journal


@dataclass(frozen=True)
class Repeated:
    """Rows that are those of `tokens`, each `times` times; `calls` say so, in order."""

    tokens: Value
    times: int
    calls: tuple[Call, ...]


def repeated(graph: Graph, rows: Value) -> Repeated:
    """How torch's exporter writes rows that are repeated: a new axis 1, expanded, joined with axis 0. Raises
    NotPicked."""
    calls: list[Call] = []
    value: Value | None = rows
    for op in ("reshape", "expand", "unsqueeze"):
        node = None if value is None or isinstance(value, Literal) else graph.producer(value)
        call = None if node is None else graph.call(node)
        if not isinstance(call, Call) or call.op != op:
            raise NotPicked(f"{graph.name(rows)} are not tokens, each as often as it has experts")
        calls.insert(0, call)
        value = call.operands[0]
    before, after, flat = (graph.type(v) for v in (value, calls[1].outputs[0], rows))
    shapes = [None if t is None else t.shape for t in (before, after, flat)]
    if value is None or None in shapes:
        raise NotPicked(f"the sizes of {graph.name(rows)} are not known")
    tokens, times, *inner = shapes[1] or ()
    fits = calls[0].fields["axes"] == (1,) and shapes[0] == (tokens, *inner) and (shapes[2] or ())[1:] == tuple(inner)
    if not fits or not isinstance(times, int) or not all(isinstance(d, int) for d in inner):
        raise NotPicked(f"{graph.name(rows)} are not tokens, each as often as it has experts")
    return Repeated(value, times, tuple(calls))


def times_of(picked: Picked) -> int:
    """How often each token stands in the rows of `picked`; 1 if that is not known."""
    try:
        (times,) = {repeated(picked.graph, value).times for value in picked.inputs}
    except (NotPicked, ValueError):
        return 1
    return times


def nodes_of(picked: Picked) -> list[Node]:
    """What is replaced, in order."""
    graph = picked.graph
    chosen = {*picked.nodes, *(c.node for v in picked.inputs for c in repeated(graph, v).calls)}
    return [n for n in graph.nodes() if n in chosen]


def write_all_experts(picked: Picked, journal: Journal) -> None:
    """Replace the outputs of `picked` by what its experts compute."""
    _Writer(picked, journal).write()
    journal.doom(nodes_of(picked))


class _Writer(ExpertWriter):
    def __init__(self, picked: Picked, journal: Journal) -> None:
        super().__init__(picked.graph, journal, picked.anchor, picked.experts)
        self.picked = picked
        self.times = times_of(picked)

    def write(self) -> None:
        picked, graph = self.picked, self.graph
        given = {value: repeated(graph, value).tokens for value in picked.inputs}
        made = [Body(self, picked.stacks, picked.calls, expert, given).write() for expert in range(self.experts)]
        column = TensorType("int64", (None, self.times, 1))
        ids = self.insert("reshape", [self.in_range(picked.ids)], {"shape": (-1, self.times, 1)}, column)
        for output in picked.outputs:
            type_ = graph.type(output)
            assert type_ is not None and type_.shape is not None
            inner = type_.shape[1:]
            one, many = (TensorType(type_.dtype, (None, n, *inner)) for n in (1, self.experts))
            pieces = [self.insert("unsqueeze", [values[output]], {"axes": (1,)}, one) for values in made]
            joined = self.insert("concat", pieces, {"axis": 1}, many)
            chosen = TensorType(type_.dtype, (None, self.times, *inner))
            rows = self.insert("gather_nd", [joined, ids], {"batch_dims": 1}, chosen)
            self.journal.replace(output, self.insert("reshape", [rows], {"shape": (-1, *inner)}, type_))
