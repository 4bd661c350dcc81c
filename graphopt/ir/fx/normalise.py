"""What is tidied in an exported program before it is rewritten."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_ASSERTION = torch.ops.aten._assert_tensor_metadata.default


def free_layout(graph: fx.Graph) -> None:
    """Let every view be a reshape: a view rejects operands whose memory is laid out otherwise than when it was traced.

    In a functional graph both compute the same, and then no rewrite needs to care about strides.
    """
    for node in [n for target in _VIEWS for n in graph.find_nodes(op="call_function", target=target)]:
        with graph.inserting_before(node):
            free = graph.create_node("call_function", torch.ops.aten.reshape.default, node.args, node.kwargs)
        free.meta.update(node.meta)
        node.replace_all_uses_with(free)
        graph.erase_node(node)


def unbind_by_selection(graph: fx.Graph) -> None:
    """Let every unbind be selections, one for each of its results that is read: the vocabulary has a word for them."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.unbind.int):
        axis = node.args[1] if len(node.args) > 1 else 0
        for user in [u for u in node.users if u.target is operator.getitem]:
            with graph.inserting_before(user):
                picked = graph.call_function(torch.ops.aten.select.int, (node.args[0], axis, user.args[1]))
            picked.meta.update(user.meta)
            user.replace_all_uses_with(picked)
            graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)


def hoist_assertions(program: Any) -> None:
    """Let the dtype assertions that tracing left on intermediate results stand on the inputs, once each.

    They read every tensor that was cast, so they would keep it alive through every rewrite. The dtypes of the
    inputs decide those of all results, so nothing that the assertions refuse is accepted.
    """
    graph: fx.Graph = program.graph
    assertions = graph.find_nodes(op="call_function", target=_ASSERTION)
    if not assertions:
        return
    for node in assertions:
        graph.erase_node(node)
    names = set(program.graph_signature.user_inputs)
    placeholders = graph.find_nodes(op="placeholder")
    with graph.inserting_after(placeholders[-1]):
        for node in reversed(placeholders):
            value = node.meta.get("val")
            if node.name in names and isinstance(value, torch.Tensor):
                kwargs = {"device": value.device, "layout": value.layout}
                check = graph.call_function(_ASSERTION, (node, None, None, value.dtype), kwargs)
                check.meta["val"] = None
