"""Squeezes that torch accepts and ONNX does not.

To torch, squeezing a dimension of another size than 1 is to do nothing, and its exporter writes that as a
Squeeze that no runtime accepts. Where the sizes prove that a Squeeze is of this kind it is made an Identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.ir.onnx.shared import all_graphs, copy_of

if TYPE_CHECKING:
    from graphopt.ir.onnx.model import OnnxModel


def without_idle_squeezes(model: OnnxModel) -> tuple[ir.Model, list[str]]:
    """The model as onnxruntime takes it, and the names of the Squeezes that became Identities.

    `model` is not modified: it gives its own `onnx_ir.Model` if nothing is to be changed, else a copy.
    """
    idle = [i for i, node in enumerate(_nodes(model.ir)) if _is_idle(model, node)]
    if not idle:
        return model.ir, []
    copied = copy_of(model.ir)
    nodes = list(_nodes(copied))
    return copied, list(_made_identities(nodes[i] for i in idle))


def _made_identities(nodes: Iterable[ir.Node]) -> Iterator[str]:
    for node in nodes:
        node.op_type = "Identity"
        node.attributes.pop("axes", None)
        node.resize_inputs(1)
        yield node.name or node.outputs[0].name or ""


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    for graph in all_graphs(model):
        yield from graph


def _is_idle(model: OnnxModel, node: ir.Node) -> bool:
    """Whether every axis that `node` squeezes certainly has another size than 1."""
    if node.op_type != "Squeeze" or node.domain != "" or not node.inputs or node.inputs[0] is None:
        return False
    type_ = model.shared.type(node.inputs[0])
    axes = _axes(model, node)
    if type_ is None or type_.shape is None or not axes:
        return False
    rank = len(type_.shape)
    sizes = [type_.shape[axis] for axis in axes if -rank <= axis < rank]
    return len(sizes) == len(axes) and all(isinstance(size, int) and size != 1 for size in sizes)


def _axes(model: OnnxModel, node: ir.Node) -> list[int]:
    """The axes of a Squeeze as they are given; none if they are computed or left out."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return [] if attribute.is_ref() else list(attribute.as_ints())
    operand = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if operand is None else model.shared.tensor(operand)
    return [] if tensor is None else [int(axis) for axis in tensor.numpy().reshape(-1)]
