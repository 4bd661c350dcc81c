"""Nodes as their operator's schema has them: raw names, arguments by name, effects."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import fx

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import Node, Value

GETITEM = "fx.getitem"
"""The raw name of nodes that pick one output of an operator with several. They are no calls themselves."""


class Parameter(NamedTuple):
    """One argument of an operator. `tensors`: 0 for an attribute, 1 for a tensor, None for a list of them."""

    name: str
    tensors: int | None
    default: Any
    required: bool
    keyword: bool


@cache
def parameters(target: torch._ops.OpOverload) -> tuple[Parameter, ...]:
    """The arguments of `target` in the order of its schema."""
    return tuple(
        Parameter(a.name, _tensors(str(a.type)), a.default_value, not a.has_default_value(), a.kwarg_only)
        for a in target._schema.arguments
    )


def _tensors(kind: str) -> int | None:
    if "Tensor" not in kind:
        return 0
    return None if kind.startswith(("List", "Optional[List")) else 1


def is_operator(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload)


@cache
def raw_name_of(target: Any) -> str:
    """ "aten.conv2d.default", "higher_order.cond", "operator.add" ..."""
    if target is operator.getitem:
        return GETITEM
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return f"higher_order.{target.name()}"
    module = getattr(target, "__module__", None) or "builtins"
    return f"{module.lstrip('_')}.{getattr(target, '__name__', str(target))}"


def short_name(target: Any) -> str:
    """What a node that runs `target` is called: "conv2d", "getitem"."""
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).partition("::")[2]
    return str(getattr(target, "__name__", "node"))


def find_operator(raw_name: str) -> torch._ops.OpOverload | None:
    """The operator of the name `raw_name` ("aten.conv2d.default"), or None if torch has none."""
    namespace, _, rest = raw_name.partition(".")
    name, _, overload = rest.partition(".")
    found = getattr(getattr(getattr(torch.ops, namespace), name, None), overload or "default", None)
    return found if isinstance(found, torch._ops.OpOverload) else None


def arguments(node: Node) -> dict[str, Any]:
    """Every argument of an operator node by name, defaults filled in."""
    names, defaults = _defaults(node.target)
    found = dict(defaults)
    found.update(zip(names, node.args, strict=False))
    found.update(node.kwargs)
    return found


@cache
def _defaults(target: torch._ops.OpOverload) -> tuple[tuple[str, ...], dict[str, Any]]:
    return tuple(p.name for p in parameters(target)), {p.name: p.default for p in parameters(target)}


def split_arguments(node: Node) -> tuple[tuple[Value | None, ...], dict[str, Any]]:
    """(tensor operands in the order of the schema, the other arguments by name).

    A list of tensors is spread over the operands; its length then stands among the other arguments.
    """
    if not is_operator(node.target):
        return tuple(node.all_input_nodes), {}
    operands: list[Value | None] = []
    fields: dict[str, Any] = {}
    values = arguments(node)
    for parameter in parameters(node.target):
        value = values[parameter.name]
        if parameter.tensors is None and isinstance(value, Sequence):
            operands.extend(value)
            fields[parameter.name] = len(value)
        elif parameter.tensors and (value is None or isinstance(value, fx.Node)):
            operands.append(value)
        else:
            fields[parameter.name] = tuple(value) if isinstance(value, list) else value
    return tuple(operands), fields


def join_arguments(
    target: torch._ops.OpOverload, operands: Sequence[Any], fields: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inverse of `split_arguments`: (args, kwargs) of a node. Raises ValueError if they do not fit."""
    rest = list(operands)
    unread = set(fields)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for p in parameters(target):
        unread.discard(p.name)
        if p.tensors is None and isinstance(fields.get(p.name), int):
            count = fields[p.name]
            value: Any = rest[:count]
            del rest[:count]
        elif p.name in fields:
            value = fields[p.name]
        elif p.tensors == 1 and rest:
            value = rest.pop(0)
        elif p.required:
            raise ValueError(f"{target} needs {p.name!r}")
        else:
            value = p.default
        value = list(value) if isinstance(value, tuple) else value
        if p.keyword and value != p.default:
            kwargs[p.name] = value
        elif not p.keyword:
            args.append(value)
    if rest or unread:
        raise ValueError(f"{target} has no place for {len(rest)} operands and the fields {sorted(unread)}")
    return tuple(args), kwargs


def bodies_of(node: Node) -> list[fx.Node]:
    """The `get_attr` nodes through which a control-flow node holds its bodies."""
    return [n for n in node.all_input_nodes if n.op == "get_attr"]


def mutating_operators(graph: fx.Graph) -> list[str]:
    """Names of the operators in `graph` that write to one of their arguments."""
    return [
        raw_name_of(n.target)
        for n in graph.nodes
        if n.op == "call_function" and is_operator(n.target) and n.target._schema.is_mutable
    ]


def refuse_mutation(names: Sequence[str]) -> None:
    """Raises UnsupportedError if there are `names` of mutating operators."""
    if names:
        raise UnsupportedError(
            "operators that write to their arguments cannot be rewritten safely, and these are left after "
            f"functionalisation: {', '.join(sorted(set(names)))}. Replace them by their functional forms."
        )


def has_effects(node: Node) -> bool:
    """Whether `node` does more than compute: random numbers, assertions, unknown effects."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return operator_has_effects(target)
    if isinstance(target, torch._ops.HigherOrderOperator):
        return target.name() not in ("cond", "while_loop", "scan", "map_impl")
    return bool(node.is_impure())


@cache
def operator_has_effects(target: torch._ops.OpOverload) -> bool:
    """The same of every node that runs `target`."""
    if target._schema.is_mutable or not target._schema.returns:
        return True
    # torch judges a node; of one that runs an operator it looks at nothing but the operator.
    alone = fx.Graph().call_function(target)
    return draws(alone) or bool(alone.is_impure())


def draws(node: Node) -> bool:
    """Whether the operator of `node` may draw random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
