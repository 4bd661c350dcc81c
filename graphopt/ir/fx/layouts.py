"""How inputs have to lie in memory for what a model writes to show where it did when the model was traced.

`y.flatten().zero_()` writes y if y is contiguous, and a copy of it otherwise. A graph without mutation has one of both,
so it holds for inputs that lie as the example inputs did. The conditions are said as torch says its own on sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.export.graph_signature import InputKind, TensorArgument
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from graphopt.errors import UnsupportedError
from graphopt.ir.fx.aliasing import roots, viewed, views
from graphopt.ir.fx.arguments import Arguments
from graphopt.ir.fx.guards import add_guards

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_KEY = "graphopt.layouts"
_RESHAPING = frozenset({"reshape", "reshape_as", "flatten", "ravel"})
_CONTIGUOUS = frozenset({"contiguous", "mm", "bmm", "addmm", "linear", "embedding", "layer_norm", "native_layer_norm"})
"""Operators whose results lie the same, however their operands do."""


_STRIDED = frozenset({"as_strided", "as_strided_copy", "as_strided_scatter"})


class Watch(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped for mypy
    """Notes whether `contiguous` had nothing to do, of which a trace has no sign; with `marks` it leaves one."""

    def __init__(self, marks: bool) -> None:
        super().__init__()
        self.idle = False
        self._marks = marks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.Tensor.contiguous and result is args[0]:
            self.idle = True
            return torch.ops.aten.alias.default(result) if self._marks else result
        return result


def writes(program: ExportedProgram) -> bool:
    return any(True for node in program.graph.nodes for _ in _written(node))


def written_names(program: ExportedProgram) -> set[str]:
    """The names of the placeholders in whose memory a program that is as it was traced writes."""
    return {root.name for node in program.graph.nodes for value in _written(node) for root in roots(value)}


def add_layouts(program: ExportedProgram, traced: ExportedProgram, source: Any) -> ExportedProgram:
    """`program` with the conditions of `traced`, which it was made of, and those of `source`, which may be a module
    that was made of such a program."""
    known = [*getattr(source, "meta", {}).get(_KEY, ()), *layout_guards(traced)]
    texts = list(dict.fromkeys(known))
    if texts:
        program.graph_module.meta[_KEY] = texts
        add_guards(program, texts)
    return program


def layout_guards(program: ExportedProgram) -> list[str]:
    """Conditions under which the writes of `program`, which is as it was traced, show where they did.

    Raises:
        UnsupportedError: they depend on the strides of an input that is neither contiguous nor a permutation of that.
    """
    if not writes(program):
        return []
    position = {node: i for i, node in enumerate(program.graph.nodes)}
    bases = [n.args[0] for n in position if _may_copy(n) and viewed(n) and _shows(n, position)]
    sources = set[fx.Node]().union(*map(_sources, bases))
    return [text for name, place, example in _inputs(program) if name in {s.name for s in sources}
            for text in [_condition(place, example)] if text]  # fmt: skip


def strided_inputs(program: ExportedProgram) -> set[str]:
    """The names of the inputs whose strides decide what `as_strided` finds in memory."""
    read = [n.args[0] for n in program.graph.nodes if _short_name(n) in _STRIDED]
    return {source.name for value in read for source in _sources(value)} & set(program.graph_signature.user_inputs)


def _may_copy(node: fx.Node) -> bool:
    """Whether it returns a view of some operands, a copy of others. `alias` stands where `contiguous` did nothing."""
    name = _short_name(node)
    if name in ("contiguous", "alias") or (name == "to" and node.kwargs.get("memory_format") is not None):
        return True
    return name in _RESHAPING and str(node.meta["val"].shape) != str(node.args[0].meta["val"].shape)


def _written(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that a node writes."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.is_mutable:
        return
    for i, argument in enumerate(node.target._schema.arguments):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (v for v in pytree.tree_leaves(value) if isinstance(v, fx.Node))


def _shows(node: fx.Node, position: dict[fx.Node, int]) -> bool:
    """Whether what is written on one side of `node`, which is a view or a copy of its operand, is read on the other."""
    behind = _closure({node}, views)
    before = _closure({node.args[0]}, lambda value: [*viewed(value), *views(value)]) - behind
    kept = any(value.op in ("placeholder", "get_attr") for value in before)
    for writer, at in position.items():
        if at < position[node]:
            continue
        for value in _written(writer):
            if value in behind and (kept or _is_read(before, at, position)):
                return True
            if value in before and _is_read(behind, at, position):
                return True
    return False


def _is_read(values: set[fx.Node], after: int, position: dict[fx.Node, int]) -> bool:
    return any(position[user] > after for value in values for user in value.users)


def _closure(values: set[fx.Node], step: Any) -> set[fx.Node]:
    found, pending = set(values), list(values)
    while pending:
        new = set(step(pending.pop())) - found
        found |= new
        pending += new
    return found


def _sources(value: fx.Node) -> set[fx.Node]:
    """What decides how `value` may lie in memory."""
    reached = _closure({value}, lambda v: [] if _short_name(v) in _CONTIGUOUS else v.all_input_nodes)
    return {v for v in reached if v.op == "placeholder"}


def _short_name(node: fx.Node) -> str:
    target = node.target
    return target._schema.name.partition("::")[2] if isinstance(target, torch._ops.OpOverload) else ""


def _inputs(program: ExportedProgram) -> Iterator[tuple[str, str, torch.Tensor]]:
    """(name of the placeholder, place as in torch's conditions, example) of the tensors that a caller gives."""
    values = {n.name: n.meta.get("val") for n in program.graph.find_nodes(op="placeholder")}
    examples = pytree.tree_leaves(program.example_inputs) if program.example_inputs is not None else None
    given = [s.arg for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    for i, (argument, (name, rest)) in enumerate(zip(given, Arguments(program).places(), strict=True)):
        if isinstance(argument, TensorArgument):
            yield argument.name, f"L[{name!r}]{rest}", examples[i] if examples is not None else values[argument.name]


def _condition(place: str, example: torch.Tensor) -> str | None:
    order = sorted(range(example.ndim), key=lambda axis: -example.stride(axis))
    if example.is_contiguous():
        return f"{place}.is_contiguous()" if example.ndim else None
    if not example.permute(order).is_contiguous():
        raise UnsupportedError(
            f"the model writes in place to what is a view or a copy of another value by how the input {place} "
            f"lies in memory; that of the example inputs has gaps (strides {tuple(example.stride())}): give "
            ".contiguous() of it, or write to a clone"
        )
    return f"{place}.permute({', '.join(map(str, order))}).is_contiguous()"
