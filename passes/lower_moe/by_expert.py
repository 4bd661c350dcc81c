"""Rows in the order of their experts, in ONNX:

    order = stable sort of ids;  inverse = sort of order;  counts[e] = how many ids are e;  Split by counts

Split takes sizes that are known at run time, zero among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.ir.graph import Graph, Node, TensorType, Value
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.journal import Journal


class ExpertWriter:
    """Writes before `anchor` what is computed by each of `experts` experts."""

    def __init__(self, graph: Graph, journal: Journal, anchor: Node, experts: int) -> None:
        self.graph = graph
        self.journal = journal
        self.anchor = anchor
        self.experts = experts

    def orders(self, ids: Value) -> tuple[Value, Value, Value]:
        """The rows in the order of their experts, where each row is then, and how many each expert has."""
        order = self.sorted(ids)
        return order, self.sorted(order), self.counts(ids)

    def in_range(self, ids: Value) -> Value:
        """Ids as they count from the front: a gather takes negative ones as well."""
        known = self.graph.type(ids)
        assert known is not None
        wide = ids
        if known.dtype != "int64":
            wide = self.insert("cast", [ids], {"dtype": "int64"}, TensorType("int64", known.shape))
        return self.insert(
            "mod", [wide, self.numbers(self.experts)], {"fmod": False}, TensorType("int64", known.shape)
        )

    def sorted(self, x: Value) -> Value:
        """The places of the numbers `x` in their order, of equals the first in front."""
        type_, fields = self.graph.type(x), {"axis": 0, "largest": 0, "sorted": 1}
        size = self.insert("shape", [x], {}, TensorType("int64", (1,)))
        return self.journal.insert("ai.onnx::TopK", [x, size], fields, before=self.anchor, types=[type_, type_])[1]

    def counts(self, ids: Value) -> Value:
        """How many rows each expert has."""
        known = self.graph.type(ids)
        assert known is not None and known.shape is not None
        rows = known.shape[0]
        column = self.insert("unsqueeze", [ids], {"axes": (1,)}, TensorType("int64", (rows, 1)))
        numbers = self.numbers(*range(self.experts))
        hits = self.insert("equal", [column, numbers], {}, TensorType("bool", (rows, self.experts)))
        ones = self.insert("cast", [hits], {"dtype": "int64"}, TensorType("int64", (rows, self.experts)))
        fields = {"axes": (0,), "keepdims": False}
        return self.insert("reduce_sum", [ones], fields, TensorType("int64", (self.experts,)))

    def portions(self, ordered: Value, counts: Value, type_: TensorType) -> Sequence[Value]:
        """The rows of `ordered` that each expert has; `type_` is that of one such portion."""
        if self.experts == 1:
            return [ordered]
        types = [type_] * self.experts
        return self.journal.insert("ai.onnx::Split", [ordered, counts], {"axis": 0}, before=self.anchor, types=types)

    def numbers(self, *values: int) -> Value:
        return self.journal.add_constant(ArrayRef(np.asarray(values, np.int64)), "experts")

    def insert(
        self, op: str, operands: Sequence[Value | None], fields: Mapping[str, object], type_: TensorType | None
    ) -> Value:
        return self.journal.insert(op, operands, fields, before=self.anchor, types=[type_])[0]
