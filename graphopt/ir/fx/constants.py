"""Weights that rewrites add to a graph, and those that nothing reads any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import fx

from graphopt.ir.fx.tensors import TorchRef, tensor_identity, to_torch
from graphopt.ir.fx.weight import Weight
from graphopt.ir.graph import CannotEmit
from graphopt.ir.weights import FLOATS, TensorRef

if TYPE_CHECKING:
    from graphopt.ir.fx.storage import FxGraph


def add_constant(graph: FxGraph, data: TensorRef, name: str) -> fx.Node:
    """A placeholder behind the weights of `graph` that stands for `data`."""
    if graph.prefix:
        raise CannotEmit("a control-flow body takes its weights as operands and cannot hold its own")
    tensor = data.tensor.detach() if isinstance(data, TorchRef) else to_torch(data.numpy())
    fresh = graph.names.constant(name)
    kind = "parameter" if data.dtype in FLOATS else "buffer"
    if kind == "parameter":
        tensor = torch.nn.Parameter(tensor, requires_grad=False)
    with graph.graph.inserting_before(_behind_weights(graph)):
        node = graph.graph.placeholder("p_" + fresh.replace(".", "_"))
    node.target = node.name
    node.meta["val"] = graph.fake(tensor)
    graph.weights[node] = Weight(fresh, tensor, kind)
    return node


def _behind_weights(graph: FxGraph) -> fx.Node:
    """The node in front of which a new weight goes: the first input, or the first node without one."""
    if graph.first_input is not None:
        return graph.first_input
    for node in graph.graph.nodes:
        if node.op == "placeholder" and node not in graph.weights:
            # Inputs never leave, and nothing but weights is ever put before them.
            graph.first_input = node
        if node.op != "placeholder" or node not in graph.weights:
            return node
    return graph.output_node


def unused_weights(graph: FxGraph) -> list[fx.Node]:
    """The weights that nothing reads, under this name or, being tied, under another, and nothing writes."""
    weights = graph.weights
    read = {tensor_identity(w.tensor) for n, w in weights.items() if n.users or w.mutable}
    return [n for n, w in weights.items() if not n.users and tensor_identity(w.tensor) not in read]


def drop_unused_weights(graph: FxGraph) -> None:
    for node in unused_weights(graph):
        graph.erase_weight(node)
