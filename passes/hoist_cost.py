"""What to keep of the values that are known before the loop: the exact optimum of a cost model, as a minimum cut.

Cost of one request in seconds, by what stays in the step and what is kept for it:

    a node left in the step      rows * (2 µs + FLOPs / 100 GFLOP/s + bytes read and written / 10 GB/s);
                                 of a view (reshape, expand, slice ...) only the 2 µs
    a weight left in the step    bytes * price, once, however many nodes read it
    a value kept                 bytes * price, once, however many nodes read it (times the rows if there is one a row)

What runs before the loop counts nothing: a prologue runs once, and the rows of a table do not wait for each other. So
what the model weighs is the loop itself, in time and in memory.

Choosing what leaves is project selection (Picard 1976, Maximal closure of a graph, Management Science 22): every node
is on the side of the step or not; a weight is on that side as soon as one of its readers is; a value is kept if a
reader is on it and its producer is not. So the optimum is a minimum cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import networkx as nx

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Graph, Literal, Node, Value
from graphopt.pipeline.flops import node_flops
from graphopt.program.stages import reads, type_bytes, weights_read

LAUNCH = 2e-6
"""Seconds that any node costs."""
FLOP_RATE = 100e9
"""FLOPs per second."""
MEMORY_RATE = 10e9
"""Bytes per second."""
VIEWS = frozenset({"reshape", "transpose", "expand", "unsqueeze", "squeeze", "slice", "split", "identity"})
"""Ops that move nothing in a runtime with views."""
_UNIT = 1e-15
"""Seconds per unit of capacity. Whole numbers, so that the cut is exact."""
_STEP, _OUT = -1, -2
_Index = int


@dataclass(frozen=True)
class Prices:
    """Seconds of one request."""

    rows: int
    """How often the step runs."""
    weight_byte: float
    """For a byte of a weight that the step needs."""
    kept_byte: float
    """For a byte of a value that is kept for it."""


@dataclass
class _Network:
    """Directed edges with capacities; the source is the step, the sink is outside of it."""

    graph: Any = field(default_factory=nx.DiGraph)
    _count: int = 0

    def fresh(self) -> _Index:
        self._count += 1
        return self._count

    def pay(self, here: _Index, there: _Index, seconds: float) -> None:
        """`seconds` are due if `here` is on the side of the step and `there` is not."""
        before = self.graph.get_edge_data(here, there, {"capacity": 0})["capacity"]
        self.graph.add_edge(here, there, capacity=before + max(1, round(seconds / _UNIT)))

    def follow(self, here: _Index, there: _Index) -> None:
        """If `here` is on the side of the step, `there` is too."""
        self.graph.add_edge(here, there)

    def on_step_side(self) -> set[_Index]:
        """Those on the side of the step in a cheapest cut. Parts that only meet in source and sink are cut alone."""
        inner = self.graph.subgraph([n for n in self.graph if n > 0])
        found: set[_Index] = set()
        for part in nx.weakly_connected_components(inner):
            piece = self.graph.subgraph([*sorted(part), _STEP, _OUT])
            if _STEP in piece and _OUT in piece:
                found |= nx.minimum_cut(piece, _STEP, _OUT)[1][0] - {_STEP}
        return found


def keep(graph: Graph, movable: Iterable[Node], outputs: Callable[[Node], bool], prices: Prices) -> list[Value]:
    """The values to keep, in the order of the graph: the cheapest choice.

    Args:
        graph: the step.
        movable: pure nodes that depend on nothing but each other and on inputs that are known outside.
        outputs: whether the results of a movable node may be kept; else it leaves only if no node left reads them.
        prices: what is weighed.

    Raises:
        UnsupportedError: a size is not known, so that nothing can be weighed.
    """

    def price(value: Value, node: Node) -> float:
        return bytes_of(graph, value, node) * prices.kept_byte if outputs(node) else float("inf")

    return cheapest(graph, movable, lambda n: prices.rows * seconds(graph, n), price, prices.weight_byte)


def cheapest(
    graph: Graph,
    movable: Iterable[Node],
    cost: Callable[[Node], float],
    price: Callable[[Value, Node], float],
    weight_byte: float = 0.0,
) -> list[Value]:
    """The results of `movable` nodes at which the graph is best cut, in its order: those to keep for what is left.

    Args:
        graph: what is cut.
        movable: as for `keep`.
        cost: seconds of a movable node if it is left.
        price: seconds of a result that is kept, of the node that computes it; inf if it may not be.
        weight_byte: seconds of a byte of a weight that what is left reads.
    """
    network = _Network()
    places = {node: network.fresh() for node in movable}
    values = {v: network.fresh() for node in places for v in graph.results(node) if v is not None}
    weights: dict[object, _Index] = {}
    fixed = {data.identity for n in graph.nodes() if n not in places for data in weights_read(graph, n)}
    for node, place in places.items():
        network.pay(place, _OUT, cost(node))
        for value in graph.results(node):
            if value is not None:
                _pay_or_forbid(network, values[value], place, price(value, node))
        for data in weights_read(graph, node):
            if data.identity not in fixed:
                if data.identity not in weights:
                    weights[data.identity] = network.fresh()
                    network.pay(weights[data.identity], _OUT, data.nbytes * weight_byte)
                network.follow(place, weights[data.identity])
    for reader, value in _reads(graph, values):
        network.follow(places.get(reader, _STEP), values[value])
    for value in graph.outputs():
        if value in values:
            network.follow(_STEP, values[value])
    stays = network.on_step_side()
    return [
        value
        for node, place in places.items()
        for value in graph.results(node)
        if place not in stays and value is not None and values[value] in stays
    ]


def _pay_or_forbid(network: _Network, here: _Index, there: _Index, price: float) -> None:
    if price == float("inf"):
        network.follow(here, there)
    else:
        network.pay(here, there, price)


def _reads(graph: Graph, values: dict[Value, _Index]) -> Iterator[tuple[Node, Value]]:
    for node in graph.nodes():
        for value in reads(graph, node, values):
            if value in values:
                yield node, value


def seconds(graph: Graph, node: Node) -> float:
    """The cost of one run of `node`. FLOPs that cannot be told count as none.

    Raises:
        UnsupportedError: the size of something that it reads or writes is not known.
    """
    if graph.key(node) in VIEWS:
        return LAUNCH
    operands = [o for o in graph.raw_call(node).operands if o is not None and not isinstance(o, Literal)]
    tensors = [o for o in operands if graph.type(o) is not None or graph.producer(o) is not None]
    moved = sum(bytes_of(graph, v, node) for v in [*tensors, *graph.results(node)] if v is not None)
    return LAUNCH + (node_flops(graph, node) or 0) / FLOP_RATE + moved / MEMORY_RATE


def bytes_of(graph: Graph, value: Value, node: Node) -> int:
    """The size of `value`, which `node` reads or writes.

    Raises:
        UnsupportedError: it is not known.
    """
    size = type_bytes(graph.type(value))
    if size is None:
        raise UnsupportedError(
            f"{graph.name(value)} at node {graph.node_name(node)} is {graph.type(value) or 'of unknown type'}, and "
            "what to keep is weighed in bytes: give static sizes"
        )
    return size
