"""Running a region node by node on torch's own kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from graphopt.ir.fx.tensors import to_numpy, to_torch
from graphopt.ir.weights import Array

if TYPE_CHECKING:
    from graphopt.ir.fx.storage import FxGraph


def run(graph: FxGraph, feeds: Sequence[Array]) -> list[Array]:
    """The outputs of `graph` for `feeds`, one array for each of its inputs, in order.

    Gradients are not recorded; every intermediate result is freed after its last use. A symbolic size among
    the inputs or outputs is a 0-d int64 array.
    """
    inputs = graph.inputs()
    if len(feeds) != len(inputs):
        raise ValueError(f"the graph has {len(inputs)} inputs, got {len(feeds)} arrays")
    given = {n: w.tensor.detach() for n, w in graph.weights.items()}
    for node, array in zip(inputs, feeds, strict=True):
        given[node] = to_torch(array) if isinstance(node.meta.get("val"), torch.Tensor) else array.item()
    with torch.no_grad():
        return [_array(value) for value in compute(graph, given)]


def compute(graph: FxGraph, given: Mapping[fx.Node, Any]) -> list[Any]:
    """The outputs of `graph`, from tensors for its inputs and its weights; differentiable where those are."""
    values: dict[fx.Node, Any] = {n: n.meta.get("val") for n in graph.graph.find_nodes(op="placeholder")}
    values |= given
    _interpret(graph, values)
    return [values[v] for v in graph.outputs()]


def _interpret(graph: FxGraph, values: dict[fx.Node, Any]) -> None:
    """Fill `values` with what the nodes compute, keeping only what the graph returns."""
    last_use = {n: node for node in graph.graph.nodes for n in node.all_input_nodes}
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            values[node] = graph.attribute(node)
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
            for operand in node.all_input_nodes:
                if last_use[operand] is node:
                    del values[operand]


def _array(value: Any) -> Array:
    return to_numpy(value if isinstance(value, torch.Tensor) else torch.tensor(value))
