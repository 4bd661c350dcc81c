"""How the readers of one value come to read another, so that neither strides that are read nor memory that is handed
out become something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx

from graphopt.ir.fx.aliasing import exposes, returned_views, views
from graphopt.ir.fx.strides import NOTHING, check_kept
from graphopt.ir.graph import Node, Undo

if TYPE_CHECKING:
    from graphopt.ir.fx.storage import FxGraph

_IDENTITY = torch.ops.aten.clone.default


def redirect(graph: FxGraph, old: fx.Node, new: fx.Node) -> tuple[Sequence[Node], Undo]:
    """Let users and outputs of `old` read `new`; returns the users."""
    read = graph.reads_strides()
    if read != NOTHING:
        check_kept(read, old, new)
    returned = graph.output_node in old.users
    copied, reading = _copied(graph, old, new)
    calls, users, edited = graph.calls, sorted(old.users), []
    for user in users:
        edited.append((user, user.args, user.kwargs))
        user.replace_input_with(old, copied if copied is not None and user in reading else new)
        calls.pop(user, None)

    def undo() -> None:
        for user, args, kwargs in reversed(edited):
            user.args = args
            user.kwargs = kwargs
            calls.pop(user, None)
        if copied is not None:
            graph.erase(copied)

    return users[:-1] if returned else users, undo


def _copied(graph: FxGraph, old: fx.Node, new: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
    """A copy of `new` where returning it, or views of it, would hand out memory that `old` did not share; and the
    readers of `old` that are to read the copy."""
    output = graph.output_node
    seen = returned_views(old, output)
    if not seen:
        return None, []
    twice = old in seen and (new.op != "call_function" or output in new.users)  # the node that is returned is one
    if not twice and not exposes(old, new, seen, output):
        return None, []
    reading = [view for view in views(old) if returned_views(view, output)]
    reading = sorted([*reading, output] if old in seen else reading)
    return graph.create(_IDENTITY, (new,), {}, new.meta.get("val"), new, reading[0]), reading
