"""Mixtures of experts in a graph: a selection of the k best of E scores for each token, by whose numbers weights are
picked or rows sorted.

    scores [..., E] = router(tokens);  gates, ids [..., k] = topk(scores);  ... weights[ids] or sort(ids) ...

Nothing else is asked of the router: softmax, sigmoid, groups and corrections may be before the selection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from graphopt.ir.graph import Call, Graph, Literal, Node, TensorType, Value
from graphopt.ir.weights import FLOATS, Array
from graphopt.passes.lower_moe.stacks import stack_of

SELECTIONS = frozenset({"topk", "aten.topk.default", "ai.onnx::TopK"})
"""topk in the vocabulary, and as the storages have it where nobody has asked for an order."""
FORMS = frozenset({"reshape", "unsqueeze", "squeeze", "cast", "identity"})
"""Ops behind which numbers of experts are still that."""


@dataclass(frozen=True)
class Mixture:
    """One selection of experts."""

    graph: Graph
    name: str
    """Name of the router's weight, or of the selection where there is none."""
    node: Node
    """The selection."""
    scores: Value
    """[..., E], of which the best are selected."""
    ids: Value
    """[..., k], numbers of experts."""
    gates: Value | None
    """[..., k], what the results of these experts are multiplied by; None if that is not found."""
    experts: int
    k: int
    table: Array | None = None
    """[E], which of the merged experts each is, where `merge-experts` has made fewer of them."""


def mixtures(graph: Graph) -> list[Mixture]:
    """The mixtures of experts in `graph`, in order."""
    return [found for node in graph.nodes() if (found := _mixture(graph, node)) is not None]


def _mixture(graph: Graph, node: Node) -> Mixture | None:
    if graph.key(node) not in SELECTIONS:
        return None
    raw = graph.raw_call(node)
    scores, ids = raw.operands[0], raw.outputs[1]
    type_, chosen = graph.type(scores), None if ids is None else graph.type(ids)
    if ids is None or not _has_last(type_) or not _has_last(chosen) or axis_of(raw) not in (-1, len(type_.shape) - 1):  # type: ignore[union-attr, arg-type]
        return None
    experts, k = type_.shape[-1], chosen.shape[-1]  # type: ignore[union-attr, index]
    if not isinstance(experts, int) or not isinstance(k, int):
        return None
    used = _are_used(graph, ids, experts)
    table = None if used else _table(graph, ids, experts)
    if not used and table is None:
        return None
    return Mixture(graph, _name(graph, node, experts), node, scores, ids, _gates(graph, raw), experts, k, table)


def axis_of(raw: Call) -> int:
    """The axis of a selection, as its storage counts it."""
    return int(raw.fields.get("dim", raw.fields.get("axis", -1)))


def _has_last(type_: TensorType | None) -> bool:
    return type_ is not None and bool(type_.shape)


def same_numbers(graph: Graph, ids: Value) -> list[Value]:
    """`ids`, and what holds the same numbers in another form; `lower-moe` writes them modulo E."""
    found = [ids]
    for value in found:
        for user in graph.users(value):
            call = graph.call(user)
            if isinstance(call, Call) and call.op in FORMS | {"mod"} and call.operands[0] == value:
                found += [o for o in call.outputs if o is not None and o not in found]
    return found


def _reads(graph: Graph, ids: Value) -> Iterator[tuple[Value, Call]]:
    """What reads numbers of experts, in whatever form."""
    for value in same_numbers(graph, ids):
        for user in graph.users(value):
            if isinstance(call := graph.call(user), Call):
                yield value, call


def _are_used(graph: Graph, ids: Value, experts: int) -> bool:
    """Whether weights are picked by `ids`, rows sorted by them, or they are compared with the number of each expert."""
    return any(_is_use(graph, call, value, experts) for value, call in _reads(graph, ids))


def _table(graph: Graph, ids: Value, experts: int) -> Array | None:
    """The table in which `ids` are looked up, if what it says are numbers of experts then."""
    for value, call in _reads(graph, ids):
        data = graph.constant(call.operands[0]) if call.op == "gather" and call.operands[1] == value else None
        if data is None or data.shape != (experts,) or not data.dtype.startswith("int") or call.outputs[0] is None:
            continue
        table = data.numpy()
        if table.min() >= 0 and _are_used(graph, call.outputs[0], int(table.max()) + 1):
            return table
    return None


def _is_use(graph: Graph, call: Call, ids: Value, experts: int) -> bool:
    if call.op in ("gather", "gather_nd"):
        if call.operands[1] != ids or call.fields.get("axis", 0) != 0:
            return False
        stack = stack_of(graph, call.operands[0])
        return stack is not None and stack.experts == experts
    if call.op == "sort":
        type_ = graph.type(ids)
        return call.operands[0] == ids and type_ is not None and type_.rank == 1
    if call.op == "equal":
        (other,) = [o for o in call.operands if o != ids] or [None]
        data = None if other is None else graph.constant(other)
        return data is not None and data.shape == (experts,) and np.array_equal(data.numpy(), np.arange(experts))
    return False


def _name(graph: Graph, node: Node, experts: int) -> str:
    for weight in router_weights(graph, node, experts):
        return graph.name(weight)
    return graph.node_name(node)


def router_weights(graph: Graph, node: Node, experts: int) -> Iterator[Value]:
    """The constant matrices with a side of `experts` that the scores of a selection are products with, nearest
    first."""
    pending, seen = [graph.raw_call(node).operands[0]], set()
    while pending:
        value = pending.pop(0)
        producer = None if value is None or isinstance(value, Literal) else graph.producer(value)
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        raw, call = graph.raw_call(producer), graph.call(producer)
        if isinstance(call, Call) and call.op in ("linear", "matmul"):
            if (weight := router_weight(graph, call, experts)) is not None:
                yield weight
            continue
        pending += [o for o in raw.operands if o is not None and not isinstance(o, Literal)]


def router_weight(graph: Graph, call: Call, experts: int) -> Value | None:
    """The constant of a product that gives a number for each expert."""
    weight = call.operands[1]
    data = None if weight is None or isinstance(weight, Literal) else graph.constant(weight)
    if data is None or data.ndim != 2 or data.shape[0 if call.op == "linear" else 1] != experts:
        return None
    return weight


def _gates(graph: Graph, raw: Call) -> Value | None:
    """What the scores of the selected experts become before they leave the form [..., k]: normalised, scaled."""
    ids = raw.outputs[1]
    shape = graph.type(ids).shape  # type: ignore[union-attr]
    reached, found = {v for v in (raw.outputs[0], ids) if v is not None}, raw.outputs[0]
    if found is not None and not (graph.users(found) or graph.is_output(found)):
        found = None
    for node in graph.nodes():
        operands = [o for o in graph.raw_call(node).operands if o is not None and not isinstance(o, Literal)]
        if not any(o in reached for o in operands):
            continue
        for output in graph.results(node):
            type_ = None if output is None else graph.type(output)
            if type_ is None or type_.dtype not in FLOATS or type_.shape is None:
                continue
            if type_.shape == shape:
                found = output
            if type_.shape[: len(shape) - 1] == shape[:-1] and len(type_.shape) <= len(shape):  # type: ignore[index, arg-type]
                reached.add(output)
    return found
