"""Edits that change the sizes of what stands: other data under the name of a weight, other types of results."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.ir.graph import CannotEmit, Literal, TensorType, Undo, Value
from graphopt.ir.onnx import dtypes
from graphopt.ir.onnx.constants import ref_type, stored_tensor
from graphopt.ir.onnx.edits import run_back
from graphopt.ir.onnx.shared import Shared
from graphopt.ir.weights import TensorRef

if TYPE_CHECKING:
    from graphopt.ir.onnx.storage import OnnxGraph


def store(region: OnnxGraph, value: Value, data: TensorRef) -> Undo:
    """Let an initialiser or a Constant node hold `data`. The file that the model came from is not touched."""
    shared = region.shared
    if isinstance(value, Literal) or shared.tensor(value) is None:
        raise CannotEmit(f"{region.name(value)} is no constant weight")
    tensor = stored_tensor(data, value.name or "")
    shared.remember_ref(tensor, data)
    undos: list[Undo] = []
    node = value.producer()
    if node is None:
        undos.append(partial(setattr, value, "const_value", value.const_value))
        value.const_value = tensor
    else:
        undos.append(partial(_set_constant, shared, node, list(node.attributes.values())))
        _set_constant(shared, node, [ir.AttrTensor("value", tensor)])
    undos.append(_declare(region, value, ref_type(data)))
    return partial(run_back, undos)


def _set_constant(shared: Shared, node: ir.Node, attributes: Sequence[ir.Attr]) -> None:
    shared.forget_tensor(node)
    node.attributes.clear()
    for attribute in attributes:
        node.attributes.add(attribute)


def retype(region: OnnxGraph, node: ir.Node, types: Sequence[TensorType | None]) -> Undo:
    """Let what is declared, given and inferred of the outputs of `node` be `types`."""
    undos: list[Undo] = []
    for value, type_ in zip(node.outputs, types, strict=False):  # a node may lack its last results
        if type_ is not None and value.name:
            undos.append(_declare(region, value, type_))
    return partial(run_back, undos)


def _declare(region: OnnxGraph, value: ir.Value, type_: TensorType) -> Undo:
    """Let `value` have `type_`, in the file too if the file says anything of it."""
    shared = region.shared
    known = shared.known_of(value)
    declared, shape = value.type, value.shape

    def forget_reads() -> None:
        for user, _ in value.uses():
            shared.calls.pop(user, None)
        if (producer := value.producer()) is not None:
            shared.calls.pop(producer, None)

    def undo() -> None:
        value.type, value.shape = declared, shape
        shared.know(value, known)
        forget_reads()

    if declared is not None:
        dtypes.set_type(value, type_)
    shared.know(value, (None, type_))
    forget_reads()
    return undo
