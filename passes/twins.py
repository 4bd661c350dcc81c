"""Which values of a graph are the same in both halves of the batch, and how some of them are computed once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.ir.graph import Call, CannotEmit, Graph, Literal, Node, TensorType, Value
from graphopt.ir.weights import as_ref
from graphopt.passes.twin_rules import Fields, Kind, Site, Sizes, half_call
from graphopt.program.stages import is_fixed, is_stored, reads


@dataclass(frozen=True)
class Twins:
    """What is known of a graph, from what is known of its inputs."""

    graph: Graph
    kinds: Mapping[Value, Kind]
    calls: Mapping[Node, tuple[Call, Fields]]
    """The nodes that could compute halves, and how their fields change."""

    def kind(self, value: Value) -> Kind:
        return _kind(self.graph, self.kinds, value)


def find_twins(graph: Graph, inputs: Mapping[Value, Kind]) -> Twins:
    """Linear in the size of the graph. An input that `inputs` does not name is OTHER."""
    kinds: dict[Value, Kind] = {v: inputs.get(v, Kind.OTHER) for v in graph.inputs()}
    calls: dict[Node, tuple[Call, Fields]] = {}
    for node in graph.nodes():
        if is_stored(graph, node):
            continue
        read = {_kind(graph, kinds, v) for v in reads(graph, node, kinds)}
        kind = Kind.WHOLE if graph.is_pure(node) and read <= {Kind.WHOLE} else Kind.OTHER
        call = graph.call(node) if graph.is_pure(node) and Kind.OTHER not in read else None
        wanted = Kind.TWIN in read or kind is Kind.WHOLE and isinstance(call, Call) and call.op == "expand"
        if isinstance(call, Call) and wanted and (fields := _halved(graph, kinds, call)) is not None:
            kind, calls[node] = Kind.TWIN, (call, fields)
        kinds.update((v, kind) for v in graph.results(node) if v is not None)
    return Twins(graph, kinds, calls)


def _kind(graph: Graph, kinds: Mapping[Value, Kind], value: Value) -> Kind:
    if isinstance(value, Literal):
        return Kind.WHOLE
    if (known := kinds.get(value)) is not None:
        return known
    return Kind.WHOLE if is_fixed(graph, value) else Kind.OTHER


def _halved(graph: Graph, kinds: Mapping[Value, Kind], call: Call) -> Fields | None:
    """How the fields of `call` change on halves; None if its results may be no twins."""
    shapes = [() if o is None else sizes_of(graph, o) for o in call.operands]
    results = [None if o is None else sizes_of(graph, o) for o in call.outputs]
    if any(s is None for s in (*shapes, *results)):
        return None
    of = tuple(None if o is None else _kind(graph, kinds, o) for o in call.operands)
    return half_call(Site(call.op, of, tuple(shapes), call.fields, tuple(results)))  # type: ignore[arg-type]


def sizes_of(graph: Graph, value: Value) -> Sizes | None:
    """The sizes of a value, if all are known."""
    if isinstance(value, Literal):
        return ()
    type_ = graph.type(value)
    if type_ is None or type_.shape is None:
        return None
    sizes = tuple(d for d in type_.shape if isinstance(d, int))
    return sizes if len(sizes) == len(type_.shape) else None


def half_type(graph: Graph, value: Value) -> TensorType:
    """The type of one half of a twin."""
    type_, sizes = graph.type(value), sizes_of(graph, value)
    assert type_ is not None and sizes
    return TensorType(type_.dtype, (sizes[0] // 2, *sizes[1:]))


def write_halves(twins: Twins, nodes: Collection[Node], kept: Sequence[Value]) -> tuple[list[Node], list[Value]]:
    """Let the graph compute one half of what `nodes` do, and two copies of it in the place of each of `kept`.

    What nothing reads any more stays; it is for the caller to remove.

    Returns:
        The nodes that were written, and the copies.

    Raises:
        CannotEmit: the storage cannot say a node on halves.
    """
    writer = _Halves(twins)
    for node in [n for n in twins.graph.nodes() if n in nodes]:
        writer.write(node)
    return writer.written, [writer.double(value) for value in kept]


class _Halves:
    def __init__(self, twins: Twins) -> None:
        self.written: list[Node] = []
        self._graph = twins.graph
        self._twins = twins
        self._halves: dict[Value, Value] = {}

    def write(self, node: Node) -> None:
        """`node` on halves, in front of it."""
        call, changed = self._twins.calls[node]
        operands = [None if o is None else self._operand(o, node) for o in call.operands]
        fields = {**call.fields, **changed}
        if "shape" in changed and len(operands) > 1 and operands[1] is not None:
            sizes = as_ref(np.asarray(changed["shape"], np.int64))
            operands[1], fields["shape"] = self._graph.add_constant(sizes, "half_sizes")[0], None
        types = [None if o is None else half_type(self._graph, o) for o in call.outputs]
        made = self._insert(call.op, operands, fields, node, types)
        self._halves.update((o, half) for o, half in zip(call.outputs, made, strict=True) if o is not None)

    def double(self, value: Value) -> Value:
        """Let all readers of `value` read two copies of its half."""
        node, half = self._graph.producer(value), self._halves[value]
        (twice,) = self._insert("concat", [half, half], {"axis": 0}, node, [self._graph.type(value)])
        self._graph.replace(value, twice)
        return twice

    def _operand(self, value: Value, before: Node) -> Value:
        if self._twins.kind(value) is not Kind.TWIN:
            return value
        if value not in self._halves:  # an input
            half = half_type(self._graph, value)
            fields = {"axes": (0,), "starts": (0,), "ends": (half.shape[0],), "steps": (1,)}  # type: ignore[index]
            self._halves[value] = self._insert("slice", [value], fields, before, [half])[0]
        return self._halves[value]

    def _insert(
        self, op: str, operands: Sequence[Value | None], fields: Mapping[str, Any], before: Node, types: Sequence[Any]
    ) -> list[Value]:
        operand_types = [None if o is None else self._graph.type(o) for o in operands]
        if (reason := self._graph.can_emit(op, fields, operand_types)) is not None:
            raise CannotEmit(f"{op} of halves: {reason}")
        values, nodes, _ = self._graph.insert(op, operands, fields, before=before, types=types)
        self.written += nodes
        return values
