"""What a writer writes on: a draft of nodes that touches no graph, so that asking whether is the same as
writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.ir.graph import CannotEmit, TensorType, Value
from graphopt.ir.ops.spec import OPS, REQUIRED, Fill, Op
from graphopt.ir.weights import Array


class Slot:
    """A value of a draft: an operand of the call, an output of a drafted node or a drafted constant."""

    __slots__ = ("_type",)

    def __init__(self, type_: SlotType = None) -> None:
        self._type = type_

    @property
    def type(self) -> TensorType | None:
        if callable(self._type):
            self._type = self._type()
        return self._type


SlotType: TypeAlias = TensorType | Callable[[], TensorType | None] | None
"""A type, or what finds it: most writers do not ask."""


class DraftNode(NamedTuple):
    domain: str
    op_type: str
    inputs: Sequence[Slot | None]
    attributes: Mapping[str, Any]
    outputs: Sequence[Slot]


class Draft:
    """Nodes and constants to be written for one call, at the opset of one region."""

    def __init__(self, opset: int, operands: Sequence[Slot | None]) -> None:
        self.opset = opset
        self.operands = operands
        self.nodes: list[DraftNode] = []
        self.constants: list[tuple[Slot, str, Array]] = []

    def operand(self, index: int, what: str) -> Slot:
        value = self.optional(index)
        if value is None:
            raise CannotEmit(f"{what} is missing")
        return value

    def optional(self, index: int) -> Slot | None:
        return self.operands[index] if index < len(self.operands) else None

    def absent(self, index: int, what: str) -> None:
        """Refuse an operand that ONNX cannot take here."""
        if self.optional(index) is not None:
            raise CannotEmit(f"{what} cannot be an operand at opset {self.opset}")

    def constant(self, values: Any, dtype: Any, name: str) -> Slot:
        array = np.asarray(values, dtype)
        slot = Slot(TensorType(array.dtype.name, array.shape))
        self.constants.append((slot, name, array))
        return slot

    def ints(self, values: Sequence[int], name: str) -> Slot:
        return self.constant(values, np.int64, name)

    def node(
        self,
        op_type: str,
        inputs: Sequence[Slot | None],
        attributes: Mapping[str, Any] | None = None,
        *,
        since: int = 1,
        outputs: int = 1,
        domain: str = "",
        result: SlotType = None,
    ) -> list[Slot]:
        """Draft a node. Attributes that are None are left out. `since` is the first opset that has the op; `result`
        is the type of the first output, where the writer can tell it."""
        if domain == "" and self.opset < since:
            raise CannotEmit(f"{op_type} needs opset {since}, the model has {self.opset}")
        kept = {k: v for k, v in attributes.items() if v is not None} if attributes else {}
        trimmed = list(inputs)
        while trimmed and trimmed[-1] is None:
            trimmed.pop()
        slots = [Slot(result if index == 0 else None) for index in range(outputs)]
        self.nodes.append(DraftNode(domain, op_type, trimmed, kept, slots))
        return slots

    # ---- types -------------------------------------------------------------------------------------------

    @staticmethod
    def dtype(slot: Slot, what: str) -> str:
        if slot.type is None:
            raise CannotEmit(f"the element type of {what} is not known")
        return slot.type.dtype

    @staticmethod
    def rank(slot: Slot, what: str) -> int:
        if slot.type is None or slot.type.shape is None:
            raise CannotEmit(f"the rank of {what} is not known")
        return len(slot.type.shape)

    @staticmethod
    def size(slot: Slot, axis: int, what: str) -> int:
        """A dimension that has to be known as a number."""
        shape = None if slot.type is None else slot.type.shape
        size = None if shape is None or not -len(shape) <= axis < len(shape) else shape[axis]
        if not isinstance(size, int):
            raise CannotEmit(f"dimension {axis} of {what} is not known")
        return size


class Fields:
    """The fields of a call on their way into a writer: remembers which were read."""

    def __init__(self, op: str, given: Mapping[str, Any]) -> None:
        self._op: Op | None = OPS.get(op)
        self._given = given
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        """The value of field `name`, else its default (a Fill if its length depends on the operands)."""
        self._read.add(name)
        if name in self._given:
            return self._given[name]
        default = REQUIRED if self._op is None else self._op.fields.get(name, REQUIRED)
        if default is REQUIRED:
            raise CannotEmit(f"field {name} is missing")
        return default

    def ints(self, name: str) -> tuple[int, ...] | None:
        """A tuple field; None when it is left at a default that ONNX shares."""
        value = self[name]
        if value is None or isinstance(value, Fill):
            return None
        return tuple(int(v) for v in value)

    def ignored(self) -> list[str]:
        """Fields that say something and that the writer never looked at."""
        return [
            name
            for name, value in self._given.items()
            if name not in self._read and not self._is_default(name, value)
        ]

    def _is_default(self, name: str, value: Any) -> bool:
        return self._op is not None and name in self._op.fields and self._op.is_default(name, value)


Writer: TypeAlias = Callable[[Draft, Fields], list[Slot]]
"""Drafts a call and returns the slots of its outputs. Raises CannotEmit for what ONNX cannot say exactly."""


@dataclass(frozen=True, slots=True)
class PlainWriter:
    """Writes an op that is one ONNX op with the same operands and no field."""

    op_type: str
    since: int
    operands: int

    def __call__(self, d: Draft, f: Fields) -> list[Slot]:
        inputs = [d.operand(i, f"operand {i}") for i in range(self.operands)]
        return d.node(self.op_type, inputs, since=self.since)

    def needs_no_draft(self, operands: Sequence[Value | None], fields: Mapping[str, Any], opset: int) -> bool:
        """Whether the call is certain to be this op with these operands as they are."""
        if fields or opset < self.since or len(operands) != self.operands:
            return False
        for operand in operands:  # noqa: SIM110  # a generator costs as much again
            if not isinstance(operand, ir.Value):
                return False
        return True
