"""The experts of a dense mixture in one tensor: y[e, t] = f(x[t]; W[e]) for all e and t, gated and summed over e.

    total = sum over e of gate[e, t] * (act(x @ W1[E, d, f]) @ W2[E, f, d]);  the axis of experts may be any
    total = einsum("ted,te->td", y, gate)

Without the axis of experts every call says what one of them does; its matrices are slices of the stacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from graphopt.ir.graph import Call, Dim, Graph, Literal, Node, TensorType, Value
from graphopt.ir.row_ops import ALIGNED
from graphopt.passes.lower_moe.dense import NotDense, gating_of
from graphopt.passes.lower_moe.forms import WORTH
from graphopt.passes.lower_moe.gates import EXPERT, TOKEN, Fact, Gate, Gates

ALONG_OTHERS = frozenset({"slice", "split"})
"""Ops along one axis of their first operand, which is neither that of experts nor that of tokens."""


@dataclass(frozen=True)
class Stacked:
    """A sum over an axis of experts. `axes` has that axis for what has one, None for what all experts read."""

    graph: Graph
    ids: Value
    k: int
    experts: int
    total: Value
    root: Call
    gating: tuple[Call, ...]
    calls: tuple[Call, ...]
    axes: dict[Value, int | None]
    leaves: tuple[Value, ...]
    """What is read with a row for each token."""
    rest: tuple[Value, ...] = ()

    @property
    def nodes(self) -> list[Node]:
        chosen = {c.node for c in (*self.gating, *self.calls, self.root)}
        return [n for n in self.graph.nodes() if n in chosen]

    def alone(self, value: Value) -> TensorType:
        """The type of `value` for one expert."""
        type_ = self.graph.type(value)
        assert type_ is not None and type_.shape is not None
        return TensorType(type_.dtype, without(type_.shape, self.axes.get(value)))


def without(shape: tuple[Any, ...], axis: int | None) -> tuple[Any, ...]:
    return shape if axis is None else (*shape[:axis], *shape[axis + 1 :])


def without_letter(part: str, axis: int | None) -> str:
    return part if axis is None else part[:axis] + part[axis + 1 :]


def letters(call: Call) -> tuple[list[str], str]:
    """The letters of the operands and of the result of an einsum. Raises NotDense."""
    given, arrow, made = call.fields["equation"].replace(" ", "").partition("->")
    if not arrow or "." in given or any(len({*part}) < len(part) for part in given.split(",")):
        raise NotDense(f"an einsum {call.fields['equation']}")
    return given.split(","), made


def stacked_sums(graph: Graph, worth: float = WORTH) -> Iterator[Stacked | tuple[Call, str]]:
    """Every sum over an axis of gated experts; where one cannot be computed by expert, the sum and why."""
    gates = Gates(graph)
    order = {node: place for place, node in enumerate(graph.nodes())}
    for node in order:
        call = graph.call(node) if graph.key(node) in ("reduce_sum", "einsum") else None
        if not isinstance(call, Call):
            continue
        try:
            found = _root(gates, call)
            if found is not None:
                yield _Search(gates, call, *found, order).result(worth)
            elif (reason := _dispatched(gates, call)) is not None:
                yield call, reason
        except NotDense as error:
            if call.op == "reduce_sum":
                yield call, str(error)


def _root(gates: Gates, call: Call) -> tuple[Gate, list[int | None]] | None:
    """The gate of a sum over experts, and the axis of experts of what it sums."""
    if call.op == "reduce_sum":
        fact, axes = gates.of(call.operands[0]), call.fields["axes"]
        if not _gates_experts(fact) or len(axes) != 1 or call.fields["keepdims"] or fact.roles[axes[0]] != EXPERT:
            return None
        if len(fact.roles) < 3 or without(fact.roles, axes[0])[0] != TOKEN:  # A sum of gates, or tokens elsewhere.
            return None
        return fact, [axes[0]]
    for number, operand in enumerate(call.operands):
        fact = gates.of(operand)
        if _gates_experts(fact):
            given, made = letters(call)
            expert, token = (given[number][fact.roles.index(role)] for role in (EXPERT, TOKEN))
            if expert not in made and made[:1] == token:
                return fact, [part.index(expert) if expert in part else None for part in given]
    return None


def _dispatched(gates: Gates, call: Call) -> str | None:
    """Why tokens that an einsum puts into places of experts, [T, E, C] and [T, d] to [E, C, d], are left there."""
    if call.op != "einsum" or "." in call.fields["equation"]:
        return None
    given, made = letters(call)
    for part, operand in zip(given, call.operands, strict=True):
        fact, type_ = gates.of(operand), gates.type(operand)
        if not _gates_experts(fact) or type_ is None or type_.shape is None or len(part) != 3:
            continue
        expert, token = (part[fact.roles.index(role)] for role in (EXPERT, TOKEN))
        (place,) = {*part} - {expert, token}
        if token not in made and {expert, place} <= {*made} and any(token in p for p in given if p != part):
            size = type_.shape[part.index(place)]
            return f"each expert has {size} places, a capacity beyond which tokens are dropped: not lowered exactly"
    return None


def _gates_experts(fact: Fact) -> TypeGuard[Gate]:
    return isinstance(fact, Gate) and fact.source is not None and fact.off == 0 and {EXPERT, TOKEN} <= {*fact.roles}


class _Search:
    """Everything between a sum over experts and what tokens and weights it is of."""

    def __init__(self, gates: Gates, root: Call, gate: Gate, axes: list[int | None], order: dict[Node, int]) -> None:
        self.gates = gates
        self.graph = gates.graph
        self.root = root
        self.gate = gate
        self.order = order
        self.axes: dict[Value, int | None] = {}
        self.calls: dict[Node, Call] = {}
        total = self.graph.type(root.outputs[0])
        self.count = total.shape[0] if total is not None and total.shape else None
        self.k = gates.choices(gate.source)
        for operand, axis in zip(root.operands, axes, strict=True):
            self._walk(operand, axis)

    def result(self, worth: float) -> Stacked:
        graph, gate, total = self.graph, self.gate, self.graph.type(self.root.outputs[0])
        if self.k is None or gate.experts < worth * self.k:
            raise NotDense(f"{self.k} of {gate.experts} experts are picked, for which computing all is as fast")
        if total is None or total.shape is None or not all(isinstance(d, int) for d in total.shape[1:]):
            raise NotDense("the size of what is added up is not known")
        calls = sorted(self.calls.values(), key=lambda c: self.order[c.node])
        if not any(c.op in ("matmul", "einsum") for c in calls):
            raise NotDense("no product in it is of all experts")
        made = {o for c in calls for o in c.outputs if o is not None}
        inside = {*self.calls, self.root.node}
        for value in made:
            if graph.is_output(value) or any(u not in inside for u in graph.users(value)):
                raise NotDense(f"{graph.name(value)}, which all experts make, is read by something else")
        for call in (*calls, self.root):
            self._require_rows(call)
        leaves = tuple(v for v in self.axes if v not in made and graph.constant(v) is None)
        gating = gating_of(self.gates, list(leaves), gate.source, self.order)
        source, root = gate.source, self.root
        return Stacked(
            graph, source, self.k, gate.experts, root.outputs[0], root, gating, tuple(calls), self.axes, leaves
        )

    def _walk(self, value: Value | Literal | None, axis: int | None) -> None:
        if value is None or isinstance(value, Literal):
            return
        if self.axes.setdefault(value, axis) != axis:
            raise NotDense(f"{self.graph.name(value)} is read along several axes")
        fact, node = self.gates.of(value), self.graph.producer(value)
        if axis is None or node is None or node in self.calls or self.graph.constant(value) is not None:
            return
        call = self.graph.call(node)
        picked = isinstance(fact, Gate) and fact.source is not None
        if not isinstance(call, Call) or (picked and not self._weights(call)):
            return
        try:
            operands = self._operands(call, axis)
        except NotDense:
            type_ = self.graph.type(value)
            if type_ is None or type_.shape is None or without(type_.shape, axis)[:1] != (self.count,):
                raise
            return
        self.calls[node] = call
        for output in call.outputs:
            if output is not None:
                self.axes.setdefault(output, axis)
        for operand, along in operands:
            self._walk(operand, along)

    def _weights(self, call: Call) -> bool:
        """Whether `call` weights something by a gate, rather than making a gate."""
        return call.op == "mul" and any(not isinstance(self.gates.of(o), Gate) for o in call.operands) and (
            self._rank(call.outputs[0]) == 3 and self._size(call.outputs[0], 2) != 1
        )  # fmt: skip

    def _operands(self, call: Call, axis: int) -> list[tuple[Value | Literal | None, int | None]]:
        """The operands of `call` and their axes of experts, where `axis` is that of its result. Raises NotDense."""
        if call.op in ALIGNED:
            back = axis - self._rank(call.outputs[0])
            return [(o, self._aligned(o, back)) for o in call.operands]
        if call.op == "matmul" and axis == 0 and self._rank(call.outputs[0]) == 3:
            return [(o, self._aligned(o, -3)) for o in call.operands]
        if call.op == "einsum":
            given, made = letters(call)
            return [(o, p.index(made[axis]) if made[axis] in p else None)
                    for o, p in zip(call.operands, given, strict=True)]  # fmt: skip
        if call.op in ALONG_OTHERS and axis not in (call.fields.get("axes") or (call.fields.get("axis"),)):
            return [(call.operands[0], axis)]
        raise NotDense(f"{self.graph.node_name(call.node)}: {call.op} may mix experts")

    def _aligned(self, value: Value | Literal | None, back: int) -> int | None:
        if value is None or isinstance(value, Literal) or self._rank(value) < -back:
            return None
        axis = self._rank(value) + back
        if self._size(value, axis) != self.gate.experts:
            raise NotDense(f"{self.graph.name(value)} is the same for all experts along an axis of its own")
        return axis

    def _rank(self, value: Value) -> int:
        type_ = self.graph.type(value)
        if type_ is None or type_.rank is None:
            raise NotDense(f"the rank of {self.graph.name(value)} is not known")
        return type_.rank

    def _size(self, value: Value, axis: int) -> Dim:
        type_ = self.graph.type(value)
        return None if type_ is None or type_.shape is None else type_.shape[axis]

    # ---- tokens --------------------------------------------------------------------------------------------

    def _require_rows(self, call: Call) -> None:
        """Raise NotDense unless `call` treats each token by itself, tokens along axis 0 of what one expert reads."""
        name, values = self.graph.node_name(call.node), [o for o in call.operands if not isinstance(o, Literal | None)]
        shapes = [without(self._shape(v), self.axes[v]) for v in values]
        rows = [self.graph.constant(v) is None for v in values]
        if any(r and s[:1] != (self.count,) for r, s in zip(rows, shapes, strict=True)) or self.count is None:
            raise NotDense(f"{name}: what it reads has no axis of tokens first")
        if call.op == "einsum":
            given, made = letters(call)
            made = without_letter(made, self.axes.get(call.outputs[0]))
            parts = [without_letter(p, self.axes[v]) for p, v in zip(given, values, strict=True)]
            token = made[:1]
            right = all((p[:1] == token) if r else (token not in p) for p, r in zip(parts, rows, strict=True))
        elif call.op == "matmul":
            right = rows == [True, False] and len(shapes[0]) == 2
        elif call.op in ALIGNED:
            rank = len(without(self._shape(call.outputs[0]), self.axes[call.outputs[0]]))
            right = all(len(s) == rank if r else len(s) < rank or s[0] == 1 for s, r in zip(shapes, rows, strict=True))
        elif call.op == "reduce_sum":
            right = True
        else:
            axis = self.axes[values[0]]
            right = 0 not in (a - (axis is not None and a > axis) for a in along(call))
        if not right:
            raise NotDense(f"{name}: {call.op} may mix tokens")

    def _shape(self, value: Value) -> tuple[Dim, ...]:
        self._rank(value)
        type_ = self.graph.type(value)
        assert type_ is not None and type_.shape is not None
        return type_.shape


def along(call: Call) -> tuple[int, ...]:
    """The axes that a slice or a split is along."""
    return call.fields["axes"] if call.op == "slice" else (call.fields["axis"],)
