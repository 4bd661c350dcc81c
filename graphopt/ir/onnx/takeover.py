"""How one value takes the place of another: its name, its declared type and whatever else the model says of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import onnx_ir as ir

from graphopt.ir.graph import TensorType, Undo
from graphopt.ir.onnx import dtypes
from graphopt.ir.onnx.shared import QUANTIZATION, Shared


def take_over(shared: Shared, old: ir.Value, new: ir.Value, undos: list[Undo]) -> None:
    """Give `new` the name, the declared type and the documentation of `old`, whose name becomes that of `new`."""
    name, taken, source = new.name, old.name, old.producer()
    given = shared.given_type(new)
    fresh = new in shared.fresh
    said = None if fresh else _said(new)  # A fresh value is named and no more.
    undos.append(partial(_restore, shared, old, new, taken, name, said, given))
    old.name, new.name = name, taken
    if fresh:
        shared.fresh.discard(new)
        if source is not None and source.metadata_props:
            _inherit_provenance(source, new.producer(), undos)
    _inherit_type(shared, old, new, given, source is not None)
    if old.doc_string:
        new.doc_string = old.doc_string
    if properties := old.metadata_props:
        new.metadata_props.update(properties)
    if shared.annotated and QUANTIZATION in (known := old.meta):
        new.meta[QUANTIZATION] = known[QUANTIZATION]


def _said(value: ir.Value) -> tuple[Any, ...]:
    """What the model says of `value` and taking over may change."""
    return value.type, value.shape, value.doc_string, dict(value.metadata_props), value.meta.get(QUANTIZATION)


def _restore(
    shared: Shared,
    old: ir.Value,
    new: ir.Value,
    old_name: str | None,
    new_name: str | None,
    said: tuple[Any, ...] | None,
    given: TensorType | None,
) -> None:
    """Give both their names back and make `new` what it was."""
    old.name, new.name = old_name, new_name
    new.type, new.shape, new.doc_string, properties, annotation = said or (None, None, None, {}, None)
    new.metadata_props.clear()
    new.metadata_props.update(properties)
    new.meta.pop(QUANTIZATION, None)
    if annotation is not None:
        new.meta[QUANTIZATION] = annotation
    shared.give_type(new, given)
    if said is None:
        shared.fresh.add(new)


def _inherit_type(shared: Shared, old: ir.Value, new: ir.Value, given: TensorType | None, computed: bool) -> None:
    declared = old.type
    if given is not None and (known := dtypes.declared_type(old)) and not dtypes.agrees(known, given):
        dtypes.set_type(new, given)
    elif declared is not None:
        shape = old.shape
        if shape is not None and (not computed or old.uses()):  # It stays, so each has its own.
            shape = shape.copy()
        new.type, new.shape = declared, shape
    if given is not None or declared is None:
        # What is only inferred of `old` holds for `new` as well, as far as the rewrite says nothing itself.
        shared.give_type(new, given or shared.type(old))
    else:
        shared.inherit_type(new, old)


def _inherit_provenance(source: ir.Node, target: ir.Node | None, undos: list[Undo]) -> None:
    """Nodes keep what is known of where they come from (module path, source line)."""
    if target is not None and not target.metadata_props:
        target.metadata_props.update(source.metadata_props)
        undos.append(target.metadata_props.clear)
