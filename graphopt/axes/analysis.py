"""The axes of a graph: what each dimension of each value is made of, found by a rule for every op.

An op without a rule, a node that cannot be read and a size that is not known freeze what they touch. So nothing is
ever said to be independent that is not, whatever a model is made of.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from graphopt.axes.terms import DYNAMIC, Axis, Mask, Space, Term
from graphopt.ir.graph import INVALID, Call, Dim, Graph, Literal, Node, Value
from graphopt.ir.weights import FLOATS, Array, TensorRef
from graphopt.verify.fragment import reads

Dims: TypeAlias = tuple[Term, ...]
"""One term for each dimension of a value."""


class Kept:
    """Which indices stay: what literals are computed anew from."""

    def __init__(self, space: Space, keep: Mapping[Axis, Mask]) -> None:
        self._space = space
        self._keep = keep
        self._affected = frozenset(keep)

    def touches(self, term: Term) -> bool:
        """Whether any index of `term` could go."""
        return not self._affected.isdisjoint(self._space.leaves(term))

    def recount(self, number: int, term: Term) -> int:
        """A literal that is the size of `term`, brought up to date; what stands for a size (-1, 1) stays."""
        size = self._space.size(term)
        copied = number == 0 and size != 0 and self.touches(term)  # ONNX: 0 is the size that the operand has there
        return self.count(term) if isinstance(size, int) and (number > 1 or copied) else number

    def mask(self, term: Term) -> Mask:
        """Which indices of `term` stay."""
        return self._space.mask(term, self._keep)

    def count(self, term: Term) -> int:
        """How many indices of `term` stay."""
        return int(self.mask(term).sum())


Recount: TypeAlias = Callable[[Kept], Any]
"""A literal of a node, computed anew from what is kept."""
RecountData: TypeAlias = Callable[[Kept, Array], Array]
"""A constant operand, computed anew from what is kept and from what it was."""


class Contraction(NamedTuple):
    """A sum over `term` of products of operands, given by their places: indices may go at which one is zero."""

    term: Term
    operands: tuple[int, ...]


QUANTISED = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})
"""Integers that stand for weights, as far as a graph computes with them."""


@dataclass
class Shortened:
    """An edit of the graph that removed indices of leaves."""

    keep: Mapping[Axis, Mask]
    nodes: dict[Node, Node] = field(default_factory=dict)
    """What was written in the place of nodes."""
    values: list[tuple[Value, Value]] = field(default_factory=list)
    """Results of these, and what replaced them."""
    copies: dict[Value, tuple[Node, Value]] = field(default_factory=dict)
    """What nodes were given of their own: the node that was replaced, and what it read."""
    fills: defaultdict[Node, list[Node]] = field(default_factory=lambda: defaultdict(list))
    """Nodes that make such copies, by the node that was replaced."""
    removed: set[Node] = field(default_factory=set)
    """What left the graph for good."""


class NoRule(Exception):
    """Raised by a rule: nothing can be said of this call. Carries the reason."""


Rule: TypeAlias = Callable[["Axes", Call], Sequence[Dims]]
RULES: dict[str, Rule] = {}
"""Rule by op. Filled when `graphopt.axes.rules` is imported."""


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Declare the decorated function as what `ops` say of axes: it unifies the dimensions of a call's operands and
    returns those of its results."""

    def declare(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, function))
        return function

    return declare


class Axes:
    """The axes of one region, found when it is made.

    Terms change while they are found. Afterwards the graph may be changed by shortening axes alone, which `follow` is
    told of.
    """

    def __init__(self, graph: Graph) -> None:
        from graphopt.axes import rules  # noqa: F401  # fills RULES

        self.graph = graph
        self.space = Space()
        self.contractions: defaultdict[Node, list[Contraction]] = defaultdict(list)
        self.couplings: defaultdict[Node, list[Term]] = defaultdict(list)
        """Terms over whose indices the results of a node depend on each other."""
        self.literals: defaultdict[Node, dict[str, Recount]] = defaultdict(dict)
        """Fields of calls that are sizes of dimensions, and how they follow from what is kept."""
        self.constants: defaultdict[Node, dict[int, RecountData]] = defaultdict(dict)
        """Constant operands of calls by their places, of sizes or numbers, and how they follow from what is kept."""
        self.moves: set[Node] = set()
        """Nodes of which a rule found that they do nothing but move elements and leave some out."""
        self._unread: defaultdict[Node, dict[int, Dims]] = defaultdict(dict)
        """Dimensions of results that nothing refers to: a node that is written anew may have a value for them."""
        self._by_node: tuple[dict[Node, Any], ...] = (
            self.contractions, self.couplings, self.literals, self.constants, self._unread,
        )  # fmt: skip
        self._dims: dict[Value, Dims] = {}
        self._tied: dict[object, Value] = {}
        self._uniform: set[Value] = set()
        self._uses: dict[tuple[Node | None, Value], Dims] = {}
        """Dimensions of stored tensors that are the reading node's own."""
        self._visiting: Node | None = None
        self._successors: dict[Node, Node] = {}
        self.nodes = list(graph.nodes())
        self._own = frozenset(self.nodes)
        for value in graph.inputs():
            self._set_frozen(value, "it is an input of the graph")
        for node in self.nodes:
            self._visiting = node
            self._visit(node)
        self._visiting = None
        for value in graph.outputs():
            self.freeze(self.dims_or_none(value) or (), "it is an output of the graph")

    # ---- what rules ask and say --------------------------------------------------------------------------

    def dims(self, value: Value | None, node: Node | None = None) -> Dims:
        """The terms of a value's dimensions. Raises NoRule if its rank is not known. `node` reads the value; by default
        it is the one whose rule is asked."""
        found = None if value is None else self.dims_or_none(value, node)
        if found is None:
            raise NoRule("the shape of an operand is not known")
        return found

    def dims_or_none(self, value: Value, node: Node | None = None) -> Dims | None:
        """The same, None if the rank is not known."""
        if isinstance(value, Literal):
            return ()
        use = node or self._visiting, value
        if use in self._uses:
            return self._uses[use]
        if value not in self._dims:
            self._add(value)
        if value in self._uniform and use[0] is not None and use[0] is not self.graph.producer(value):
            return self._uses.setdefault(use, self.fresh(self._sizes(self._dims[value])))
        return self._dims.get(value)

    def is_copied(self, value: Value) -> bool:
        """Whether every node that reads `value` may be given a copy of its own: it is one number many times, stored or
        filled in, and several nodes read it for that."""
        return value in self._uniform

    def copied_fill(self, value: Value | None) -> Call | None:
        """The call that makes `value`, if it is no stored tensor and every node may be given a copy of it."""
        if value not in self._uniform or self.graph.constant(value) is not None:
            return None
        producer = self.graph.producer(value)
        call = None if producer is None else self.graph.call(producer)
        return call if isinstance(call, Call) else None

    def result(self, call: Call, index: int = 0) -> tuple[Any, ...]:
        """The sizes of a result. Raises NoRule if the rank is not known."""
        value = call.outputs[index]
        type_ = None if value is None else self.graph.type(value)
        if type_ is None or type_.shape is None:
            raise NoRule("the shape of the result is not known")
        return type_.shape

    def fresh(self, sizes: Iterable[Any], frozen: str | None = None) -> Dims:
        """New dimensions of these sizes."""
        return tuple(self.space.term(size, frozen) for size in sizes)

    def unify(self, a: Term, b: Term) -> None:
        self.space.unify(a, b)

    def freeze(self, terms: Iterable[Term], reason: str) -> None:
        for term in terms:
            self.space.freeze(term, reason)

    def contract(self, call: Call, term: Term, *operands: int) -> None:
        """`call` sums products of the operands at these places over `term`."""
        if term:
            self.contractions[call.node].append(Contraction(term, operands))

    def couple(self, call: Call, *terms: Term) -> None:
        """Results of `call` depend on all indices of `terms` together."""
        self.couplings[call.node] += [term for term in terms if term]

    # ---- following edits -----------------------------------------------------------------------------------

    def current(self, nodes: Iterable[Node]) -> list[Node]:
        """What stands for `nodes` by now."""
        return [self._current(node) for node in nodes]

    def _current(self, node: Node) -> Node:
        while node in self._successors:
            node = self._successors[node]
        return node

    def follow(self, edit: Shortened) -> None:
        """Take note that leaves were shortened in the graph."""
        self.space.shorten(edit.keep)
        for old, new in edit.values:
            self._dims[new] = self._dims[old]
        for value, (old, place) in edit.copies.items():
            self._uniform.add(value)
            self._uses[edit.nodes[old], value] = self._uses[old, place]
        for old, new in edit.nodes.items():
            self._successors[old] = new
            if old in self.moves:
                self.moves.add(new)
            self._uses.update({(new, v): dims for (reader, v), dims in list(self._uses.items()) if reader is old})
            for known in self._by_node:
                if old in known:
                    known[new] = known.pop(old)
            results = self.graph.results(new)
            self._dims |= {v: dims for i, dims in self._unread.get(new, {}).items() if (v := results[i]) is not None}
        self.nodes = [node for node in self.current(self.nodes) if node not in edit.removed]

    # ---- visiting ----------------------------------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        if any(self.graph.constant(o) is not None for o in self.graph.results(node) if o is not None):
            return  # a stored tensor, whatever the storage keeps it as
        call = self.graph.call(node)
        if not isinstance(call, Call):
            self._visit_unread(node, f"{self.graph.raw_name(node)}: {call.reason}")
            return
        found = RULES.get(call.op)
        try:
            if found is None:
                raise NoRule(f"{call.op} says nothing about axes")
            results = found(self, call)
            for i, (value, dims) in enumerate(zip(call.outputs, results, strict=True)):
                if value is None:
                    self._unread[node][i] = dims
                else:
                    self._set(value, dims)
            if call.op == "fill":
                self._share(call)
            self._visit_hidden(node, call)
        except NoRule as error:
            self._visit_unread(node, str(error))
        except INVALID as error:
            self._visit_unread(node, f"{call.op} is no valid call: {error}")

    def _visit_hidden(self, node: Node, call: Call) -> None:
        """What a node reads that its call does not say, as a tensor of which another takes the shape: where it has the
        shape of the result, both stay alike; else it stays as it is."""
        (result, *_) = call.outputs
        for value in reads(self.graph, node):
            if value in call.operands:
                continue
            own = self.dims_or_none(value) or ()
            made = None if result is None or call.op != "fill" else self.dims_or_none(result)
            if made is not None and self._sizes(made) == self._sizes(own):
                for a, b in zip(made, own, strict=True):
                    self.unify(a, b)
            else:
                self.freeze(own, "a node reads it in a way that says nothing about axes")

    def _share(self, call: Call) -> None:
        """Let each of several readers of a fill have its own axes: it may have a fill of its own."""
        (value,) = call.outputs
        if value is None or call.fields["shape"] is None or self.graph.is_output(value):
            return
        users = self.graph.users(value)
        sizes = self._sizes(self.dims(value))
        if len(users) > 1 and all(u in self._own for u in users) and all(isinstance(n, int) for n in sizes):
            self._uniform.add(value)

    def _sizes(self, dims: Dims) -> list[Dim]:
        return [self.space.size(term) for term in dims]

    def _set(self, value: Value, dims: Dims) -> None:
        """Note what a rule found, unless the graph knows better: then nothing is certain."""
        type_ = self.graph.type(value)
        if type_ is None or type_.shape is None or len(type_.shape) != len(dims):
            self.freeze(dims, "its shape is not known")
            self._set_frozen(value, "its shape is not known")
            return
        self._dims[value] = tuple(self._agreed(term, n) for term, n in zip(dims, type_.shape, strict=True))

    def _agreed(self, term: Term, size: Dim) -> Term:
        """`term`, frozen if the graph does not say the same size; in its place a fresh one if it says another."""
        found = self.space.size(term)
        if found == size:
            return term
        self.space.freeze(term, DYNAMIC)
        another = isinstance(found, int) and isinstance(size, int)
        return self.space.term(size, "its size is not what its operands say") if another else term

    def _visit_unread(self, node: Node, reason: str) -> None:
        """A node of which nothing is known needs everything that it reads as it is."""
        sizes = _sizes_read(self.graph, node)
        for value in reads(self.graph, node):
            dims = self.dims_or_none(value) or ()
            self.freeze(dims if sizes is None else [dims[i] for i in sizes], reason)
        for result in self.graph.results(node):
            if result is not None:
                self._set_frozen(result, reason)

    def _set_frozen(self, value: Value, reason: str) -> None:
        type_ = self.graph.type(value)
        if type_ is not None and type_.shape is not None:
            self._dims[value] = self.fresh(type_.shape, reason)

    def _add(self, value: Value) -> None:
        """Axes for a value that no node of the region computes; what is stored once under several names has one set."""
        data = self.graph.constant(value)
        if data is None:
            self._set_frozen(value, "it is computed outside of the graph")
            return
        first = self._tied.setdefault(data.identity, value)
        reason = self._why_whole(value, data.dtype)
        if first is not value and first in self._dims:
            self._dims[value] = self._dims[first]
            if reason is not None:
                self.freeze(self._dims[value], reason)
            return
        self._dims[value] = self.fresh(data.shape, reason)
        shared = reason is None and data.size > 1 and len(self.graph.users(value)) > 1
        if shared and not data.trainable and _is_uniform(data):
            self._uniform.add(value)

    def _why_whole(self, value: Value, dtype: str) -> str | None:
        """Why a stored tensor must stay as it is."""
        if dtype not in FLOATS and dtype not in QUANTISED:
            return "it holds integers or truth values"
        if self.graph.is_output(value):
            return "it is an output of the graph"
        return None if all(u in self._own for u in self.graph.users(value)) else "another region reads it"


def _is_uniform(data: TensorRef) -> bool:
    array = data.numpy()
    return bool((array == array.reshape(-1)[0]).all())


def _sizes_read(graph: Graph, node: Node) -> list[int] | None:
    """The dimensions whose sizes are all that `node` reads; None if it reads more."""
    if graph.raw_name(node) == "aten.sym_size.int":
        return [int(graph.raw_call(node).fields["dim"])]
    return None
