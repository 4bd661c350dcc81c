"""Edits that change the sizes of what stands: other data under the name of a weight, other types of results."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from graphopt.ir.fx.fake import recompute
from graphopt.ir.fx.tensors import TorchRef, to_torch
from graphopt.ir.fx.write import check_types
from graphopt.ir.graph import CannotEmit, Node, TensorType, Undo, Value
from graphopt.ir.weights import TensorRef

if TYPE_CHECKING:
    from graphopt.ir.fx.storage import FxGraph


def store(graph: FxGraph, value: Value, data: TensorRef) -> Undo:
    """Let a parameter or buffer hold `data`. A parameter stays one, and trainable if it was."""
    weight = graph.weights.get(value)
    if weight is None or weight.mutable:
        raise CannotEmit(f"{graph.name(value)} is no constant weight of this region")
    tensor = data.tensor if isinstance(data, TorchRef) else to_torch(data.numpy())
    if isinstance(weight.tensor, torch.nn.Parameter) and not isinstance(tensor, torch.nn.Parameter):
        tensor = torch.nn.Parameter(tensor, requires_grad=weight.tensor.requires_grad)
    restore = _give(graph, value, graph.fake(tensor))
    graph.weights[value] = replace(weight, tensor=tensor)

    def undo() -> None:
        graph.weights[value] = weight
        restore()

    return undo


def retype(graph: FxGraph, node: Node, types: Sequence[TensorType | None]) -> Undo:
    """Let torch say what `node` gives now; it must be what `types` say."""
    computed = recompute(node, graph.fake_mode)
    several = isinstance(computed, (tuple, list))
    check_types(graph.raw_name(node), computed if several else [computed], types)
    undos = [_give(graph, node, computed)]
    for user in list(node.users) if several else ():
        if user.target is operator.getitem:
            undos.append(_give(graph, user, computed[user.args[1]]))

    def undo() -> None:
        for step in reversed(undos):
            step()

    return undo


def _give(graph: FxGraph, node: fx.Node, value: Any) -> Undo:
    """Let `node` be known to give `value`, a fake tensor or several."""
    before = node.meta.get("val")

    def give(new: Any) -> None:
        node.meta["val"] = new
        graph.forget(node)

    give(value)
    return lambda: give(before)
