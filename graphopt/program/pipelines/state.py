"""Noticing changes: of a module's weights and attributes, of random generators, of tensors that were given."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from operator import is_
from types import FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch

from graphopt.program.pipelines.calls import leaves_in, version_of
from graphopt.program.pipelines.routing import ROUTE

_OPAQUE = (NoneType, int, float, str, type, ModuleType, FunctionType, MethodType, torch.Tensor)
"""What has no attributes, or none that are settings."""


class ModuleState:
    """A snapshot of a module: which submodules, attributes and weights it has, and how often these were written to.

    Attributes are followed into containers and plain objects (attention processors, scales of adapters, hooks), which
    may be written in place. Everything is held, so that no address can be used again for something else.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._objects: list[tuple[Any, type, Any]] = []
        """With their classes and the dicts of their attributes."""
        self._empty: list[Any] = []
        self._full: list[tuple[Any, list[Any]]] = []
        """With what they hold."""
        self._arrays: list[tuple[Any, Any]] = []
        """With copies, since numpy counts no writes."""
        self._weights: list[tuple[torch.Tensor, torch.Tensor, int, int]] = []
        seen: set[int] = set()
        pending: list[Any] = [module]  # no recursion: objects may be linked to each other in long chains
        while pending:
            value = pending.pop()
            if id(value) not in seen:
                seen.add(id(value))
                pending.extend(self._note(value))

    def still(self, module: torch.nn.Module) -> bool:
        """Whether nothing has changed. Only what was seen is looked at: if each of it holds what it held, nothing has
        come to it."""
        return (
            module is self._objects[0][0]
            and all(type(value) is kind and _attributes(value) is own for value, kind, own in self._objects)
            and not any(self._empty)
            and all(_holds(container, contents) for container, contents in self._full)
            and all(array.tobytes() == copy for array, copy in self._arrays)
            and all(
                w.data_ptr() == address and w.dtype == kept.dtype and version_of(w) == version
                for w, kept, address, version in self._weights
            )
        )

    def _note(self, value: Any) -> list[Any]:
        """Take a value down; what is in it."""
        if isinstance(value, torch.Tensor):
            self._weights.append((value, value.detach(), value.data_ptr(), version_of(value)))
        if isinstance(value, np.ndarray):
            self._arrays.append((value, value.tobytes()))
        if isinstance(value, (dict, list, tuple, set)):
            return self._note_container(value)
        if isinstance(value, _OPAQUE):
            return []
        own = _attributes(value)
        self._objects.append((value, type(value), own))
        contents = [] if own is None else self._note_container(own)
        accelerator = None if own is None else own.get(ROUTE)
        return [inner for inner in contents if inner is not accelerator]

    def _note_container(self, container: Any) -> list[Any]:
        contents = list(_contents(container))
        if contents:
            self._full.append((container, contents))
        else:
            self._empty.append(container)
        return contents


def _attributes(value: Any) -> Any:
    return getattr(value, "__dict__", None)


def _contents(container: Any) -> Iterable[Any]:
    """The keys of a dict included."""
    return chain(container, container.values()) if isinstance(container, dict) else container


def _holds(container: Any, contents: list[Any]) -> bool:
    """Whether a container holds the very same, or tuples of the same: tracing a module makes its tuples anew."""
    size = 2 * len(container) if isinstance(container, dict) else len(container)
    if size != len(contents):
        return False
    return all(map(is_, _contents(container), contents)) or all(map(_same, _contents(container), contents))


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) is tuple and len(a) == len(b) and all(map(_same, a, b)))


def generators_in(value: Any) -> list[torch.Generator]:
    """The generators among arguments, and torch's own."""
    return [torch.default_generator, *(leaf for leaf in leaves_in(value) if isinstance(leaf, torch.Generator))]


class Randomness:
    """The states of generators, to be compared and restored."""

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._states = [(generator, generator.get_state()) for generator in generators]

    def still(self) -> bool:
        """Whether nobody has drawn from them since."""
        return all(torch.equal(generator.get_state(), state) for generator, state in self._states)

    def restore(self) -> None:
        for generator, state in self._states:
            generator.set_state(state)


class Values:
    """What tensors hold, to be restored."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        self._values = [(tensor, tensor.detach().clone()) for tensor in tensors]

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, value in self._values:
                if not torch.equal(tensor, value):
                    tensor.copy_(value)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leaves torch's own generator as it was, so that what is compiled on the way changes no sample."""
    before = Randomness([torch.default_generator])
    try:
        yield
    finally:
        before.restore()
