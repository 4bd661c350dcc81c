"""A sum over all experts as a sum over those that each token picked, in ONNX:

    rows = stable sort of the experts of all choices;  y_e = term_e of the tokens that picked e
    total = rest + the sum over k of the concatenation of all y_e, put back in the order of the choices

The terms stay what they are, with the weights that they have, and compute fewer rows; gates of those rows are among
what they read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np

from graphopt.ir.graph import Call, Literal, TensorType, Value
from graphopt.ir.weights import ArrayRef
from graphopt.passes.lower_moe.by_expert import ExpertWriter
from graphopt.passes.lower_moe.dense import Dense
from graphopt.passes.lower_moe.dense_stacks import Stacked
from graphopt.rewrite.journal import Journal


def write_picked_terms(dense: Dense, journal: Journal) -> None:
    """Replace the total of `dense`."""
    writer = _TermWriter(dense, journal)
    journal.replace(dense.total, writer.total())
    journal.doom(dense.nodes)


class Writer(ExpertWriter, ABC):
    """What sums of terms and of stacks have in common."""

    def __init__(self, dense: Dense | Stacked, journal: Journal) -> None:
        super().__init__(dense.graph, journal, dense.nodes[-1], dense.experts)
        self.dense = dense
        self.values: dict[Value, Value] = {}
        """What the gating is now."""

    def total(self) -> Value:
        dense = self.dense
        for call in dense.gating:
            types = [None if o is None else self.graph.type(o) for o in call.outputs]
            self.again(call, call.fields, self.values, types)
        numbers = TensorType("int64", (None,))
        ids = self.insert("reshape", [self.values[dense.ids]], {"shape": (-1,)}, numbers)
        order, inverse, counts = self.orders(ids)
        portions = self.portions(self._tokens(order), counts, numbers)
        pieces = [self.term(expert, rows) for expert, rows in enumerate(portions)]
        result = self.graph.type(dense.total)
        assert result is not None and result.shape is not None
        flat = TensorType(result.dtype, (None, *result.shape[1:]))
        joined = self.insert("concat", pieces, {"axis": 0}, flat)
        total = self.insert("gather", [joined, inverse], {"axis": 0}, flat)
        if dense.k > 1:
            by_token = (dense.k, *result.shape[1:])
            kind = TensorType(result.dtype, (result.shape[0], *by_token))
            total = self.insert("reshape", [total], {"shape": (-1, *by_token)}, kind)
            total = self.insert("reduce_sum", [total], {"axes": (1,), "keepdims": False}, result)
        for value in dense.rest:
            total = self.insert("add", [total, value], {}, result)
        return total

    def _tokens(self, order: Value) -> Value:
        """The token of each choice."""
        flat = TensorType("int64", (None,))
        k = self.journal.add_constant(ArrayRef(np.asarray(self.dense.k, np.int64)), "choices")
        return self.insert("div", [order, k], {"rounding": "trunc"}, flat)

    def number(self, value: int) -> Value:
        return self.journal.add_constant(ArrayRef(np.asarray(value, np.int64)), "expert")

    @abstractmethod
    def term(self, expert: int, rows: Value) -> Value:
        """What `expert` adds for the tokens `rows`."""

    def again(
        self, call: Call, fields: Mapping[str, object], values: dict[Value, Value], types: list[TensorType | None]
    ) -> None:
        """The same op on other values."""
        operands = [o if o is None or isinstance(o, Literal) else values.get(o, o) for o in call.operands]
        written = self.journal.insert(call.op, operands, fields, before=self.anchor, types=types)
        values.update({o: w for o, w in zip(call.outputs, written, strict=True) if o is not None})


class _TermWriter(Writer):
    def __init__(self, dense: Dense, journal: Journal) -> None:
        super().__init__(dense, journal)
        self.terms = dense.terms

    def term(self, expert: int, rows: Value) -> Value:
        term, values = self.terms[expert], dict(self.values)
        for value in term.inputs:
            given = self.values.get(value, value)
            values[value] = self.insert("gather", [given, rows], {"axis": 0}, self._portion(value))
        for call in term.calls:
            fields = dict(call.fields)
            if call.op == "reshape":
                fields["shape"] = (-1, *(self._portion(call.outputs[0]).shape or ())[1:])
            self.again(call, fields, values, [None if o is None else self._portion(o) for o in call.outputs])
        return values[term.value]

    def _portion(self, value: Value) -> TensorType:
        """The type of `value` for some of its rows."""
        known = self.graph.type(value)
        assert known is not None and known.shape is not None
        return TensorType(known.dtype, (None, *known.shape[1:]))
