"""The free axes of a graph: those that can be shortened, with everything that goes with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from graphopt.axes.analysis import Axes, Dims
from graphopt.axes.terms import Axis
from graphopt.axes.zeros import Silence
from graphopt.ir.graph import Call, Graph, Literal, Node, Value


@dataclass(frozen=True)
class Member:
    """A dimension of a stored tensor in which a free axis occurs."""

    weight: str
    """The tensor's name."""
    dim: int
    size: int
    """The size of the whole dimension, of which the axis may be a factor or a part."""
    value: Value = field(repr=False, compare=False)


@dataclass(frozen=True)
class FreeAxis:
    """An axis of which indices can be removed without anything else being wrong: channels, heads, the width of a
    head, groups, hidden units, experts."""

    name: str
    """The first stored tensor that has it, the dimension, and where in the dimension: "attn.to_q.weight:0.1"."""
    size: int
    members: tuple[Member, ...]
    coupled: tuple[str, ...]
    """Names of the nodes at which indices depend on each other (statistics of a norm, a softmax). Without any, the
    axis is exact: removing an index is the same as setting its slices of all members to zero."""
    leaf: Axis = field(repr=False, compare=False)
    nodes: tuple[Node, ...] = field(repr=False, compare=False)
    """The nodes that it touches, in topological order."""
    coupling: tuple[Node, ...] = field(repr=False, compare=False)
    """Those named in `coupled`."""

    @property
    def exact(self) -> bool:
        return not self.coupled


def free_axes(axes: Axes) -> list[FreeAxis]:
    """The free axes in the order in which the graph first reads a tensor that has them."""
    members = _members(axes)
    touched = _touched(axes, set(members))
    found = []
    for leaf, (name, own) in members.items():
        nodes = touched[leaf]
        if not _is_read(axes, nodes):
            continue
        coupling = Silence(axes, leaf, nodes).coupling
        names = tuple(axes.graph.node_name(n) for n in coupling)
        assert isinstance(leaf.size, int)
        found.append(FreeAxis(name, leaf.size, tuple(own), names, leaf, tuple(nodes), tuple(coupling)))
    return found


def _members(axes: Axes) -> dict[Axis, tuple[str, list[Member]]]:
    """Free leaves with their names and the tensors that have them."""
    found: dict[Axis, tuple[str, list[Member]]] = {}
    for value in read_tensors(axes):
        name = axes.graph.name(value)
        for dim, term in enumerate(axes.dims(value)):
            size = axes.space.size(term)
            for path, leaf in axes.space.paths(term):
                if leaf.frozen is not None or not isinstance(leaf.size, int) or leaf.size < 2:
                    continue
                assert isinstance(size, int)
                place = ".".join(map(str, (dim, *path)))
                _, own = found.setdefault(leaf, (f"{name}:{place}", []))
                member = Member(name, dim, size, value)
                if member not in own:
                    own.append(member)
    return found


MOVES = frozenset({"reshape", "slice", "split", "transpose", "unsqueeze", "squeeze", "expand", "concat"})


def _is_read(axes: Axes, nodes: Sequence[Node]) -> bool:
    """Whether any of the nodes that a leaf touches computes with it, instead of moving it about and cutting it off."""
    return any(axes.graph.key(node) not in MOVES and node not in axes.moves for node in nodes)


def is_needed(axes: Axes, axis: FreeAxis) -> bool:
    """Whether a result of the graph may depend on the axis: something that a result depends on has it and gives
    something that has it not. Else it is only ever cut off, as half of the moments of an autoencoder are."""
    live = _live(axes)
    return any(node in live and _takes_together(axes, axis.leaf, node) for node in axes.current(axis.nodes))


def _live(axes: Axes) -> set[Node]:
    """The nodes on which a result depends, and those that do more than compute."""
    graph = axes.graph
    found: set[Node] = set()
    for node in reversed(axes.nodes):
        results = [value for value in graph.results(node) if value is not None]
        used = any(graph.is_output(v) or any(user in found for user in graph.users(v)) for v in results)
        if used or not graph.is_pure(node) or graph.subgraphs(node):
            found.add(node)
    return found


def _takes_together(axes: Axes, leaf: Axis, node: Node) -> bool:
    """Whether what a node gives at one index, or without the axis, is made of others."""
    call = axes.graph.call(node)
    assert isinstance(call, Call), "a node that cannot be read freezes what it touches"

    def has(value: Value | None) -> bool:
        dims = None if value is None else axes.dims_or_none(value, node)
        return any(leaf in axes.space.leaves(term) for term in dims or ())

    terms = [*(sum_.term for sum_ in axes.contractions.get(node, ())), *axes.couplings.get(node, ())]
    if any(leaf in axes.space.leaves(term) for term in terms):
        return True
    given = any(has(o) for o in call.operands)
    moves = call.op in MOVES or node in axes.moves
    return not moves and given and not all(has(o) for o in call.outputs if o is not None)


def read_tensors(axes: Axes) -> Sequence[Value]:
    """The stored tensors that the graph reads, in the order in which it first does."""
    found: dict[Value, None] = {}
    for node in axes.nodes:
        call = axes.graph.call(node)
        for value in call.operands if isinstance(call, Call) else ():
            stored = value is not None and not isinstance(value, Literal) and axes.graph.constant(value) is not None
            if stored and axes.dims_or_none(value) is not None and not axes.is_copied(value):
                found[value] = None
    return list(found)


def _touched(axes: Axes, leaves: set[Axis]) -> dict[Axis, list[Node]]:
    """The nodes that read or compute something with each leaf."""
    of_dims: dict[Dims, frozenset[Axis]] = {}

    def has(dims: Dims) -> frozenset[Axis]:
        if dims not in of_dims:
            of_dims[dims] = frozenset(leaf for term in dims for leaf in axes.space.leaves(term)) & leaves
        return of_dims[dims]

    found: defaultdict[Axis, list[Node]] = defaultdict(list)
    for node in axes.nodes:
        call = axes.graph.call(node)
        values = (*call.operands, *call.outputs) if isinstance(call, Call) else ()
        touching = {leaf for v in values if v is not None for leaf in has(axes.dims_or_none(v, node) or ())}
        for leaf in sorted(touching, key=lambda axis: axis.number):
            found[leaf].append(node)
    return found


def analyse(graph: Graph) -> list[FreeAxis]:
    """The free axes of a region."""
    return free_axes(Axes(graph))
