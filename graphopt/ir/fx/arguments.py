"""The arguments of a program: their names, which of them may be given by position, and where tensors are in them."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils import _pytree as pytree

from graphopt.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

_KEY = "graphopt.by_position"


def keep_positions(program: ExportedProgram, module: nn.Module, count: int, keywords: Collection[str]) -> None:
    """Note in `program`, of `module` and `count` positional arguments, which of its `keywords` may be given by position
    too: those that follow right behind where the module's forward is defined."""
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


class Arguments:
    """How the arguments of a program are given, whatever runs it."""

    def __init__(self, program: ExportedProgram) -> None:
        positional, keyword = _parts(program.call_spec.in_spec)
        signature = program.module_call_graph[0].signature
        count, known = len(_parts(positional)), getattr(signature, "forward_arg_names", None)
        exported: list[str] = list((known or [])[:count])
        exported += [f"arg_{i}" for i in range(len(exported), count)]
        self.positional = exported
        """Those that were given by position when the program was exported."""
        self.names: list[str] = [*exported, *keyword.context]
        self.structures: list[Any] = [*_parts(positional), *_parts(keyword)]
        """A TreeSpec for each name."""
        self._by_position = [*exported, *program.graph_module.meta.get(_KEY, ())]

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """What a call gives, by name.

        Raises:
            InputError: too many, unknown or twice given arguments.
        """
        if len(args) > len(self._by_position):
            raise InputError(
                f"the model takes {len(self.names)} arguments ({self.listed()}), got {len(args)} by position, where "
                f"it takes {len(self._by_position)}"
            )
        given = dict(zip(self._by_position, args, strict=False))
        for name, value in kwargs.items():
            if name in given:
                raise InputError(f"argument {name!r} is given both by position and by name")
            if name not in self.names:
                raise InputError(
                    f"the model was exported without an argument {name!r}{did_you_mean(name, self.names)}; it takes "
                    f"{self.listed()}; export it again with example inputs that have {name!r}"
                )
            given[name] = value
        return given

    def listed(self) -> str:
        return ", ".join(self.names) or "no arguments"

    def places(self) -> list[tuple[str, str]]:
        """Of each input in order the name of its argument and where it is in that: ("given", "['a'][0]")."""
        pairs = zip(self.names, self.structures, strict=True)
        return [(name, place) for name, structure in pairs for place in places_in(structure)]


def leaves_of(name: str, structure: Any, value: Any) -> list[Any]:
    """The leaves of argument `name`. Raises InputError if it has another structure."""
    try:
        return list(structure.flatten_up_to(value))
    except ValueError as error:
        raise InputError(f"argument {name!r} has another structure than when exported: {error}") from error


def places_in(structure: Any) -> list[str]:
    """Where the leaves of an argument are in it."""
    filled = pytree.tree_unflatten([0] * structure.num_leaves, structure)
    places = [pytree.keystr(path) for path, _ in pytree.tree_leaves_with_path(filled)]
    return places if len(places) == structure.num_leaves else [""] * structure.num_leaves


def _parts(spec: Any) -> list[Any]:
    """The parts of a TreeSpec; torch 2.9 has them as an attribute that later ones warn about."""
    return list(spec.children() if hasattr(spec, "children") else spec.children_specs)
