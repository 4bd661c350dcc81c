"""What values are where no expert was picked.

Dense mixtures of experts weight every expert by a gate that is zero for those that a token did not pick. That it is
zero follows from how it is made, from the ids that topk found: a scatter into zeros, a comparison of ids with the
number of an expert, one_hot, where, a softmax of scores that are -inf elsewhere. This follows such values forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphopt.ir.graph import Call, Dim, Graph, Literal, TensorType, Value
from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64

TOKEN, CHOICE, EXPERT, OTHER = "token", "choice", "expert", "other"
"""What an axis counts: tokens, the k choices of each, the experts, or anything else."""
OUTER, INNER = "outer", "inner"
"""Two axes that count tokens together: sequences, and the tokens of each."""
KEPT = frozenset({TOKEN, OUTER, INNER, EXPERT})
COMPUTED = frozenset(
    {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_not", "logical_or", "logical_and"}
    | {"add", "sub", "mul", "maximum", "minimum", "neg", "abs", "relu"}
)
"""Ops whose result is known where all of their operands are."""
SMALL = 4096
"""Elements of constants that are looked at."""


@dataclass(frozen=True)
class Ids:
    """Numbers of `experts` experts, distinct for each token: the axes of `source`, which found them, and others."""

    source: Value
    experts: int
    roles: tuple[str, ...]


@dataclass(frozen=True)
class Gate:
    """A value that is `off` at a token and an expert (the one of its axis, or `expert`) unless that token picked it;
    with an axis of choices, unless that choice is it. Without `source` it is `off` everywhere."""

    source: Value | None
    experts: int
    roles: tuple[str, ...]
    off: float
    expert: int | None = None


Fact = Ids | Gate | None


class Gates:
    """Facts about the values of one graph, found when they are asked for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._known: dict[Value, Fact] = {}

    def of(self, value: Value | Literal | None) -> Fact:
        if value is None:
            return None
        if isinstance(value, Literal):
            return _uniform((), value.value)
        if value not in self._known:
            self._known[value] = None
            self._known[value] = self._find(value)
        return self._known[value]

    def _find(self, value: Value) -> Fact:
        type_, data = self.graph.type(value), self.graph.constant(value)
        if type_ is None or type_.shape is None:
            return None
        if data is not None:
            if not 0 < data.size <= SMALL:
                return None
            array = data.numpy()
            return _uniform(type_.shape, array.flat[0]) if (array == array.flat[0]).all() else None
        node = self.graph.producer(value)
        call = None if node is None else self.graph.call(node)
        if not isinstance(call, Call):
            return None
        rule = RULES.get(call.op)
        return None if rule is None else rule(self, call, value, type_)

    def type(self, value: Value | Literal | None) -> TensorType | None:
        return None if value is None or isinstance(value, Literal) else self.graph.type(value)

    def choices(self, source: Value | None) -> int | None:
        """How many experts `source` names for each token, if that is known."""
        fact, type_ = self.of(source), self.type(source)
        if not isinstance(fact, Ids) or type_ is None or type_.shape is None:
            return None
        size = type_.shape[fact.roles.index(CHOICE)] if CHOICE in fact.roles else 1
        return size if isinstance(size, int) else None

    def numbers(self, value: Value | Literal | None) -> Any:
        """A small constant as an array, or None."""
        if value is None or isinstance(value, Literal):
            return None if value is None else np.asarray(value.value)
        data = self.graph.constant(value)
        return data.numpy() if data is not None and data.size <= SMALL else None


def _uniform(shape: tuple[Any, ...], value: Any) -> Gate:
    return Gate(None, 0, (OTHER,) * len(shape), float(value))


# ---- where ids come from -----------------------------------------------------------------------------------


def _topk(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    scores = gates.type(call.operands[0])
    if scores is None or scores.shape is None or scores.rank not in (2, 3) or call.fields["axis"] != scores.rank - 1:
        return None
    experts = scores.shape[-1]
    if value != call.outputs[-1] or not isinstance(experts, int):
        return None
    return Ids(value, experts, (*_tokens(scores.shape[:-1]), CHOICE)[: type_.rank])


def _tokens(sizes: tuple[Dim, ...]) -> tuple[str, ...]:
    """What the axes before that of experts count."""
    several = [axis for axis, size in enumerate(sizes) if size != 1]
    if len(sizes) == 1:
        return (TOKEN,)
    if len(several) == 2:
        return OUTER, INNER
    return (OTHER, TOKEN) if several != [0] else (TOKEN, OTHER)


def _one_hot(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    ids, (depth, values) = gates.of(call.operands[0]), map(gates.numbers, call.operands[1:])
    if not isinstance(ids, Ids) or depth is None or values is None or int(depth.reshape(())) != ids.experts:
        return None
    axis = call.fields["axis"]
    return Gate(ids.source, ids.experts, (*ids.roles[:axis], EXPERT, *ids.roles[axis:]), float(values[0]))


def _scatter(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    x, ids = gates.of(call.operands[0]), gates.of(call.operands[1])
    if not isinstance(x, Gate) or not isinstance(ids, Ids) or ids.roles != (TOKEN, CHOICE) or call.fields["axis"] != 1:
        return None
    if type_.shape is None or type_.shape[1] != ids.experts or x.source not in (None, ids.source):
        return None
    kept = x.source is None or x.roles == (TOKEN, EXPERT)
    return Gate(ids.source, ids.experts, (TOKEN, EXPERT), x.off) if kept else None


def _compared(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    """Ids that are compared with the number of one expert or with those of all."""
    for this, other in (call.operands, call.operands[::-1]):
        ids, numbers = gates.of(this), gates.numbers(other)
        if not isinstance(ids, Ids) or numbers is None or type_.rank is None:
            continue
        off, roles = float(call.op == "not_equal"), [*ids.roles]
        roles[:0] = [OTHER] * (type_.rank - len(roles))
        if numbers.size == 1:
            return Gate(ids.source, ids.experts, tuple(roles), off, int(numbers.reshape(())))
        wide = [i for i, size in enumerate(numbers.shape) if size > 1]
        axis = wide[0] + type_.rank - numbers.ndim
        if len(wide) == 1 and roles[axis] == OTHER and np.array_equal(numbers.ravel(), np.arange(ids.experts)):
            roles[axis] = EXPERT
            return Gate(ids.source, ids.experts, tuple(roles), off)
    return _elementwise(gates, call, value, type_)


# ---- what is computed of them ------------------------------------------------------------------------------


def _elementwise(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    facts = [gates.of(o) for o in call.operands]
    offs = [f.off if isinstance(f, Gate) else None for f in facts]
    off = _off(call, offs)
    known = [
        (f, gates.type(o))
        for f, o in zip(facts, call.operands, strict=True)
        if isinstance(f, Gate) and f.source is not None
    ]
    if off is None or type_.shape is None:
        return None
    if not known:
        return Gate(None, 0, (OTHER,) * len(type_.shape), off) if None not in offs else None
    roles = [OTHER] * len(type_.shape)
    for fact, was in known:
        if (fact.source, fact.expert) != (known[0][0].source, known[0][0].expert) or was is None or was.shape is None:
            return None
        for axis, role in enumerate(fact.roles, len(roles) - len(fact.roles)):
            if role == OTHER:
                continue
            if roles[axis] not in (OTHER, role) or was.shape[axis - len(roles)] != type_.shape[axis]:
                return None
            roles[axis] = role
    return replace(known[0][0], roles=tuple(roles), off=off)


def _off(call: Call, offs: list[float | None]) -> float | None:
    """The result of `call` where its operands are `offs`, as far as those are known."""
    match call.op, offs:
        case "where", [condition, yes, no]:
            return None if condition is None else yes if condition else no
        case "mul" | "logical_and", _ if 0.0 in offs:
            return 0.0
        case "div", [0.0, below]:
            return None if below == 0 else 0.0
        case "cast", [float(x)]:
            return float(bool(x)) if call.fields["dtype"] == "bool" else x if math.isfinite(x) and x == int(x) else None
        case "identity", [x]:
            return x
    if call.op not in COMPUTED or None in offs:
        return None
    truth = call.op.startswith("logical")
    arrays = [np.asarray(bool(x) if truth else x) for x in offs]
    return float(OPS[call.op].meaning(Float64(), *arrays, **call.fields))


def _same(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    fact = gates.of(call.operands[0])
    if isinstance(fact, Ids):
        return fact if type_.dtype in ("int32", "int64") else None
    return _elementwise(gates, call, value, type_)


def _softmax(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    fact = gates.of(call.operands[0])
    if not isinstance(fact, Gate) or fact.roles[call.fields["axis"]] != EXPERT or fact.off != -math.inf:
        return None
    return replace(fact, off=0.0)


def _reduce(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    fact, axes = gates.of(call.operands[0]), call.fields["axes"]
    if not isinstance(fact, Gate) or any(fact.roles[a] in KEPT for a in axes):
        return None
    if call.op == "reduce_sum" and fact.off != 0:
        return None
    if call.fields["keepdims"]:
        return replace(fact, roles=tuple(OTHER if a in axes else r for a, r in enumerate(fact.roles)))
    return replace(fact, roles=tuple(r for a, r in enumerate(fact.roles) if a not in axes))


# ---- other forms of the same -------------------------------------------------------------------------------


def _reshaped(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    """Axes of size 1 come and go, and both axes of tokens become one."""
    fact, before, after = gates.of(call.operands[0]), gates.type(call.operands[0]), type_.shape
    if fact is None or before is None or before.shape is None or after is None:
        return None
    left = [(r, size) for r, size in zip(fact.roles, before.shape, strict=True) if size != 1]
    sizes = [size for size in after if size != 1]
    if len(sizes) == len(left) - 1 and OUTER in fact.roles:
        left = _joined(left, sizes)
    if [size for _, size in left] != sizes:
        return None
    roles = iter(r for r, _ in left)
    return replace(fact, roles=tuple(OTHER if size == 1 else next(roles) for size in after))


def _joined(axes: list[tuple[str, Dim]], sizes: list[Dim]) -> list[tuple[str, Dim]]:
    """With one axis of tokens, of the size that it has among `sizes`, if all others are known and so it is the two."""
    roles = [role for role, _ in axes]
    place = roles.index(OUTER)
    others = [size for role, size in axes if role not in (OUTER, INNER)]
    if roles[place : place + 2] != [OUTER, INNER] or not all(isinstance(size, int) for size in others):
        return axes
    return [*axes[:place], (TOKEN, sizes[place]), *axes[place + 2 :]]


def _unsqueeze(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    fact = gates.of(call.operands[0])
    if fact is None:
        return None
    roles = iter(fact.roles)
    return replace(
        fact, roles=tuple(OTHER if a in call.fields["axes"] else next(roles) for a in range(type_.rank or 0))
    )


def _squeeze(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    fact, axes = gates.of(call.operands[0]), call.fields["axes"]
    if fact is None or any(fact.roles[a] in KEPT for a in axes):
        return None
    return replace(fact, roles=tuple(r for a, r in enumerate(fact.roles) if a not in axes))


def _transpose(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    fact = gates.of(call.operands[0])
    return None if fact is None else replace(fact, roles=tuple(fact.roles[a] for a in call.fields["perm"]))


def _expand(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    fact, before, after = gates.of(call.operands[0]), gates.type(call.operands[0]), type_.shape
    if not isinstance(fact, Gate) or before is None or before.shape is None or after is None:
        return None
    added = len(after) - len(before.shape)
    if any(r != OTHER and before.shape[a] != after[a + added] for a, r in enumerate(fact.roles)):
        return None
    return replace(fact, roles=(*[OTHER] * added, *fact.roles))


def _fill(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    return _uniform(type_.shape or (), call.fields["value"])


# ---- one expert of all -------------------------------------------------------------------------------------


def _gather(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    index = gates.numbers(call.operands[1])
    if index is None or index.size != 1:
        return None
    return _one(gates, call, call.fields["axis"], int(index.reshape(())), (OTHER,) * index.ndim)


def _slice(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    if len(call.fields["axes"]) != 1 or call.fields["steps"] != (1,) or type_.shape is None:
        return None
    (axis,), (start,) = call.fields["axes"], call.fields["starts"]
    return _one(gates, call, axis, start, (OTHER,)) if type_.shape[axis] == 1 else None


def _split(gates: Gates, call: Call, value: Value, type_: TensorType) -> Fact:
    axis, place = call.fields["axis"], call.outputs.index(value)
    types = [None if o is None else gates.graph.type(o) for o in call.outputs[: place + 1]]
    if any(t is None or t.shape is None or t.shape[axis] != 1 for t in types):
        return None
    return _one(gates, call, axis, place, (OTHER,))


def _one(gates: Gates, call: Call, axis: int, index: int, instead: tuple[str, ...]) -> Fact:
    fact = gates.of(call.operands[0])
    if not isinstance(fact, Gate) or fact.source is None or fact.roles[axis] not in (EXPERT, OTHER):
        return None
    roles = (*fact.roles[:axis], *instead, *fact.roles[axis + 1 :])
    if fact.roles[axis] == OTHER:
        return replace(fact, roles=roles)
    return replace(fact, roles=roles, expert=index % fact.experts)


RULES: Mapping[str, Callable[[Gates, Call, Value, TensorType], Fact]] = {
    **dict.fromkeys((*COMPUTED, "div", "where"), _elementwise),
    **dict.fromkeys(("equal", "not_equal"), _compared),
    **dict.fromkeys(("cast", "identity"), _same),
    **dict.fromkeys(("topk", "arg_max"), _topk),
    **dict.fromkeys(("reduce_sum", "reduce_max", "reduce_min", "reduce_mean"), _reduce),
    "reshape": _reshaped,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "one_hot": _one_hot,
    "scatter_elements": _scatter,
    "softmax": _softmax,
    "transpose": _transpose,
    "expand": _expand,
    "fill": _fill,
    "gather": _gather,
    "slice": _slice,
    "split": _split,
}
