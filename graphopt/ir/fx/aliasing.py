"""Which values of a torch graph may share memory: one is a view of the other, or both are views of a third.

Numbers do not tell, so no verification sees it: what a caller does to a result in place, and what the program writes
into a buffer once its results are there, shows in everything that shares the memory.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any

import torch
from torch import fx

_UNDECLARED = frozenset({
    "_unsafe_view", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "flatten_dense_tensors",
    "unflatten_dense_tensors", "atleast_1d", "atleast_2d", "atleast_3d", "broadcast_tensors", "meshgrid",
    "cartesian_prod", "dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "einsum", "chain_matmul",
    "sum_to_size", "type_as", "chalf", "to_dense", "_to_cpu", "conj_physical", "data", "device_put", "_cast_Byte",
    "_cast_Char", "_cast_Double", "_cast_Float", "_cast_Half", "_cast_Int", "_cast_Long", "_cast_Short",
})  # fmt: skip
"""Operators that may return an operand, or a view of one, although their schemas do not say so."""


_EINSUM = torch.ops.aten.einsum.default


@cache
def _places(target: Any) -> tuple[tuple[int, str], ...] | None:
    """Where an operator takes what its result may be a view of, by position and name; None if that may be anything."""
    if not isinstance(target, torch._ops.OpOverload):
        # A body may return what it is given, and one of several results is a view if they are.
        return None if isinstance(target, torch._ops.HigherOrderOperator) or target is operator.getitem else ()
    schema = target._schema
    if schema.name.partition("::")[2] in _UNDECLARED:
        return None
    if all(r.alias_info is None for r in schema.returns):
        return ()
    return tuple((i, a.name) for i, a in enumerate(schema.arguments) if a.alias_info is not None)


def viewed(node: fx.Node) -> list[fx.Node]:
    """The operands whose memory the result of `node`, or one of several, may share."""
    places = _places(node.target) if node.op == "call_function" else ()
    if places == ():
        return []  # As most do: nothing else is looked at for them.
    if node.target is operator.getitem:
        operands = [several for several in node.args[:1] if viewed(several)]
    elif node.target is _EINSUM and len(node.args[1]) > 1:
        return []  # Of one operand it may be a transpose, of several it is a product.
    elif places is None:
        operands = node.all_input_nodes
    else:
        given = [node.args[i] if i < len(node.args) else node.kwargs.get(name) for i, name in places]
        operands = [o for value in given for o in (value if isinstance(value, (list, tuple)) else (value,))]
    return [o for o in operands if isinstance(o, fx.Node) and _has_memory(o)]


def _has_memory(value: fx.Node) -> bool:
    """Numbers, among them sizes, and the bodies of control flow have none."""
    known = value.meta.get("val")
    return isinstance(known, (torch.Tensor, tuple, list)) or (known is None and value.op == "call_function")


def views(value: fx.Node) -> list[fx.Node]:
    """The readers of `value` whose results may share its memory."""
    return [user for user in value.users if user.op == "call_function" and value in viewed(user)]


def roots(value: fx.Node) -> set[fx.Node]:
    """The values whose memory `value` may share and that are no views themselves."""
    return {v for v in _reached(value, viewed) if not viewed(v)}


def returned_views(value: fx.Node, output: fx.Node) -> set[fx.Node]:
    """What the node `output` returns, to a caller or into a buffer, of `value` and of what may be a view of it."""
    return {v for v in _reached(value, views) if output in v.users}


def _reached(value: fx.Node, step: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
    found, pending = {value}, [value]
    while pending:
        new = set(step(pending.pop())) - found
        found |= new
        pending += new
    return found


def exposes(old: fx.Node, new: fx.Node, seen: AbstractSet[fx.Node], output: fx.Node) -> bool:
    """Whether the results `seen`, which may be views of `old`, would share memory with an input, a weight or another
    result of the node `output` if they were views of `new`, and do not now."""
    fresh = roots(new) - roots(old)
    if any(root.op != "call_function" for root in fresh):
        return True
    return any(not fresh.isdisjoint(roots(other)) for other in output.all_input_nodes if other not in seen)
