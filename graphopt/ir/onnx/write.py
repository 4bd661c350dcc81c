"""The table of writers, and the one place where a call becomes a draft of ONNX nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from graphopt.ir.graph import CannotEmit, TensorType
from graphopt.ir.onnx import (
    write_convolution,
    write_elementwise,
    write_indexing,
    write_layout,
    write_linear,
    write_normalization,
    write_recurrent,
)
from graphopt.ir.onnx.drafting import Draft, Fields, Slot, SlotType, Writer

WRITERS: Mapping[str, Writer] = {
    **write_elementwise.WRITERS,
    **write_linear.WRITERS,
    **write_convolution.WRITERS,
    **write_normalization.WRITERS,
    **write_layout.WRITERS,
    **write_indexing.WRITERS,
    **write_recurrent.WRITERS,
}
"""Writer by op of the vocabulary."""


def draft(
    op: str,
    fields: Mapping[str, Any],
    types: Sequence[SlotType],
    opset: int,
    *,
    present: Sequence[bool],
    outputs: int,
) -> tuple[Draft, list[Slot]]:
    """The nodes that say `op`, and the slots of its outputs.

    `types` are those of the operands and `present` tells which there are; `outputs` is how many a raw op has.
    Raises CannotEmit, also when a writer leaves a field unread that is not at its default.
    """
    operands = [Slot(type_) if there else None for type_, there in zip(types, present, strict=True)]
    written = Draft(opset, operands)
    if "::" in op:
        return written, _raw(written, op, fields, outputs)
    writer = WRITERS.get(op)
    if writer is None:
        raise CannotEmit(f"ONNX has no way to say {op}")
    asked = Fields(op, fields)
    results = writer(written, asked)
    if ignored := asked.ignored():
        raise CannotEmit(f"ONNX cannot say {', '.join(ignored)} of {op}")
    _check_read(written, op)
    return written, results


def _check_read(written: Draft, op: str) -> None:
    """Every operand that there is has to have been written into some node."""
    used = {slot for node in written.nodes for slot in node.inputs}
    for index, slot in enumerate(written.operands):
        if slot is not None and slot not in used:
            raise CannotEmit(f"ONNX cannot say operand {index} of {op}")


def _raw(written: Draft, op: str, fields: Mapping[str, Any], outputs: int) -> list[Slot]:
    domain, _, op_type = op.partition("::")
    if domain in ("", "ai.onnx"):
        domain = ""
        _check_schema(op_type, written.opset)
    return written.node(op_type, written.operands, fields, outputs=outputs, domain=domain)


def _check_schema(op_type: str, opset: int) -> None:
    try:
        schema = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        raise CannotEmit(f"ai.onnx::{op_type} does not exist at opset {opset}") from None
    if schema.deprecated:
        raise CannotEmit(f"ai.onnx::{op_type} is deprecated at opset {opset}")


def cannot_emit(
    op: str, fields: Mapping[str, Any], types: Sequence[TensorType | None], opset: int
) -> str | None:
    """Why `op` cannot be written, by writing it; None if it can. An operand whose type is None counts as
    absent where the op has it optional, else as there."""
    try:
        draft(op, fields, types, opset, present=_present(op, types), outputs=1)
    except CannotEmit as reason:
        return str(reason)
    return None


def _present(op: str, types: Sequence[TensorType | None]) -> list[bool]:
    from graphopt.ir.ops.spec import OPS

    entry = OPS.get(op)
    optional = [] if entry is None else [name in entry.optional for name in entry.operands]
    return [
        type_ is not None or not (index < len(optional) and optional[index])
        for index, type_ in enumerate(types)
    ]
