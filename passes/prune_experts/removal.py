"""Removing experts of a mixture: everything that has a place for each expert is found, and loses the same places.

Forward from the router's products: scores (with an axis of experts, or of the members of each group) and numbers of
experts. What happens to either in a way that is not known here keeps all experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.ir.graph import Call, Graph, Literal, Node, TensorType, Value
from graphopt.ir.ops import ELEMENTWISE
from graphopt.ir.weights import ArrayRef, SlicedRef
from graphopt.passes.prune_experts.mixtures import FORMS, SELECTIONS, Mixture, axis_of, router_weights, same_numbers
from graphopt.rewrite.journal import Journal

REDUCTIONS = frozenset({"reduce_sum", "reduce_max", "reduce_min"})


class NotRemovable(Exception):
    """Experts cannot be removed; the reason."""


@dataclass
class Places:
    """Everything of one mixture that has a place for each expert."""

    mixture: Mixture
    scored: dict[Value, int] = field(default_factory=dict)
    """Values whose last axis has a place for each expert, or each member of a group; and its size."""
    numbers: set[Value] = field(default_factory=set)
    constants: dict[Value, int] = field(default_factory=dict)
    """Stored tensors, and the axis of experts."""
    corrections: set[Value] = field(default_factory=set)
    """Those of them that are added to scores."""
    products: list[Call] = field(default_factory=list)
    """The router's."""
    calls: dict[Node, Call] = field(default_factory=dict)
    """What reads or gives any of these, in order."""
    least: int = 1
    """How many experts of each group must stay."""
    groups: int = 1

    @property
    def graph(self) -> Graph:
        return self.mixture.graph

    def touches(self, value: Value | None) -> bool:
        return value is not None and (value in self.scored or value in self.numbers)


def places_of(mixture: Mixture) -> Places:
    """Raises NotRemovable."""
    graph = mixture.graph
    found = Places(mixture)
    routers = set(router_weights(graph, mixture.node, mixture.experts))
    for node in graph.nodes():
        call = graph.call(node)
        if isinstance(call, Call) and call.op in ("linear", "matmul") and call.operands[1] in routers:
            _product(found, call)
        elif isinstance(call, Call) and call.op == "expand" and _spreads_groups(found, call):
            found.scored[call.outputs[0]] = mixture.experts // found.groups
        elif any(found.touches(o) for o in graph.raw_call(node).operands if not isinstance(o, Literal)):
            _place(found, node)
        else:
            continue
        found.calls[node] = call if isinstance(call, Call) else graph.raw_call(node)
    _check(found)
    return found


def _check(found: Places) -> None:
    graph, mixture = found.graph, found.mixture
    if found.scored.get(mixture.scores) != mixture.experts:
        raise NotRemovable("the scores do not come from a constant weight in a way that is known")
    if any(graph.is_output(v) for v in (*found.scored, *found.numbers)):
        raise NotRemovable("scores or numbers of experts are an output of the graph")
    for value in found.constants:
        if any(u not in found.calls and graph.key(u) != "transpose" for u in graph.users(value)):
            raise NotRemovable(f"{graph.name(value)} is read by something else as well")
    found.least = max(found.least, mixture.k)  # of each group, of which it may select a single one


def _last(graph: Graph, value: Value | None) -> int | None:
    type_ = None if value is None else graph.type(value)
    size = type_.shape[-1] if type_ is not None and type_.shape else None
    return size if isinstance(size, int) else None


def _product(found: Places, call: Call) -> None:
    weight, result = call.operands[1], call.outputs[0]
    found.constants[weight] = 0 if call.op == "linear" else 1
    bias = call.operands[2] if call.op == "linear" and len(call.operands) > 2 else None
    if bias is not None:
        found.constants[bias] = 0
    found.scored[result] = found.mixture.experts
    found.products.append(call)


def _spreads_groups(found: Places, call: Call) -> bool:
    """Whether what was chosen of groups becomes what is chosen of their members."""
    type_, groups = found.graph.type(call.outputs[0]), found.groups
    members = (groups, found.mixture.experts // groups)
    spread = type_ is not None and (type_.shape or ())[-2:] == members
    return spread and _last(found.graph, call.operands[0]) == 1


def _place(found: Places, node: Node) -> None:  # noqa: C901  # a case an op
    graph = found.graph
    raw, call = graph.raw_call(node), graph.call(node)
    if graph.key(node) in SELECTIONS:
        _select(found, raw)
        return
    where = graph.node_name(node)
    if not isinstance(call, Call):
        raise NotRemovable(f"{where}: {call.reason}")
    first, result = call.operands[0], call.outputs[0]
    second = call.operands[1] if len(call.operands) > 1 else None
    if first in found.numbers and (call.op == "sort" or (call.op == "gather" and not found.touches(second))):
        if result is not None:
            found.numbers.update(same_numbers(graph, result))
    elif first in found.numbers and call.op == "histogram" and call.fields["bins"] == found.mixture.experts:
        if call.fields["low"] != 0 or call.fields["high"] != found.mixture.experts - 1:
            raise NotRemovable(f"{where} does not count the tokens of every expert")
        found.scored[result] = found.mixture.experts
    elif call.op == "cumsum" and first in found.scored and graph.key(graph.producer(first)) == "histogram":
        found.scored[result] = found.mixture.experts
    elif call.op in ("gather", "gather_nd") and second in found.numbers and call.fields.get("axis", 0) == 0:
        _stack(found, first, where)
    elif call.op == "grouped_matmul" and not found.touches(first) and call.operands[2] in found.scored:
        _stack(found, second, where)
    elif call.op == "gather_elements" and first in found.scored and second in found.numbers:
        if call.fields["axis"] != len(graph.type(first).shape) - 1:  # type: ignore[union-attr, arg-type]
            raise NotRemovable(f"{where} picks along another axis")
    elif any(o in found.numbers for o in call.operands if not isinstance(o, Literal)):
        if call.op not in FORMS:
            raise NotRemovable(f"{where}: {call.op} of numbers of experts")
    else:
        _score(found, call, where)


def _select(found: Places, raw: Call) -> None:
    graph, scores, ids = found.graph, raw.operands[0], raw.outputs[1]
    rank = len(graph.type(scores).shape or ()) if scores in found.scored else 0  # type: ignore[union-attr]
    k = _last(graph, next(o for o in raw.outputs if o is not None))
    if not rank or axis_of(raw) not in (-1, rank - 1) or k is None:
        raise NotRemovable(f"{graph.node_name(raw.node)} selects along another axis")
    found.least = max(found.least, k)
    if ids is not None and (graph.users(ids) or graph.is_output(ids)):
        if found.scored[scores] != found.mixture.experts:
            raise NotRemovable(f"{graph.node_name(raw.node)} numbers experts within their groups")
        found.numbers.update(same_numbers(graph, ids))


def _stack(found: Places, value: Value | None, where: str) -> None:
    graph = found.graph
    while value is not None and graph.constant(value) is None:
        node = graph.producer(value)
        call = None if node is None else graph.call(node)
        if not isinstance(call, Call) or call.op != "transpose" or call.fields["perm"][0] != 0:
            raise NotRemovable(f"{where}: the weights are not constant")
        found.calls[node] = call
        value = call.operands[0]
    data = None if value is None else graph.constant(value)
    if data is None or data.shape[0] != found.mixture.experts:
        raise NotRemovable(f"{where}: there are not as many weights as experts")
    found.constants[value] = 0


def _score(found: Places, call: Call, where: str) -> None:
    """An op on scores whose last axis stays what it is, or is split in groups and joined again."""
    graph, first, result, experts = found.graph, call.operands[0], call.outputs[0], found.mixture.experts
    size = _last(graph, result)
    if call.op in ("softmax", "log_softmax") or call.op in ELEMENTWISE:
        for operand in call.operands:
            if operand is not None and not isinstance(operand, Literal) and operand not in found.scored:
                _other(found, operand, size, where, call.op)
        found.scored[result] = size or 0
    elif call.op in REDUCTIONS:
        if len(graph.type(first).shape or ()) - 1 not in call.fields["axes"]:  # type: ignore[union-attr]
            raise NotRemovable(f"{where} joins other places than experts")
    elif call.op == "reshape" and size == found.scored[first]:
        found.scored[result] = size or 0
    elif call.op == "reshape" and size is not None and found.scored[first] == experts and experts % size == 0:
        found.groups = experts // size
        if (graph.type(result).shape or ())[-2:] != (found.groups, size):  # type: ignore[union-attr]
            raise NotRemovable(f"{where} gives the scores a form that is not known")
        found.scored[result] = size
    elif call.op == "reshape" and size == experts:
        found.scored[result] = size
    else:
        raise NotRemovable(f"{where}: {call.op} of the scores of experts")


def _other(found: Places, value: Value, size: int | None, where: str, op: str) -> None:
    """What scores meet in an elementwise op: the same for all experts, or a stored number for each."""
    type_, data = found.graph.type(value), found.graph.constant(value)
    if type_ is None or type_.shape is None:
        raise NotRemovable(f"{where}: {found.graph.name(value)} has no known shape")
    if not type_.shape or type_.shape[-1] == 1:
        return
    if data is None or size != found.mixture.experts or data.shape[-1] != size:
        raise NotRemovable(f"{where}: {found.graph.name(value)} is not known to stay the same for each expert")
    found.constants[value] = data.ndim - 1
    if op == "add":
        found.corrections.add(value)


# ---- writing -----------------------------------------------------------------------------------------------


def remove(found: Places, journal: Journal, *, keep: np.ndarray[Any, Any]) -> None:
    """Let only the experts numbered in `keep` stay, as many of each group."""
    graph = found.graph
    current: dict[Value, Value] = {}
    for value, axis in found.constants.items():
        data = graph.constant(value)
        assert data is not None
        journal.store(value, SlicedRef(data, [keep if i == axis else None for i in range(data.ndim)]))
    for node in [n for n in graph.nodes() if n in found.calls]:
        call = found.calls[node]
        if call.op == "histogram":  # no storage writes it in the vocabulary's words
            call = graph.raw_call(node)
        types = [_type(found, call, o, len(keep)) for o in call.outputs]
        fields = _fields(found, call, len(keep))
        if fields == dict(call.fields):
            journal.retype(node, types)
            continue
        operands = [o if isinstance(o, Literal) else current.get(o, o) for o in call.operands]
        made = journal.insert(call.op, operands, fields, before=node, types=types)
        for old, new in zip(call.outputs, made, strict=True):
            if old is not None:
                journal.replace(old, new)
                current[old] = new
        journal.doom([node])


def mask(found: Places, journal: Journal, *, keep: np.ndarray[Any, Any]) -> None:
    """Let the others never be selected instead, and have no part in a softmax: minus infinity is added to their
    scores. What `remove` is compared with."""
    graph = found.graph
    lost = np.full(found.mixture.experts, -np.inf, np.float32)
    lost[keep] = 0.0
    for value in found.corrections:
        data = graph.constant(value)
        assert data is not None
        journal.store(value, ArrayRef((data.numpy() + lost).astype(data.numpy().dtype)))
    for call in found.products:
        type_ = graph.type(call.outputs[0])
        assert type_ is not None
        (product,) = journal.insert(call.op, call.operands, call.fields, before=call.node, types=[type_])
        data = graph.constant(call.operands[1])
        assert data is not None
        addend = journal.add_constant(ArrayRef(lost.astype(data.numpy().dtype)), "lost")
        (masked,) = journal.insert("add", [product, addend], {}, before=call.node, types=[type_])
        journal.replace(call.outputs[0], masked)
        journal.doom([call.node])


def _new_size(found: Places, value: Value, kept: int) -> int:
    return kept if found.scored[value] == found.mixture.experts else kept // found.groups


def _type(found: Places, call: Call, value: Value | None, kept: int) -> TensorType | None:
    type_ = None if value is None else found.graph.type(value)
    if type_ is None or type_.shape is None:
        return type_
    if value in found.scored:
        return TensorType(type_.dtype, (*type_.shape[:-1], _new_size(found, value, kept)))
    if call.op == "transpose":
        return TensorType(type_.dtype, (kept, *type_.shape[1:]))
    return type_


def _fields(found: Places, call: Call, kept: int) -> dict[str, Any]:
    fields = dict(call.fields)
    if call.op == "aten.histc.default":
        return fields | {"bins": kept, "max": type(fields["max"])(kept - 1)}
    if call.op in ("reshape", "expand") and call.outputs[0] in found.scored and fields.get("shape"):
        *before, last = fields["shape"]
        return fields | {"shape": (*before, _new_size(found, call.outputs[0], kept) if last > 1 else last)}
    return fields
