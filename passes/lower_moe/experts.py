"""One product an expert, of the rows that are its own, in ONNX:

    order = stable sort of the experts of the rows;  x = x[order], split by how many rows each expert has
    y_e = act(x_e @ W1_e) @ W2_e;  y = concatenation of all y_e, put back in order

Split takes sizes that are known at run time, zero among them, and a product of no rows is nothing, so that no branch is
needed; nothing is added up in an order that varies. The matrix of every expert is a weight of its own, which a runtime
packs once, and the stack of all leaves the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphopt.ir.graph import Call, Literal, TensorType, Value
from graphopt.ir.weights import TensorRef
from graphopt.passes.lower_moe.by_expert import ExpertWriter
from graphopt.passes.lower_moe.picked import Picked
from graphopt.passes.lower_moe.stacks import Stack
from graphopt.rewrite.journal import Journal


def write_experts(picked: Picked, journal: Journal) -> None:
    """Replace the outputs of `picked` by what its experts compute."""
    _Writer(picked, journal).write()
    journal.doom(picked.nodes)


class _Writer(ExpertWriter):
    def __init__(self, picked: Picked, journal: Journal) -> None:
        super().__init__(picked.graph, journal, picked.anchor, picked.experts)
        self.picked = picked

    def write(self) -> None:
        picked, experts = self.picked, self.picked.experts
        ids = self.in_range(picked.ids)
        order, inverse, counts = self.orders(ids)
        parts = {value: self._split(value, order, counts) for value in picked.inputs}
        results: dict[Value, list[Value]] = {output: [] for output in picked.outputs}
        for expert in range(experts):
            given = {value: pieces[expert] for value, pieces in parts.items()}
            made = Body(self, picked.stacks, picked.calls, expert, given).write()
            for output in picked.outputs:
                results[output].append(made[output])
        for output, pieces in results.items():
            joined = self.insert("concat", pieces, {"axis": 0}, self.graph.type(output))
            self.journal.replace(output, self.insert("gather", [joined, inverse], {"axis": 0}, self.graph.type(output)))

    def _split(self, value: Value, order: Value, counts: Value) -> Sequence[Value]:
        """The rows of `value` that each expert has."""
        known = self.graph.type(value)
        assert known is not None and known.shape is not None
        ordered = self.insert("gather", [value, order], {"axis": 0}, known)
        return self.portions(ordered, counts, TensorType(known.dtype, (None, *known.shape[1:])))


class Body:
    """What one expert does: `calls` on the values of `parts`, with its own weights of `stacks`."""

    def __init__(
        self, writer: ExpertWriter, stacks: Mapping[Value, Stack], calls: Sequence[Call], expert: int,
        parts: Mapping[Value, Value],
    ) -> None:  # fmt: skip
        self.writer = writer
        self.graph = writer.graph
        self.stacks = stacks
        self.calls = calls
        self.expert = expert
        self.values: dict[Value, Value] = dict(parts)
        self.flat: dict[tuple[Value, int], Value] = {}
        """What a value was before an axis of size 1 was added to it."""

    def write(self) -> dict[Value, Value]:
        for call in self.calls:
            self._write(call)
        return self.values

    def _write(self, call: Call) -> None:
        left, right = (*call.operands, None)[:2]
        if call.op == "matmul" and (left in self.stacks) != (right in self.stacks):
            self.values[call.outputs[0]] = self._product(call)
        elif call.op == "unsqueeze" and len(call.fields["axes"]) == 1:
            self.values[call.outputs[0]] = self._unsqueezed(self._value(left), call.fields["axes"][0], call.outputs[0])
        elif call.op == "squeeze" and (self._value(left), *call.fields["axes"]) in self.flat:
            self.values[call.outputs[0]] = self.flat[self._value(left), *call.fields["axes"]]
        else:
            self._again(call)

    def _value(self, value: Value | None) -> Value | None:
        if value is None or isinstance(value, Literal):
            return value
        if value in self.stacks and value not in self.values:
            self.values[value] = self._one_row(self.stacks[value])
        return self.values.get(value, value)

    def _again(self, call: Call) -> None:
        """The same op on the rows of this expert."""
        fields = dict(call.fields)
        if call.op == "reshape":
            fields["shape"] = (-1, *self._inner(call.outputs[0]))
        types = [None if o is None else self._type(o) for o in call.outputs]
        operands = [self._value(o) for o in call.operands]
        journal = self.writer.journal
        written = journal.insert(call.op, operands, fields, before=self.writer.anchor, types=types)
        self.values.update({o: w for o, w in zip(call.outputs, written, strict=True) if o is not None})

    def _product(self, call: Call) -> Value:
        """A product with one matrix for all rows; a single vector a row is a row of a matrix then."""
        weights_first = call.operands[0] in self.stacks
        stack: Stack = self.stacks[call.operands[0 if weights_first else 1]]
        x = call.operands[1 if weights_first else 0]
        axis = 2 if weights_first else 1
        known, result = self.graph.type(x), call.outputs[0]
        if known is not None and known.rank == 3 and known.shape is not None and known.shape[axis] == 1:
            row = self._squeezed(self._value(x), axis, TensorType(known.dtype, self._without(known, axis)))
            matrix = self._weight(stack, transposed=weights_first)
            full = self._type(result)
            assert full is not None
            product = self.insert("matmul", [row, matrix], {}, TensorType(full.dtype, self._without(full, axis)))
            return self._unsqueezed(product, axis, result)
        matrix = self._weight(stack)
        operands = [matrix, self._value(x)] if weights_first else [self._value(x), matrix]
        return self.insert("matmul", operands, {}, self._type(result))

    def _squeezed(self, value: Value, axis: int, type_: TensorType) -> Value:
        if (value, axis) in self.flat:
            return self.flat[value, axis]
        return self.insert("squeeze", [value], {"axes": (axis,)}, type_)

    def _unsqueezed(self, value: Value, axis: int, like: Value) -> Value:
        made = self.insert("unsqueeze", [value], {"axes": (axis,)}, self._type(like))
        self.flat[made, axis] = value
        return made

    def insert(
        self, op: str, operands: Sequence[Value | None], fields: Mapping[str, object], type_: TensorType | None
    ) -> Value:
        return self.writer.insert(op, operands, fields, type_)

    def _weight(self, stack: Stack, *, transposed: bool = False) -> Value:
        """What the expert has of a stack."""
        return self._constant(stack.of(self.expert, transposed=transposed))

    def _one_row(self, stack: Stack) -> Value:
        """The same with an axis of rows in front."""
        return self._constant(stack.of(self.expert).reshape(1, *stack.shape[1:]))

    def _constant(self, data: TensorRef) -> Value:
        return self.writer.journal.add_constant(data, "expert")

    def _type(self, value: Value) -> TensorType | None:
        """The type of `value` for as many rows as there are."""
        known = self.graph.type(value)
        if known is None or not known.shape:
            return known
        return TensorType(known.dtype, (None, *known.shape[1:]))

    def _inner(self, value: Value) -> tuple[int, ...]:
        known = self.graph.type(value)
        assert known is not None and known.shape is not None
        return tuple(d for d in known.shape[1:] if isinstance(d, int))

    @staticmethod
    def _without(type_: TensorType, axis: int) -> tuple[int | str | None, ...]:
        sizes = (None, *(type_.shape or ())[1:])
        return (*sizes[:axis], *sizes[axis + 1 :])
