"""Running a region node by node on torch's own kernels."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from graphopt.ir.fx.tensors import to_numpy, to_torch
from graphopt.ir.weights import Array

LONGEST = 10_000
"""Iterations of one loop, from which it is taken to be endless."""

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
            values[node] = _safe_body(graph.attribute(node))
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = _SAFE.get(node.target, node.target)(*args, **kwargs)
            for operand in node.all_input_nodes:
                if last_use[operand] is node:
                    del values[operand]


def _safe_body(attribute: Any) -> Any:
    """The body of a branch or a loop with safe functions in the place of others."""
    if not isinstance(attribute, fx.GraphModule):
        return attribute
    found = [m for m in attribute.modules() if isinstance(m, fx.GraphModule)]
    if not any(node.target in _SAFE for m in found for node in m.graph.nodes):
        return attribute
    copied = copy.deepcopy(attribute)
    for module in copied.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.target = _SAFE.get(node.target, node.target)
            module.recompile()
    return copied


def _divide(x: Any, divisor: Any, *, rounding_mode: str | None) -> Any:
    """torch.div, but for an error where that ends the process: dividing the least integer by -1, rounding to zero."""
    dtype = torch.result_type(x, divisor)
    if rounding_mode == "trunc" and not (dtype.is_floating_point or dtype == torch.bool):
        least = torch.as_tensor(x) == torch.iinfo(dtype).min
        if bool((least & (torch.as_tensor(divisor) == -1)).any()):
            raise ZeroDivisionError("it divides the least integer by -1")
    return torch.div(x, divisor, rounding_mode=rounding_mode)


def _loop(condition: Any, body: Any, carried: tuple[Any, ...], others: tuple[Any, ...] = ()) -> tuple[Any, ...]:
    """torch's while_loop, but for an error where it would go on for ever."""
    for _ in range(LONGEST):
        if not bool(condition(*carried, *others)):
            return carried
        carried = tuple(body(*carried, *others))
    raise RuntimeError(f"a loop does not end within {LONGEST} iterations")


_SAFE: dict[Any, Any] = {
    torch.ops.aten.div.Tensor_mode: _divide,
    torch.ops.aten.div.Scalar_mode: _divide,
    torch.ops.higher_order.while_loop: _loop,
}
"""What computes the same as an op that may end the process, and raises instead."""


def _array(value: Any) -> Array:
    return to_numpy(value if isinstance(value, torch.Tensor) else torch.tensor(value))
