"""Noticing changes: of a module's weights and attributes, of a scheduler's numbers, of random generators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import torch

from graphopt.program.pipelines.calls import version_of
from graphopt.program.pipelines.routing import ROUTE

_OPAQUE = (NoneType, int, float, str, type, ModuleType, FunctionType, MethodType, torch.Tensor)
"""What has no attributes, or none that are settings."""


class ModuleState:
    """A snapshot of a module: which submodules, attributes and weights it has, and how often these were written to.

    Attributes are followed into containers and plain objects (attention processors, scales of adapters, hooks), which
    may be written in place. Everything is held, so that no address can be used again for something else.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._contents = _contents(module)
        self._weights = [(w, w.detach(), w.data_ptr(), version_of(w)) for w in _tensors(self._contents)]

    def still(self, module: torch.nn.Module) -> bool:
        """Whether nothing has changed."""
        contents = _contents(module)
        return (
            len(contents) == len(self._contents)
            and all(now is then for now, then in zip(contents, self._contents, strict=True))
            and all(
                w.data_ptr() == address and w.dtype == kept.dtype and version_of(w) == version
                for w, kept, address, version in self._weights
            )
        )


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


def _contents(module: torch.nn.Module) -> list[Any]:
    """Everything that a module holds, in an order of its own; what is met again is listed and not followed."""
    values: list[Any] = []
    seen: set[int] = set()
    pending: list[Any] = [module]  # no recursion: objects may be linked to each other in long chains
    while pending:
        value = pending.pop()
        values.append(value)
        if id(value) not in seen:
            seen.add(id(value))
            pending.extend(_inside(value))
    return values


def _inside(value: Any) -> Iterable[Any]:
    """The contents of a container, and the class and attributes of a module or a plain object."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, (list, tuple, set)):
        return value
    if isinstance(value, _OPAQUE):
        return ()
    attributes = getattr(value, "__dict__", {})
    return [type(value), *(inner for name, inner in attributes.items() if name != ROUTE)]


def numbers_of(scheduler: Any) -> dict[str, Any]:
    """The tables and scalars of a scheduler as bytes, and the attributes that its configuration names as well, hashable
    and by name; not the samples and counts that it keeps while it runs."""
    own = vars(scheduler)
    tables = {
        name: value.detach().reshape(-1).cpu().view(torch.uint8).numpy().tobytes()
        for name, value in sorted(own.items())
        if isinstance(value, torch.Tensor) and value.ndim <= 1
    }
    settings = sorted(name for name in scheduler.config if name in own and _is_plain(own[name]))
    return tables | {name: frozen(own[name]) for name in settings}


def _is_plain(value: Any) -> bool:
    """Whether it says the same whoever made it: functions and other schedulers do not."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, float | int | str | None)


def frozen(value: Any) -> Any:
    """A hashable value that is equal for equal plain data."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), frozen(inner)) for key, inner in value.items()))
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        return frozen(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(frozen(inner) for inner in value)
    return repr(value)


def generators_in(value: Any) -> list[torch.Generator]:
    """The generators among arguments, and torch's own."""
    found = [torch.default_generator]

    def search(inner: Any) -> None:
        if isinstance(inner, torch.Generator):
            found.append(inner)
        elif isinstance(inner, list | tuple):
            for item in inner:
                search(item)
        elif isinstance(inner, Mapping):
            for item in inner.values():
                search(item)

    search(value)
    return found


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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leaves torch's own generator as it was, so that what is compiled on the way changes no sample."""
    before = Randomness([torch.default_generator])
    try:
        yield
    finally:
        before.restore()
