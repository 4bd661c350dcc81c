"""What each expert of a dense mixture in one tensor does to the tokens that picked it; see dense_write.py."""

from __future__ import annotations

from typing import Any

from graphopt.ir.graph import Call, Literal, TensorType, Value
from graphopt.passes.lower_moe.dense_stacks import Stacked, along, letters, without_letter
from graphopt.passes.lower_moe.dense_write import Writer
from graphopt.passes.lower_moe.stacks import ExpertRef
from graphopt.rewrite.journal import Journal


def write_picked_stacks(stacked: Stacked, journal: Journal) -> None:
    """Replace the total of `stacked`."""
    writer = _Writer(stacked, journal)
    journal.replace(stacked.total, writer.total())
    journal.doom(stacked.nodes)


class _Writer(Writer):
    def __init__(self, stacked: Stacked, journal: Journal) -> None:
        super().__init__(stacked, journal)
        self.stacked = stacked

    def term(self, expert: int, rows: Value) -> Value:
        stacked, values = self.stacked, dict[Value, Value]()
        for value in stacked.leaves:
            given, axis, type_ = self.values.get(value, value), stacked.axes[value], self._portion(value)
            if axis is not None:
                given = self.insert("gather", [given, self.number(expert)], {"axis": axis}, stacked.alone(value))
            values[value] = self.insert("gather", [given, rows], {"axis": 0}, type_)
        for value, axis in stacked.axes.items():
            data = self.graph.constant(value)
            if data is not None and axis is not None:
                front = data if axis == 0 else data.transpose(axis, *(a for a in range(data.ndim) if a != axis))
                slice_ = ExpertRef(front, expert, tuple(range(data.ndim - 1)))
                values[value] = self.journal.add_constant(slice_, "expert")
        for call in stacked.calls:
            types = [None if o is None else self._portion(o) for o in call.outputs]
            self.again(call, self._fields(call), values, types)
        if stacked.root.op == "reduce_sum":
            return values[stacked.root.operands[0]]
        self.again(stacked.root, self._fields(stacked.root), values, [self._portion(stacked.total)])
        return values[stacked.total]

    def _fields(self, call: Call) -> dict[str, Any]:
        fields, axes = dict(call.fields), self.stacked.axes
        if call.op == "einsum":
            given, made = letters(call)
            parts = [without_letter(p, axes[o]) for p, o in zip(given, call.operands, strict=True)]
            fields["equation"] = ",".join(parts) + "->" + without_letter(made, axes.get(call.outputs[0]))
        elif call.op in ("slice", "split"):
            operand = call.operands[0]
            axis = None if isinstance(operand, Literal | None) else axes[operand]
            shifted = tuple(a - (axis is not None and a > axis) for a in along(call))
            fields.update({"axes": shifted} if call.op == "slice" else {"axis": shifted[0]})
        return fields

    def _portion(self, value: Value) -> TensorType:
        type_ = self.stacked.alone(value)
        return TensorType(type_.dtype, (None, *(type_.shape or ())[1:]))
