"""Experts in a loop over those that have rows, their weights in the stacks that hold all, in ONNX:

    order = stable sort of the experts of the rows;  for each expert e that has some, from start[e] to end[e] of them:
        y[order[start:end]] = f(x[order[start:end]]; W[e])

A graph of one size for any number of experts. What it costs: the weights of an expert are copied out of the stack when
it is used, and no runtime packs them beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.ir.graph import TensorType, Value
from graphopt.ir.onnx import dtypes
from graphopt.ir.weights import ArrayRef
from graphopt.passes.lower_moe.by_expert import ExpertWriter
from graphopt.passes.lower_moe.experts import Body
from graphopt.passes.lower_moe.picked import Picked
from graphopt.passes.lower_moe.stacks import Stack
from graphopt.rewrite.journal import Journal

COUNT = TensorType("int64", ())


def write_loop(picked: Picked, journal: Journal) -> None:
    """Replace the outputs of `picked` by what a loop over its experts computes."""
    writer = ExpertWriter(picked.graph, journal, picked.anchor, picked.experts)
    made = _Loop(writer, picked).write()
    for output, value in zip(picked.outputs, made, strict=True):
        journal.replace(output, value)
    journal.doom(picked.nodes)


class _Loop:
    def __init__(self, writer: ExpertWriter, picked: Picked) -> None:
        self.writer = writer
        self.picked = picked
        self.graph = picked.graph
        self.stacks: dict[tuple[int, tuple[int, ...]], Value] = {}

    def write(self) -> Sequence[Value]:
        import onnx_ir as ir

        writer, picked = self.writer, self.picked
        ids = writer.in_range(picked.ids)
        self.order, counts = writer.sorted(ids), writer.counts(ids)
        each = TensorType("int64", (writer.experts,))
        fields = {"axis": 0, "exclusive": False, "reverse": False}
        self.ends = writer.insert("cumsum", [counts], fields, each)
        self.starts = writer.insert("sub", [self.ends, counts], {}, each)
        found = writer.insert("ai.onnx::NonZero", [counts], {}, TensorType("int64", (1, None)))
        self.busy = writer.insert("squeeze", [found], {"axes": (0,)}, TensorType("int64", (None,)))
        rounds = writer.insert("ai.onnx::Size", [self.busy], {}, COUNT)
        going = writer.journal.add_constant(ArrayRef(np.asarray(True)), "going")
        self.ordered = {value: self._ordered(value) for value in picked.inputs}
        results = [self._nothing(output) for output in picked.outputs]
        body = ir.AttrGraph("body", self._body())
        types = [self.graph.type(output) for output in picked.outputs]
        operands = [rounds, going, *results]
        return writer.journal.insert(
            "ai.onnx::Loop", operands, {"body": body}, before=writer.anchor, types=types
        )

    def _ordered(self, value: Value) -> Value:
        return self.writer.insert("gather", [value, self.order], {"axis": 0}, self.graph.type(value))

    def _nothing(self, output: Value) -> Value:
        """Zeros of the form of `output`."""
        writer, type_ = self.writer, self.graph.type(output)
        assert type_ is not None and type_.shape is not None
        rows = writer.insert("shape", [self.order], {}, TensorType("int64", (1,)))
        inner = writer.numbers(*(d for d in type_.shape[1:] if isinstance(d, int)))
        shape = writer.insert("concat", [rows, inner], {"axis": 0}, TensorType("int64", (len(type_.shape),)))
        zero = {"value": ArrayRef(np.zeros(1, np.dtype(type_.dtype)))}
        return writer.insert("ai.onnx::ConstantOfShape", [shape], zero, type_)

    def _body(self) -> Any:
        """The graph of one round: its inputs are the round, whether it goes on, and the results so far."""
        import onnx_ir as ir

        graph: Any = self.graph
        names, types = graph.shared.names, [COUNT, TensorType("bool", ()), *map(graph.type, self.picked.outputs)]
        inputs = [ir.Value(name=names.fresh("loop_input")) for _ in types]
        goes_on = ir.Value(name=names.fresh("goes_on"))
        last = ir.Node("", "Identity", [inputs[1]], outputs=[goes_on], name=names.fresh("goes_on"))
        body = ir.Graph(inputs, [goes_on], nodes=[last], opset_imports=dict(graph.opsets), name="experts")
        for value, type_ in zip(inputs, types, strict=True):
            dtypes.set_type(value, type_)
            graph.shared.give_type(value, type_)
        region = graph.shared_region(body)
        writer = ExpertWriter(region, Journal(region), last, self.writer.experts)
        body.outputs.extend(self._round(writer, inputs[0], inputs[2:]))
        return body

    def _round(self, writer: ExpertWriter, number: Value, results: Sequence[Value]) -> list[Value]:
        one = TensorType("int64", (1,))
        column = writer.insert("reshape", [number, None], {"shape": (1,)}, one)
        expert = writer.insert("gather", [self.busy, column], {"axis": 0}, one)
        bounds = [writer.insert("gather", [table, expert], {"axis": 0}, one) for table in (self.starts, self.ends)]
        rows = self._part(writer, self.order, bounds)
        parts = {value: self._part(writer, ordered, bounds) for value, ordered in self.ordered.items()}
        made = _Round(self, writer, expert, parts).write()
        places = writer.insert("unsqueeze", [rows], {"axes": (1,)}, TensorType("int64", (None, 1)))
        new = []
        for result, output in zip(results, self.picked.outputs, strict=True):
            operands = [result, places, made[output]]
            new.append(writer.insert("ai.onnx::ScatterND", operands, {}, self.graph.type(output)))
        return new

    def _part(self, writer: ExpertWriter, value: Value, bounds: Sequence[Value]) -> Value:
        known = self.graph.type(value)
        assert known is not None and known.shape is not None
        operands = [value, *bounds, writer.numbers(0)]
        return writer.insert("ai.onnx::Slice", operands, {}, TensorType(known.dtype, (None, *known.shape[1:])))

    def stacked(self, stack: Stack, perm: tuple[int, ...]) -> Value:
        """All of a stack with its axes in this order, as one constant around the loop."""
        key = id(stack.data), perm
        if key not in self.stacks:
            data = stack.data if perm == tuple(range(len(perm))) else stack.data.transpose(*perm)
            self.stacks[key] = self.writer.journal.add_constant(data, "experts")
        return self.stacks[key]


class _Round(Body):
    """What the expert of one round does; its weights are read from the stacks."""

    def __init__(self, loop: _Loop, writer: ExpertWriter, number: Value, parts: Mapping[Value, Value]) -> None:
        super().__init__(writer, loop.picked.stacks, loop.picked.calls, 0, parts)
        self.loop = loop
        self.number = number

    def _one_row(self, stack: Stack) -> Value:
        type_ = TensorType(stack.data.dtype, (1, *stack.shape[1:]))
        return self.insert("gather", [self.loop.stacked(stack, stack.perm), self.number], {"axis": 0}, type_)

    def _weight(self, stack: Stack, *, transposed: bool = False) -> Value:
        inner = tuple(reversed(stack.perm[1:])) if transposed else stack.perm[1:]
        turned = Stack(stack.data, (0, *inner))
        type_ = TensorType(stack.data.dtype, turned.shape[1:])
        return self.insert("squeeze", [self._one_row(turned)], {"axes": (0,)}, type_)
