"""Cutting a few nodes out of a region into a small graph of their own."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx

from graphopt.errors import UnsupportedError
from graphopt.ir.fx.schema import bodies_of
from graphopt.ir.fx.weight import Weight
from graphopt.ir.fx.write import plan
from graphopt.ir.graph import Node, Unreadable, Value

if TYPE_CHECKING:
    from graphopt.ir.fx.storage import FxGraph


def cut(source: FxGraph, nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> FxGraph:
    """A graph that computes `outputs` from `inputs` with copies of `nodes`; constants are captured.

    Raises UnsupportedError if the nodes read a value that is no input, no constant and not computed by them.
    """
    from graphopt.ir.fx.storage import FxGraph

    chosen = sorted(set(nodes))
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    weights: dict[fx.Node, Weight] = {}

    def placeholder(value: fx.Node) -> fx.Node:
        copied = graph.placeholder(value.name)
        copied.meta.update(value.meta)
        copies[value] = copied
        return copied

    inside = set(chosen)
    for value in weights_of(source, chosen, outputs, frozenset(inputs)):
        weights[placeholder(value)] = source.weights[value]
    for value in inputs:
        placeholder(value)
    for body in sorted({b for n in chosen for b in bodies_of(n)}):
        copies[body] = graph.node_copy(body)

    def copied_operand(value: fx.Node) -> fx.Node:
        if value not in copies:
            raise UnsupportedError(f"the fragment reads {value.name}, neither an input nor a constant")
        return copies[value]

    for node in chosen:
        copies[node] = copy_node(source, graph, node, copied_operand)
        for user in sorted(node.users):
            if user.target is operator.getitem and user not in copies:
                copies[user] = graph.node_copy(user, copied_operand)
    graph.output(tuple(copied_operand(v) for v in outputs))
    return FxGraph(copy_bodies(source, inside), weights, source.fake_mode, graph=graph)


def copy_node(
    source: FxGraph, graph: fx.Graph, node: fx.Node, operand: Callable[[fx.Node], fx.Node]
) -> fx.Node:
    """A copy of `node`. Sizes that other nodes compute are replaced by what the vocabulary says of them."""
    call = source.call(node)
    if isinstance(call, Unreadable) or not any(
        isinstance(n.meta.get("val"), torch.SymInt) for n in node.all_input_nodes
    ):
        return graph.node_copy(node, operand)
    types = [None if v is None else source.type(v) for v in call.operands]
    planned = plan(call.op, call.operands, call.fields, types)
    args, kwargs = fx.map_arg((planned.args, planned.kwargs), operand)
    copied = graph.call_function(planned.target, args, kwargs)
    copied.meta.update(node.meta)
    return copied


def weights_of(
    source: FxGraph, nodes: Sequence[fx.Node], outputs: Sequence[Value], inputs: frozenset[Value]
) -> list[fx.Node]:
    """The weights that `nodes` read or that are returned and that nothing writes, in the order of the region. There may
    be some among them that are no constants in the vocabulary: sparse ones."""
    read = {v for n in nodes for v in n.all_input_nodes} | set(outputs)
    return sorted(v for v in read - inputs if v in source.weights and not source.weights[v].mutable)


def copy_bodies(source: FxGraph, nodes: Iterable[fx.Node]) -> torch.nn.Module:
    """A module that holds copies of the control-flow bodies that `nodes` run."""
    root = torch.nn.Module()
    for body in sorted({b for n in nodes for b in bodies_of(n)}):
        root.add_module(str(body.target), copy.deepcopy(source.body(body).module))
    return root
