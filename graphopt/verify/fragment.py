"""Cutting a change out of its graph: the nodes of both sides, the values they share, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graphopt.ir.graph import Graph, Literal, Node, Value
from graphopt.ir.weights import TensorRef
from graphopt.rewrite.change import Change


@dataclass(frozen=True)
class Side:
    """One side of a change: `nodes` compute `outputs` from the fragment's inputs."""

    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    declared: Mapping[Value, TensorRef] = field(default_factory=dict)
    """What some of the weights are replaced by."""


@dataclass(frozen=True)
class Fragment:
    """Both sides over common inputs. An output that is itself an input or a constant is passed through."""

    graph: Graph
    inputs: tuple[Value, ...]
    before: Side
    after: Side


def cut(change: Change) -> Fragment:
    """The fragment of an undecided change (both sides are in the graph until it is decided)."""
    graph = change.graph
    old = tuple(o for o, _ in change.journal.replaced)
    new = tuple(n for _, n in change.journal.replaced)
    before = Side(change.nodes, old, change.declared)
    after = Side(_with_context(graph, change.journal.inserted, new, change.nodes), new)
    inputs = dict.fromkeys(_boundary(graph, before)) | dict.fromkeys(_boundary(graph, after))
    return Fragment(graph, tuple(inputs), before, after)


def _with_context(
    graph: Graph, inserted: Sequence[Node], outputs: Sequence[Value], nodes: Sequence[Node]
) -> tuple[Node, ...]:
    """The inserted nodes, and before them what they go on taking from before the change: those of the replaced nodes
    that they or the outputs read, and the producers of outputs that were in the graph already (merging two equal nodes
    replaces one's output by the other's: both must be computed to be compared)."""
    read = dict.fromkeys([*(value for node in inserted for value in reads(graph, node)), *outputs])
    kept: list[Node] = []
    for node in reversed(nodes):
        if any(output in read for output in graph.results(node) if output is not None):
            kept.append(node)
            read |= dict.fromkeys(reads(graph, node))
    shared = _boundary(graph, Side(tuple(nodes), ()))
    known = {*nodes, *inserted}
    others: dict[Node, None] = {}
    for value in outputs:
        producer = None if value in shared or graph.constant(value) is not None else graph.producer(value)
        if producer is not None and producer not in known:
            others[producer] = None
    return (*others, *reversed(kept), *inserted)


def _boundary(graph: Graph, side: Side) -> dict[Value, None]:
    """What a side reads but does not compute, constants left out; in order of first use."""
    inside = set(side.nodes)
    found: dict[Value, None] = {}
    for node in side.nodes:
        for value in reads(graph, node):
            if graph.producer(value) not in inside and graph.constant(value) is None:
                found[value] = None
    for value in side.outputs:
        if graph.producer(value) not in inside and graph.constant(value) is None:
            found[value] = None
    return found


def reads(graph: Graph, node: Node) -> list[Value]:
    """The values that `node` reads, those that its control-flow bodies capture included."""
    values = [o for o in graph.raw_call(node).operands if o is not None and not isinstance(o, Literal)]
    for body in graph.subgraphs(node):
        values += captured(body)
    return values


def captured(body: Graph) -> list[Value]:
    """Values of outer regions that `body` reads, nested bodies included."""
    own = set(body.inputs())
    found: dict[Value, None] = {}
    for node in body.nodes():
        for value in reads(body, node):
            if value not in own and body.constant(value) is None:
                found[value] = None
        own.update(o for o in body.results(node) if o is not None)
    for value in body.outputs():
        if value not in own and body.constant(value) is None:
            found[value] = None
    return list(found)
