"""Which arguments of a program may be given by position: those that were when it was exported, and those that were
given by name and stand right behind them where the module's forward is defined."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

_KEY = "graphopt.by_position"


def keep_positions(program: ExportedProgram, module: nn.Module, count: int, keywords: Collection[str]) -> None:
    """Note in `program`, of `module` and `count` positional arguments, which of its `keywords` follow on them."""
    try:
        defined = list(inspect.signature(module.forward).parameters.values())[count:]
    except (TypeError, ValueError):  # There is no signature of what is not written in Python.
        return
    names = []
    for parameter in defined:
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD or parameter.name not in keywords:
            break
        names.append(parameter.name)
    program.graph_module.meta[_KEY] = names


def by_position(program: ExportedProgram, exported: Sequence[str]) -> list[str]:
    """The names of the arguments that may be given by position, in order; `exported` were when it was exported."""
    return [*exported, *program.graph_module.meta.get(_KEY, ())]
