"""Noticing changes: of a module's weights and attributes, of a scheduler's numbers, of random generators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from graphopt.program.pipelines.calls import version_of

_CONTENTS = ("_parameters", "_buffers", "_modules")


class ModuleState:
    """A snapshot of a module: which submodules, attributes and weights it has, and how often these were written to.

    Everything is held, so that no address can be used again for something else.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._attributes = list(_attributes(module))
        self._weights = [(w, w.detach(), w.data_ptr(), version_of(w)) for w in _weights(module)]

    def still(self, module: torch.nn.Module) -> bool:
        """Whether nothing has changed."""
        attributes, weights = list(_attributes(module)), list(_weights(module))
        return (
            len(attributes) == len(self._attributes)
            and len(weights) == len(self._weights)
            and all(a is b for a, b in zip(attributes, self._attributes, strict=True))
            and all(
                now is then and now.data_ptr() == address and now.dtype == kept.dtype and version_of(now) == version
                for now, (then, kept, address, version) in zip(weights, self._weights, strict=True)
            )
        )


def _attributes(module: torch.nn.Module) -> Iterable[Any]:
    for submodule in module.modules():
        yield type(submodule)
        for name, value in submodule.__dict__.items():
            if name not in _CONTENTS:
                yield value


def _weights(module: torch.nn.Module) -> Iterable[torch.Tensor]:
    for submodule in module.modules():
        for own in (submodule._parameters, submodule._buffers):
            yield from (weight for weight in own.values() if weight is not None)


def numbers_of(scheduler: Any) -> dict[str, bytes]:
    """The tables and scalars of a scheduler as bytes, by name; not the samples that it keeps while it runs."""
    return {
        name: value.detach().reshape(-1).cpu().view(torch.uint8).numpy().tobytes()
        for name, value in sorted(vars(scheduler).items())
        if isinstance(value, torch.Tensor) and value.ndim <= 1
    }


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
