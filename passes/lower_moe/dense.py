"""Sums over all experts, each computed for every token and weighted by a gate that is zero where it was not picked.

    total = rest + sum_e term_e;  term_e = gate[:, e] * f_e(x), or anything else that is zero where e was not picked

A term is everything that only it reads and that treats each token by itself. Experts may differ from one another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.ir.graph import Call, Dim, Graph, Literal, Node, Value
from graphopt.ir.row_ops import mixes_rows
from graphopt.passes.lower_moe.forms import WORTH
from graphopt.passes.lower_moe.gates import CHOICE, KEPT, TOKEN, Gate, Gates

PRODUCTS = frozenset({"matmul", "linear"})


class NotDense(Exception):
    """A sum of gated terms that cannot be computed by expert; the reason."""


@dataclass(frozen=True)
class Term:
    """What one expert adds: `calls`, in order, compute `value` of `inputs`, which have a row for each token."""

    value: Value
    calls: tuple[Call, ...]
    inputs: tuple[Value, ...]


@dataclass(frozen=True)
class Dense:
    """A sum over experts. `terms` are in the order of the experts, `ids` name those of each token."""

    graph: Graph
    ids: Value
    k: int
    total: Value
    terms: tuple[Term, ...]
    rest: tuple[Value, ...]
    """What else is added."""
    gating: tuple[Call, ...]
    """What makes the gates of the scores of the experts, in order: what the terms being zero follows from."""
    sums: tuple[Call, ...]

    @property
    def experts(self) -> int:
        return len(self.terms)

    @property
    def nodes(self) -> list[Node]:
        """What is replaced, in order."""
        chosen = {c.node for c in (*self.gating, *self.sums, *(c for t in self.terms for c in t.calls))}
        return [n for n in self.graph.nodes() if n in chosen]


def dense_sums(graph: Graph, worth: float = WORTH) -> Iterator[Dense | tuple[Call, str]]:
    """Every sum of gated experts; where there is one that cannot be computed by expert, its last addition and why."""
    gates = Gates(graph)
    order = {node: place for place, node in enumerate(graph.nodes())}
    for node in order:
        call = graph.call(node) if graph.key(node) == "add" else None
        if not isinstance(call, Call) or _is_part(graph, call.outputs[0]):
            continue
        leaves, sums = _leaves(graph, call)
        found = [(leaf, fact) for leaf in leaves if (fact := _gated(gates, leaf)) is not None]
        if len(found) < 2:
            continue
        try:
            yield _dense(gates, call, leaves, sums, dict(found), order, worth)
        except NotDense as error:
            yield call, str(error)


def _is_part(graph: Graph, value: Value) -> bool:
    """Whether all that happens to a sum is that something is added to it."""
    users = graph.users(value)
    return len(users) == 1 and graph.key(users[0]) == "add" and not graph.is_output(value)


def _leaves(graph: Graph, call: Call) -> tuple[list[Value], list[Call]]:
    """What is added up, and the additions."""
    leaves: list[Value] = []
    sums, todo = [call], list(call.operands)
    while todo:
        value = todo.pop()
        node = None if isinstance(value, Literal) else graph.producer(value)
        inner = graph.call(node) if node is not None and graph.key(node) == "add" else None
        if isinstance(inner, Call) and _is_part(graph, value):
            sums.append(inner)
            todo += inner.operands
        else:
            leaves.append(value)
    return leaves, sums


def _gated(gates: Gates, value: Value) -> Gate | None:
    """What is known of a term of one expert."""
    fact = None if isinstance(value, Literal) else gates.of(value)
    one = isinstance(fact, Gate) and fact.source is not None and fact.expert is not None and fact.off == 0
    if not isinstance(fact, Gate) or not one or fact.roles[:1] != (TOKEN,) or len(fact.roles) < 2:
        return None
    return None if {CHOICE, *KEPT} & {*fact.roles[1:]} else fact


def _dense(
    gates: Gates, call: Call, leaves: list[Value], sums: list[Call], found: dict[Value, Gate], order: dict[Node, int],
    worth: float,
) -> Dense:  # fmt: skip
    graph, (first, *_) = gates.graph, found.values()
    source, experts = first.source, first.experts
    total = graph.type(call.outputs[0])
    if any(f.source != source for f in found.values()):
        raise NotDense("it adds up experts of several routers")
    numbers = sorted(f.expert for f in found.values() if f.expert is not None)
    if numbers != list(range(experts)) or len(found) + sum(v not in found for v in leaves) != len(leaves):
        raise NotDense(f"the experts {numbers} are added up and not each of {experts} once")
    k = gates.choices(source)
    if k is None or experts < worth * k:
        raise NotDense(f"{k} of {experts} experts are picked, for which computing all is as fast")
    if total is None or any(graph.type(v) != total for v in found) or not total.shape or not _are_sizes(total.shape):
        raise NotDense("the sizes of what is added up are not known or not the same")
    by_expert = sorted(found, key=lambda value: found[value].expert or 0)
    terms = tuple(_term(graph, value, total.shape[0], order) for value in by_expert)
    if not any(c.op in PRODUCTS for t in terms for c in t.calls):
        raise NotDense("no product in it is of an expert alone and treats each token by itself")
    gating = gating_of(gates, [i for t in terms for i in t.inputs], source, order)
    rest = tuple(v for v in leaves if v not in found)
    return Dense(graph, source, k, call.outputs[0], terms, rest, gating, tuple(sums))


def _are_sizes(shape: tuple[Dim, ...] | None) -> bool:
    return shape is not None and all(isinstance(d, int) for d in shape[1:])


def _term(graph: Graph, value: Value, count: Dim, order: dict[Node, int]) -> Term:
    """The calls that compute the rows of `value` of rows. Raises NotDense."""
    alone = _alone(graph, value, order)
    rowed: set[Value] = set()
    calls: list[Call] = []
    inputs: set[Value] = set()
    for call in alone:
        given = [o for o in _values(call) if o in rowed or _has_rows(graph, o, count)]
        result = next(o for o in call.outputs if o is not None)
        if given and mixes_rows(graph, call, given) is None:
            calls.append(call)
            rowed.update(o for o in call.outputs if o is not None)
            inputs.update(o for o in given if o not in rowed)
        elif any(o in rowed for o in given) and not _has_rows(graph, result, count):
            reason = mixes_rows(graph, call, given)
            raise NotDense(f"{graph.node_name(call.node)}: {reason}")
    calls = _needed(calls, value)
    made = {o for c in calls for o in c.outputs if o is not None}
    read = dict.fromkeys(o for c in calls for o in _values(c) if o not in made)
    return Term(value, tuple(calls), tuple(o for o in read if o in inputs))


def _alone(graph: Graph, value: Value, order: dict[Node, int]) -> list[Call]:
    """What is computed for `value` alone, in order."""
    inside: set[Node] = set()
    found: list[Call] = []
    todo = [value]
    while todo:
        last = todo.pop()
        node = graph.producer(last)
        if node is None or node in inside or graph.constant(last) is not None:
            continue
        call = graph.call(node)
        outputs = [] if not isinstance(call, Call) else [o for o in call.outputs if o is not None]
        users = {u for o in outputs for u in graph.users(o)}
        if not isinstance(call, Call) or any(graph.is_output(o) for o in outputs):
            continue
        if last != value and not users <= inside:
            continue
        inside.add(node)
        found.append(call)
        todo += sorted(_values(call), key=lambda v: -order.get(graph.producer(v), 0))
    return sorted(found, key=lambda c: order[c.node])


def _needed(calls: list[Call], value: Value) -> list[Call]:
    """Those of `calls` that `value` is computed of."""
    needed, kept = {value}, []
    for call in reversed(calls):
        if any(o in needed for o in call.outputs):
            kept.append(call)
            needed.update(_values(call))
    return kept[::-1]


def gating_of(gates: Gates, inputs: list[Value], source: Value, order: dict[Node, int]) -> tuple[Call, ...]:
    """What the facts about `inputs` follow from, back to the choice of experts."""
    graph = gates.graph
    found: dict[Node, Call] = {}
    todo = [source, *(v for v in inputs if gates.of(v) is not None)]
    while todo:
        value = todo.pop()
        node = graph.producer(value)
        call = None if node is None or node in found else graph.call(node)
        if not isinstance(call, Call):
            continue
        found[call.node] = call
        if value != source:
            todo += [o for o in _values(call) if gates.of(o) is not None or _is_shape(graph, o)]
    return tuple(sorted(found.values(), key=lambda c: order[c.node]))


def _is_shape(graph: Graph, value: Value) -> bool:
    type_ = graph.type(value)
    return type_ is not None and type_.dtype == "int64" and type_.rank is not None and type_.rank < 2


def _has_rows(graph: Graph, value: Value, count: Dim) -> bool:
    type_ = graph.type(value)
    if type_ is None or not type_.shape or count is None or graph.constant(value) is not None:
        return False
    return type_.shape[0] == count


def _values(call: Call) -> list[Value]:
    return [o for o in call.operands if o is not None and not isinstance(o, Literal)]
