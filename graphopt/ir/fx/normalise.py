"""What is tidied in an exported program before it is rewritten."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from graphopt.ir.fx.aliasing import roots

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_PROMOTING = (torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor, torch.ops.aten.mul.Tensor)
_CAST = torch.ops.aten._to_copy.default
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


def promote(graph: fx.Graph) -> None:
    """Let sums, differences and products of tensors of several dtypes be of tensors that were cast to that of the
    result, which is how torch computes them; the vocabulary has no word for both at once. Numbers in tensors without
    dimensions count for less in that, and stay."""
    for target in _PROMOTING:
        for node in graph.find_nodes(op="call_function", target=target):
            result = node.meta.get("val")
            if not isinstance(result, torch.Tensor) or not all(_has_dims(a) for a in node.args[:2]):
                continue
            for position in (0, 1):
                operand = node.args[position]
                if operand.meta["val"].dtype == result.dtype:
                    continue
                with graph.inserting_before(node):
                    cast = graph.call_function(_CAST, (operand,), {"dtype": result.dtype})
                cast.meta.update(node.meta)
                cast.meta["val"] = operand.meta["val"].to(result.dtype)
                node.update_arg(position, cast)


def _has_dims(operand: Any) -> bool:
    value = operand.meta.get("val") if isinstance(operand, fx.Node) else None
    return isinstance(value, torch.Tensor) and value.ndim > 0


def order_by_sorting(graph: fx.Graph) -> None:
    """Let every argsort be the indices of a sort, of which the vocabulary has a word."""
    for target in (torch.ops.aten.argsort.default, torch.ops.aten.argsort.stable):
        for node in graph.find_nodes(op="call_function", target=target):
            sort = getattr(torch.ops.aten.sort, target._overloadname)
            with graph.inserting_before(node):
                found = graph.call_function(sort, node.args, node.kwargs)
                order = graph.call_function(operator.getitem, (found, 1))
            found.meta.update(node.meta)
            found.meta["val"] = (node.args[0].meta["val"], node.meta["val"])
            order.meta.update(node.meta)
            node.replace_all_uses_with(order)
            graph.erase_node(node)


def invert_by_sorting(graph: fx.Graph) -> None:
    """Let the inverse of a permutation that a sort found be found by sorting it, where it was written as numbers put
    in their places in memory that is not initialised: there is no word for what such memory holds."""
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.index_put.default):
        if not _inverts(node):
            continue
        order = node.args[1][0]
        with graph.inserting_before(node):
            found = graph.call_function(torch.ops.aten.sort.default, (order,))
            inverse = graph.call_function(operator.getitem, (found, 1))
        found.meta["val"] = (order.meta["val"], node.meta["val"])
        inverse.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(inverse)
        memory, numbers = node.args[0], node.args[2]
        for unread in (node, memory, numbers):
            if not unread.users:
                graph.erase_node(unread)


def _inverts(node: fx.Node) -> bool:
    """Whether `node` is empty_like(p) with arange(len(p)) put at p, where p are the indices of a sort."""
    memory, places, numbers, *accumulate = node.args
    if any(accumulate) or node.kwargs or len(places) != 1 or places[0] is None:
        return False
    order = places[0]
    if not (isinstance(memory, fx.Node) and isinstance(numbers, fx.Node) and order.target is operator.getitem):
        return False
    sort, index = order.args
    made = memory.target is torch.ops.aten.empty_like.default and memory.args[0] is order
    counted = numbers.target is torch.ops.aten.arange.default and numbers.kwargs.get("dtype") is None
    if not (made and counted and index == 1 and sort.target is torch.ops.aten.sort.default):
        return False
    lengths = [value.meta["val"].shape for value in (order, numbers)]
    return all(len(s) == 1 for s in lengths) and bool(statically_known_true(lengths[0][0] == lengths[1][0]))


def own_results(functional: Any, traced: Any) -> None:
    """Let a result that is also what a buffer or an input becomes be returned as a copy, unless `traced`, of which
    `functional` was made, returns that buffer or input itself: else the next call would change what was returned."""
    count = len(traced.graph_signature.user_outputs)
    before = traced.graph.output_node().args[0]
    output = functional.graph.output_node()
    returned = list(output.args[0])
    first = len(returned) - count
    written = set(returned[:first])
    if not written or len(before) != count:
        return
    for i, original in enumerate(before, first):
        if returned[i] in written and all(root.op != "placeholder" for root in roots(original)):
            result = returned[i]
            with functional.graph.inserting_before(output):
                returned[i] = functional.graph.call_function(torch.ops.aten.clone.default, (result,))
            returned[i].meta.update(result.meta)
            spec = functional.graph_signature.output_specs[i]
            spec.arg.name = returned[i].name
    output.args = (tuple(returned),)


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
