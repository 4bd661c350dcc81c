"""What a reader sees of a node: a recorder that knows afterwards whether everything was understood."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.ir.graph import INVALID, Call, Dim, Literal, TensorType, Unreadable, Value
from graphopt.ir.weights import Array, TensorRef


class CannotRead(Exception):
    """Raised by a reader for a node that the vocabulary cannot say exactly. Carries the reason."""


class Facts(Protocol):
    """What readers may ask about values."""

    def type(self, value: Value) -> TensorType | None: ...

    def inferred_type(self, value: ir.Value) -> TensorType | None: ...

    def constant(self, value: Value) -> TensorRef | None: ...


Said: TypeAlias = tuple[Sequence[Value | None], Mapping[str, Any]]
"""Operands (trailing absent ones included) and fields."""


class Reading:
    """One node being read at opset `opset` of its domain."""

    __slots__ = ("node", "opset", "_facts", "_inputs", "_attributes", "_seen_inputs", "_seen_attributes")

    def __init__(self, node: ir.Node, opset: int, facts: Facts) -> None:
        self.node = node
        self.opset = opset
        self._facts = facts
        self._inputs = node.inputs
        self._attributes = node.attributes.data
        self._seen_inputs: set[int] = set()
        self._seen_attributes: set[str] = set()

    # ---- operands ----------------------------------------------------------------------------------------

    def optional(self, index: int) -> Value | None:
        """Operand `index`, or None if it is absent."""
        self._seen_inputs.add(index)
        return self._inputs[index] if index < len(self._inputs) else None

    def operand(self, index: int) -> Value:
        value = self.optional(index)
        if value is None:
            raise CannotRead(f"operand {index} is missing")
        return value

    def operands(self) -> tuple[Value, ...]:
        """All operands of a variadic op."""
        return tuple(self.operand(i) for i in range(len(self._inputs)))

    def has(self, index: int) -> bool:
        return index < len(self._inputs) and self._inputs[index] is not None

    def constant(self, index: int, what: str) -> Array:
        """The data of operand `index`, which has to be a constant."""
        ref = self._facts.constant(self.operand(index))
        if ref is None:
            raise CannotRead(f"{what} is computed")
        return ref.numpy()

    def constant_ints(self, index: int, what: str) -> tuple[int, ...]:
        return tuple(int(v) for v in self.constant(index, what).reshape(-1))

    def constant_int(self, index: int, what: str) -> int:
        values = self.constant_ints(index, what)
        if len(values) != 1:
            raise CannotRead(f"{what} has {len(values)} elements")
        return values[0]

    def is_constant(self, index: int) -> bool:
        return self.has(index) and self._facts.constant(self._inputs[index]) is not None

    # ---- attributes --------------------------------------------------------------------------------------

    def has_attribute(self, name: str) -> bool:
        return name in self._attributes

    def _attribute(self, name: str, kinds: Any) -> Any:
        self._seen_attributes.add(name)
        attribute = self._attributes.get(name)
        if attribute is None:
            return None
        if attribute.is_ref():
            raise CannotRead(f"attribute {name} is a parameter of the function")
        if not isinstance(attribute.value, kinds):
            raise CannotRead(f"attribute {name} has the wrong type")
        return attribute.value

    def attr_int(self, name: str, default: int | None = None) -> int:
        value = self._attribute(name, int)
        if value is None and default is None:
            raise CannotRead(f"attribute {name} is missing")
        return default if value is None else int(value)  # type: ignore[return-value]

    def attr_flag(self, name: str, default: bool = False) -> bool:
        value = self.attr_int(name, int(default))
        if value not in (0, 1):
            raise CannotRead(f"attribute {name} is {value}, neither 0 nor 1")
        return value == 1

    def attr_float(self, name: str, default: float | None = None) -> float:
        """A float attribute: exactly the float32 number that the file holds."""
        value = self._attribute(name, (float, int))
        if value is None and default is None:
            raise CannotRead(f"attribute {name} is missing")
        return float(np.float32(default if value is None else value))

    def attr_ints(self, name: str) -> tuple[int, ...] | None:
        value = self._attribute(name, (list, tuple))
        return None if value is None else tuple(int(v) for v in value)

    def attr_floats(self, name: str) -> tuple[float, ...] | None:
        value = self._attribute(name, (list, tuple))
        return None if value is None else tuple(float(np.float32(v)) for v in value)

    def attr_string(self, name: str, default: str) -> str:
        value = self._attribute(name, (str, bytes))
        if isinstance(value, bytes):
            return value.decode()
        return default if value is None else str(value)

    def attr_tensor(self, name: str) -> ir.TensorProtocol | None:
        value: ir.TensorProtocol | None = self._attribute(name, ir.TensorProtocol)
        return value

    def only(self, name: str, default: Any, *accepted: Any) -> None:
        """Read an attribute that has to have its default value (or one of `accepted`) to be sayable."""
        value = self._attribute(name, object)
        value = value.decode() if isinstance(value, bytes) else value
        if value is not None and value != default and value not in accepted:
            raise CannotRead(f"attribute {name} is {value!r}")

    def ignore(self, *names: str) -> None:
        """Accept attributes that say nothing about the outputs that are read."""
        self._seen_attributes.update(names)

    # ---- types -------------------------------------------------------------------------------------------

    def type(self, value: Value) -> TensorType | None:
        return self._facts.type(value)

    def inferred_type(self, value: ir.Value) -> TensorType | None:
        """Type of `value` as far as it follows from the inputs and the ops, not from a declaration."""
        return self._facts.inferred_type(value)

    def dtype(self, value: Value) -> str:
        known = self.type(value)
        if known is None:
            raise CannotRead("the element type is not known")
        return known.dtype

    def shape(self, value: Value) -> tuple[Dim, ...]:
        known = self.type(value)
        if known is None or known.shape is None:
            raise CannotRead("the rank is not known")
        return known.shape

    def rank(self, value: Value) -> int:
        return len(self.shape(value))

    def axis(self, axis: int, value: Value) -> int:
        """`axis` of `value` as a non-negative number; a negative one needs the rank."""
        return axis if axis >= 0 else self._checked(axis + self.rank(value), axis)

    def axes(self, axes: Iterable[int], value: Value) -> tuple[int, ...]:
        return tuple(self.axis(a, value) for a in axes)

    @staticmethod
    def _checked(axis: int, given: int) -> int:
        if axis < 0:
            raise CannotRead(f"axis {given} is out of range")
        return axis

    def literal(self, number: float, like: Value) -> Literal:
        """An old attribute as an operand of the element type of `like`."""
        return Literal(number, self.dtype(like))

    # ---- the end -----------------------------------------------------------------------------------------

    def output_count(self) -> int:
        """Number of outputs up to the last one that has a name."""
        named = [i for i, value in enumerate(self.node.outputs) if value.name]
        return named[-1] + 1 if named else 0

    def leftover(self, outputs: int) -> str | None:
        """What the reader did not take into account, or None."""
        for index, value in enumerate(self._inputs):
            if value is not None and index not in self._seen_inputs:
                return f"operand {index} is not understood"
        for name in self._attributes:
            if name not in self._seen_attributes:
                return f"attribute {name} is not understood"
        for index, value in enumerate(self.node.outputs[outputs:], outputs):
            if value.name and (value.is_graph_output() or value.uses()):
                return f"output {index} is used"
        return None


@dataclass(frozen=True, slots=True)
class Reader:
    """How nodes of one ONNX op are read: the vocabulary's op, the function, the number of outputs (None =
    all)."""

    op: str
    read: Callable[[Reading], Said]
    outputs: int | None = 1

    def __call__(self, node: ir.Node, opset: int, facts: Facts) -> Call | Unreadable:
        reading = Reading(node, opset, facts)
        try:
            operands, fields = self.read(reading)
        except CannotRead as reason:
            return Unreadable(str(reason))
        except INVALID as error:
            return Unreadable(f"it is no valid node: {error}")
        outputs = reading.output_count() if self.outputs is None else self.outputs
        reason_left = reading.leftover(outputs)
        if reason_left is not None:
            return Unreadable(reason_left)
        named = [value if value.name else None for value in node.outputs[:outputs]]
        named += [None] * (outputs - len(named))
        return Call(node, self.op, tuple(operands), fields, tuple(named))


BROADCASTS = 7
"""The first opset in which every binary op broadcasts as numpy does and needs no attribute for it."""


@dataclass(frozen=True, slots=True)
class PlainReader:
    """How an op is read whose operands and one result are the vocabulary's and that has no attribute; a node
    that is not of this plain form is left to `otherwise`."""

    op: str
    operands: int
    otherwise: Reader

    def __call__(self, node: ir.Node, opset: int, facts: Facts) -> Call | Unreadable:
        operands, outputs = node.inputs, node.outputs
        plain = len(operands) == self.operands and len(outputs) == 1 and not node.attributes.data
        if not plain or None in operands or not outputs[0].name or opset < BROADCASTS:
            return self.otherwise(node, opset, facts)
        return Call(node, self.op, tuple(operands), {}, tuple(outputs))


AnyReader: TypeAlias = Reader | PlainReader
