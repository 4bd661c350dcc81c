"""A graph of one row as a graph of all rows: the rules of `batching_rules` applied node by node."""

from __future__ import annotations

from collections.abc import Collection

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Call, Graph, Literal, Node, TensorType, Value
from graphopt.ir.scratch import ScratchGraph
from graphopt.passes.batching_rules import ROWS, RULES, Operand, RowsWriter, Site, Sizes
from graphopt.program.stages import is_stored


def batched_graph(graph: Graph, per_row: Collection[Value]) -> ScratchGraph:
    """`graph` for all rows at once.

    The inputs `per_row` and every output get a leading axis of symbolic size "rows"; other inputs stay as they are.
    Values that depend on no input of `per_row` are computed once and repeated where all rows need them.

    Raises:
        UnsupportedError: a node cannot be read or has no batching rule, a size is not known, or nothing differs from
            row to row; with the node's name.
    """
    return _Batching(graph, per_row).run()


class _Batching:
    def __init__(self, graph: Graph, per_row: Collection[Value]) -> None:
        self._graph = graph
        self._scratch = ScratchGraph()
        self._write = RowsWriter(self._scratch)
        self._values: dict[Value, Operand] = {}
        for value in graph.inputs():
            self._add_input(value, value in per_row)

    def run(self) -> ScratchGraph:
        graph = self._graph
        if not any(o.batched for o in self._values.values()):
            raise UnsupportedError("it does not read the timestep")
        for node in graph.nodes():
            if not is_stored(graph, node):
                self._add_node(node)
        for value in graph.outputs():
            self._scratch.add_output(self._write.repeated(self._operand(value)).value)
        return self._scratch

    def _add_input(self, value: Value, batched: bool) -> None:
        dtype, shape = self._type(value)
        type_ = TensorType(dtype, (ROWS, *shape) if batched else shape)
        operand = Operand(self._scratch.add_input(type_, self._graph.name(value)), dtype, shape, batched)
        self._values[value] = operand
        if batched:
            self._write.counts(operand)

    def _add_node(self, node: Node) -> None:
        graph = self._graph
        call = graph.call(node)
        if not isinstance(call, Call):
            raise UnsupportedError(f"node {graph.node_name(node)} is {graph.raw_name(node)}: {call.reason}")
        operands = tuple(None if o is None else self._operand(o) for o in call.operands)
        results = tuple(self._type(o) for o in self._outputs(call))
        site = Site(call.op, operands, call.fields, results)
        if not any(o.batched for o in operands if o is not None):
            outputs = self._write.call(call.op, operands, results, call.fields, ())
        elif (rule := RULES.get(call.op)) is None:
            raise UnsupportedError(f"node {graph.node_name(node)} is {call.op}, which has no batching rule")
        else:
            try:
                outputs = rule(self._write, site)
            except UnsupportedError as error:
                raise UnsupportedError(f"node {graph.node_name(node)} is {error}") from None
        self._values.update(zip(call.outputs, outputs, strict=True))

    def _outputs(self, call: Call) -> list[Value]:
        if None in call.outputs:
            raise UnsupportedError(f"node {self._graph.node_name(call.node)} has an output that nothing can refer to")
        return list(call.outputs)

    def _operand(self, value: Value) -> Operand:
        if isinstance(value, Literal):
            return Operand(value, value.dtype, (), False)
        if value not in self._values:
            data = self._graph.constant(value)
            if data is None:
                raise UnsupportedError(f"{self._graph.name(value)} is neither computed nor constant")
            constant = self._scratch.add_constant(data, self._graph.name(value))[0]
            constant.name = self._graph.name(value)
            self._values[value] = Operand(constant, data.dtype, data.shape, False)
        return self._values[value]

    def _type(self, value: Value) -> tuple[str, Sizes]:
        type_ = self._graph.type(value)
        sizes = () if type_ is None or type_.shape is None else type_.shape
        shape = tuple(d for d in sizes if isinstance(d, int))
        if type_ is None or type_.shape is None or len(shape) < len(sizes):
            raise UnsupportedError(f"{self._graph.name(value)} is {type_ or 'of unknown type'}: give static sizes")
        return type_.dtype, shape
