"""Copying readable nodes of any storage into a scratch graph, as they are or widened to float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphopt.ir.graph import Call, CannotEmit, Graph, Literal, Node, TensorType, Value
from graphopt.ir.rowwise import is_rowwise, rows
from graphopt.ir.scratch import ScratchGraph, ScratchNode, float64_leaf
from graphopt.ir.weights import FLOATS, TensorRef


def widen(type_: TensorType | None) -> TensorType | None:
    """`type_` with any floating-point dtype replaced by float64."""
    if type_ is None or type_.dtype not in FLOATS:
        return type_
    return TensorType("float64", type_.shape)


class WidenedRef(TensorRef):
    """A weight seen as float64, so that a rule run on a float64 twin computes its new weights in float64."""

    def __init__(self, data: TensorRef) -> None:
        self.data = data
        self.dtype = "float64"
        self.shape = data.shape

    def numpy(self) -> Any:
        return float64_leaf(self.data)

    def rows(self, start: int, stop: int) -> Any:
        return rows(self.data, start, stop) if is_rowwise(self.data) else self.numpy()[start:stop]

    @property
    def identity(self) -> object:
        return self.data.identity


def _widened_fields(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Fields whose dtype, if they name a floating-point one, is float64: what everything is cast to on a twin."""
    return {**fields, "dtype": "float64"} if fields.get("dtype") in FLOATS else fields


def transcribe(
    graph: Graph,
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    *,
    wide: bool = False,
    declared: Mapping[Value, TensorRef] | None = None,
) -> tuple[ScratchGraph, dict[Node, ScratchNode]]:
    """Copy `nodes`, given in topological order, into a ScratchGraph; also tells which node became which.

    With `wide`, floating-point types and weights become float64. `declared` says what some weights are replaced by.
    Raises CannotEmit naming the first node that cannot be read.
    """
    copier = _Copier(graph, wide, declared or {})
    for value in inputs:
        copier.add_input(value)
    for node in nodes:
        copier.add_node(node)
    for value in outputs:
        copier.scratch.add_output(copier.fetch(value))
    return copier.scratch, copier.nodes


class _Copier:
    def __init__(self, graph: Graph, wide: bool, declared: Mapping[Value, TensorRef]) -> None:
        self.graph = graph
        self.wide = wide
        self.declared = declared
        self.scratch = ScratchGraph()
        self.nodes: dict[Node, ScratchNode] = {}
        self.values: dict[Value, Value] = {}

    def add_input(self, value: Value) -> None:
        self.values[value] = self.scratch.add_input(self._type(value), self.graph.name(value))

    def add_node(self, node: Node) -> None:
        call = self.graph.call(node)
        if not isinstance(call, Call):
            raise CannotEmit(f"{self.graph.raw_name(node)}: {call.reason}")
        operands = [None if o is None else self.fetch(o) for o in call.operands]
        types = [None if o is None else self._type(o) for o in call.outputs]
        fields = _widened_fields(call.fields) if self.wide else call.fields
        copy = self.nodes[node] = self.scratch.append_call(call.op, operands, fields, types)
        self.values.update({o: c for o, c in zip(call.outputs, copy.call.outputs, strict=True) if o is not None})

    def fetch(self, value: Value) -> Value:
        if value not in self.values:
            self.values[value] = self._constant(value)
        return self.values[value]

    def _constant(self, value: Value) -> Value:
        data = self.declared.get(value) or self.graph.constant(value)
        if data is None:
            raise CannotEmit(f"{self.graph.name(value)} is neither computed in the fragment nor constant")
        widened = self.wide and data.dtype in FLOATS
        if isinstance(value, Literal):
            return Literal(value.value, "float64") if widened else value
        kept: TensorRef = WidenedRef(data) if widened else data
        return self.scratch.add_constant(kept, "c")[0]

    def _type(self, value: Value) -> TensorType | None:
        known = self.graph.type(value)
        return widen(known) if self.wide else known
