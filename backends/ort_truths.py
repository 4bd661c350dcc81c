"""Choices between truth values in ops that onnxruntime has a kernel for: its Where takes none."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten


def say_choices_of_truths(graph: fx.Graph) -> None:
    """Let `where` and `masked_fill` that give truth values be and, or and not."""
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.dtype is not torch.bool:
            continue
        packet = getattr(node.target, "overloadpacket", None)
        if packet is _ATEN.where:
            condition, yes, no = node.args
        elif packet is _ATEN.masked_fill:
            no, condition, yes = node.args
        else:
            continue
        with graph.inserting_before(node):
            chosen = _chosen(graph, condition, yes, no)
        node.replace_all_uses_with(chosen, propagate_meta=False)
        graph.erase_node(node)


def _chosen(graph: fx.Graph, condition: fx.Node, yes: Any, no: Any) -> fx.Node:
    """`yes` where the condition holds, else `no`; each a number or what a node gives."""
    opposite = _call(graph, _ATEN.logical_not.default, condition)
    return _call(graph, _ATEN.logical_or.default, _both(graph, condition, yes), _both(graph, opposite, no))


def _both(graph: fx.Graph, condition: fx.Node, value: Any) -> fx.Node:
    if isinstance(value, fx.Node):
        return _call(graph, _ATEN.logical_and.default, condition, value)
    return condition if value else _call(graph, _ATEN.logical_xor.default, condition, condition)


def _call(graph: fx.Graph, target: Any, *operands: fx.Node) -> fx.Node:
    node = graph.call_function(target, operands)
    values = [operand.meta["val"] for operand in operands]
    with values[0].fake_mode:
        node.meta["val"] = target(*values)
    return node
