"""Writing: a call of the vocabulary as one ATen node, or the reason why ATen cannot say it exactly.

A writer is a function of a `Writing`, which records the operands and fields that it hands out. If a writer
did not look at an operand, or at a field that is not at its default, the call is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from graphopt.ir.fx.schema import find_operator, join_arguments
from graphopt.ir.fx.tensors import type_of
from graphopt.ir.graph import CannotEmit, Literal, TensorType, Value
from graphopt.ir.ops.spec import OPS, REQUIRED, Fill
from graphopt.ir.weights import FLOATS


class Plan(NamedTuple):
    """The ATen node to create."""

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}
    same_type: bool = False
    """Whether the result has the type, which is static, and if that is contiguous the layout of the first argument."""


class Writing:
    """One call to be written: operands with their types, and fields, each noted when it is read."""

    def __init__(
        self,
        op: str,
        operands: Sequence[Value | None],
        fields: Mapping[str, Any],
        types: Sequence[TensorType | None],
    ) -> None:
        self.op = op
        self._operands = list(operands)
        self._types = list(types) + [None] * (len(operands) - len(types))
        self._names = OPS[op].operands
        self._fields = fields
        self._unread_operands = {i for i, v in enumerate(operands) if v is not None}
        self._unread_fields = set(fields)

    def require(self, condition: bool, reason: str) -> None:
        if not condition:
            raise CannotEmit(f"{self.op}: {reason}")

    # ---- fields --------------------------------------------------------------------------------------------

    def field(self, name: str) -> Any:
        self._unread_fields.discard(name)
        found = self._fields.get(name, OPS[self.op].fields[name])
        self.require(found is not REQUIRED, f"{name} is not given")
        return found

    def numbers(self, name: str, length: int) -> list[int]:
        """A tuple field of `length` values."""
        found = self.field(name)
        if isinstance(found, Fill):
            return [found.value] * length
        self.require(len(found) == length, f"{name} has {len(found)} values, not {length}")
        return list(found)

    def symmetric_pads(self, spatial: int) -> list[int]:
        pads = self.numbers("pads", 2 * spatial)
        self.require(pads[:spatial] == pads[spatial:], "asymmetric pads")
        self.require(min(pads) >= 0, "negative pads")
        return pads[:spatial]

    # ---- operands ------------------------------------------------------------------------------------------

    def _index(self, name: str | int) -> int:
        return name if isinstance(name, int) else self._names.index(name)

    def value(self, name: str | int) -> Any:
        """An operand, by name or position: a value, a Python number for a Literal, None if it is absent."""
        index = self._index(name)
        self._unread_operands.discard(index)
        found = self._operands[index] if index < len(self._operands) else None
        return found.value if isinstance(found, Literal) else found

    def tensor(self, name: str | int) -> Any:
        """An operand that must be a tensor."""
        found = self.value(name)
        self.require(found is not None, f"{name} is absent")
        self.require(not isinstance(found, (bool, int, float)), f"{name} may not be a number in ATen")
        return found

    def optional(self, name: str | int) -> Any:
        """An operand that is a tensor or absent."""
        return None if self.value(name) is None else self.tensor(name)

    def all_tensors(self) -> list[Any]:
        """The operands of a variadic op."""
        self._unread_operands.clear()
        numbers = any(v is None or isinstance(v, Literal) for v in self._operands)
        self.require(not numbers, "a number among the tensors")
        return self._operands

    def type(self, name: str) -> TensorType:
        index = self._index(name)
        found = self._types[index] if index < len(self._types) else None
        if found is None or found.shape is None:
            raise CannotEmit(f"{self.op}: the type of {name} is not known")
        return found

    def rank(self, name: str) -> int:
        return len(self.type(name).shape or ())

    def one_dtype(self) -> str:
        """The dtype that all operands have. Raises CannotEmit if torch would promote."""
        found = {v.dtype for v in self._operands if isinstance(v, Literal)}
        typed = zip(self._operands, self._types, strict=False)
        found |= {t.dtype for v, t in typed if v is not None and t is not None}
        self.require(len(found) == 1, "operands of different dtypes")
        return found.pop()

    def finish(self) -> None:
        """Raises CannotEmit if anything was left out."""
        for index in sorted(self._unread_operands):
            raise CannotEmit(f"{self.op}: ATen has no place for operand {index}")
        for name in sorted(self._unread_fields):
            if not OPS[self.op].is_default(name, self._fields[name]):
                raise CannotEmit(f"{self.op}: ATen cannot say {name}={self._fields[name]}")


Writer = Callable[[Writing], Plan]

WRITERS: dict[str, Writer] = {}
"""Vocabulary name to its writer. Filled when `graphopt.ir.fx.vocabulary` is imported."""

SAME_TYPE: dict[str, torch._ops.OpOverload] = {}
"""The operators of the ops that take one tensor, of floats at least, and give one of the same type."""


def writes(*ops: str) -> Callable[[Writer], Writer]:
    """Register the decorated function as what writes `ops`."""

    def register(writer: Writer) -> Writer:
        for op in ops:
            WRITERS[op] = writer
        return writer

    return register


def plan(
    op: str, operands: Sequence[Value | None], fields: Mapping[str, Any], types: Sequence[TensorType | None]
) -> Plan:
    """The ATen node for `op`, which is a name of the vocabulary or a raw name. Raises CannotEmit."""
    if "." in op:
        return _raw_plan(op, operands, fields)
    if not fields and len(operands) == 1 and op in SAME_TYPE and type(operands[0]) is not Literal:
        real = types[0]
        if real is not None and real.shape is not None and real.dtype in FLOATS:
            # To ask whether a dynamic shape is contiguous would add guards to it.
            return Plan(SAME_TYPE[op], tuple(operands), {}, real.is_static)
    writer = WRITERS.get(op)
    if writer is None:
        raise CannotEmit(f"{op}: no writer for ATen")
    unknown = fields.keys() - OPS[op].fields.keys()
    if unknown:
        raise CannotEmit(f"{op}: the vocabulary has no field {sorted(unknown)[0]}")
    writing = Writing(op, operands, fields, types)
    planned = writer(writing)
    writing.finish()
    return planned


def _raw_plan(op: str, operands: Sequence[Value | None], fields: Mapping[str, Any]) -> Plan:
    target = find_operator(op)
    if target is None:
        raise CannotEmit(f"torch has no operator {op}")
    if target._schema.is_mutable:
        raise CannotEmit(f"{op} writes to its arguments")
    values = [v.value if isinstance(v, Literal) else v for v in operands]
    try:
        args, kwargs = join_arguments(target, values, fields)
    except ValueError as error:
        raise CannotEmit(str(error)) from error
    return Plan(target, args, kwargs)


def cannot_emit(op: str, fields: Mapping[str, Any], types: Sequence[TensorType | None]) -> str | None:
    """Why `op` cannot be written, by planning it; None if it can. An operand whose type is None counts as absent."""
    tensors = [None if t is None else object() for t in types]
    refusal = _refusal(op, tensors, fields, types)
    if refusal is None or all(t is None or t.shape != () for t in types):
        return refusal
    # An operand without axes may also be a number, of which ATen sometimes takes nothing else.
    numbers = [Literal(0, t.dtype) if t and t.shape == () else v for t, v in zip(types, tensors, strict=True)]
    return _refusal(op, numbers, fields, types)


def _refusal(
    op: str, operands: Sequence[Value], fields: Mapping[str, Any], types: Sequence[TensorType | None]
) -> str | None:
    try:
        plan(op, operands, fields, types)
    except CannotEmit as refusal:
        return str(refusal)
    return None


def check_types(op: str, values: Sequence[Any], expected: Sequence[TensorType | None]) -> None:
    """Raises CannotEmit if torch computes another type than the rewrite expects."""
    for value, wanted in zip(values, expected, strict=False):
        got = type_of(value)
        if wanted is None or got is None:
            continue
        if got.dtype != wanted.dtype or not _agree(got.shape, wanted.shape):
            raise CannotEmit(f"{op} computes {got} where {wanted} is expected")


def _agree(got: Any, wanted: Any) -> bool:
    if got is None or wanted is None:
        return True
    return len(got) == len(wanted) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in zip(got, wanted, strict=True)
    )
