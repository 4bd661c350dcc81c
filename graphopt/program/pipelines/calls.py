"""A call of a denoiser as a pipeline makes it: its tensors by role, and everything else as constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from graphopt.errors import UnsupportedError

SAMPLE = ("sample", "hidden_states", "x")
TIMESTEP = ("timestep", "timesteps", "t")
_LEAVES = (torch.Tensor, type(None), bool, int, float, str)


class Deviation(Exception):
    """The pipeline does something that a sampling program does not say; the message is what it does."""


class OnlyFirst(tuple[Any, ...]):
    """What is returned as a tuple, of which only the first entry exists: reading others is an error."""

    _error: Exception

    def __new__(cls, known: Iterable[Any], error: Exception) -> OnlyFirst:
        made = super().__new__(cls, known)
        made._error = error
        return made

    def __getitem__(self, index: Any) -> Any:
        if index != 0:
            raise self._error
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        raise self._error


@dataclass(frozen=True)
class DenoiserCall:
    """What a pipeline handed to its denoiser."""

    arguments: Mapping[str, Any]
    """By name, as they were given; a timestep that is a number has become a tensor."""
    leaves: Mapping[str, torch.Tensor]
    """The tensors by their paths ("added_cond_kwargs.text_embeds")."""
    versions: Mapping[str, int]
    """How often each of them had been written to."""
    constants: tuple[tuple[str, Any], ...]
    """What is no tensor, by path."""
    sample_name: str
    timestep_name: str
    return_dict: bool

    @classmethod
    def of(cls, arguments: dict[str, Any], return_dict: bool, timestep_dtype: torch.dtype) -> DenoiserCall:
        """A call with `arguments` by name.

        Args:
            arguments: taken over.
            return_dict: what the denoiser does if they do not say.
            timestep_dtype: of a timestep that is given as a number, if it holds it; float32 otherwise.

        Raises:
            UnsupportedError: the sample is no tensor, or another argument neither a tensor nor a number nor a list or
                mapping of those.
        """
        return_dict = bool(arguments.pop("return_dict", return_dict))
        sample_name, timestep_name = (_one_of(names, arguments) for names in (SAMPLE, TIMESTEP))
        if not isinstance(given := arguments[sample_name], torch.Tensor):
            raise UnsupportedError(
                f"the pipeline gives its denoiser {sample_name!r} as a {type(given).__name__}: expected one tensor "
                "with the samples of the batch (a list with a tensor for each, as Z-Image has it, is not supported)"
            )
        if not isinstance(number := arguments[timestep_name], torch.Tensor):
            fractional = isinstance(number, float) and not timestep_dtype.is_floating_point
            arguments[timestep_name] = torch.tensor(number, dtype=torch.float32 if fractional else timestep_dtype)
        leaves, constants = {}, []
        for path, value in _leaves("", arguments):
            if isinstance(value, torch.Tensor):
                leaves[path] = value
            else:
                constants.append((path, value))
        versions = {path: version_of(value) for path, value in leaves.items()}
        return cls(arguments, leaves, versions, tuple(constants), sample_name, timestep_name, return_dict)

    @property
    def sample(self) -> torch.Tensor:
        return self.leaves[self.sample_name]

    @property
    def timestep(self) -> torch.Tensor:
        return self.leaves[self.timestep_name]

    @property
    def conditions(self) -> dict[str, torch.Tensor]:
        given = (self.sample_name, self.timestep_name)
        return {path: value for path, value in self.leaves.items() if path not in given}

    @property
    def signature(self) -> tuple[Any, ...]:
        """What a graph of this call depends on: types of tensors, and constants with their kinds."""
        types = tuple((path, value.dtype, tuple(value.shape)) for path, value in self.leaves.items())
        return types, tuple((path, type(value), value) for path, value in self.constants)

    def one_timestep(self) -> float:
        """The timestep of the whole batch.

        Raises:
            Deviation: there are several.
        """
        values = self.timestep.reshape(-1)
        if not len(values) or bool((values != values[0]).any()):
            raise Deviation("it gives its denoiser several timesteps in one call")
        return float(values[0])

    def change(self, later: DenoiserCall) -> str | None:
        """The first argument, sample and timestep aside, that a later call of the same request has changed."""
        if later.constants != self.constants or later.leaves.keys() != self.leaves.keys():
            return "its kind of arguments"
        for path in self.conditions:
            before, after = self.leaves[path], later.leaves[path]
            written = version_of(before) != self.versions[path]
            if written or (before is not after and not same(before, after)):
                return f"the argument {path!r}"
        return None


def version_of(tensor: torch.Tensor) -> int:
    """How often a tensor has been written to.

    Raises:
        UnsupportedError: torch does not count it for this tensor.
    """
    if tensor.is_inference():
        raise UnsupportedError(
            "a tensor was made under torch.inference_mode, in which torch does not count writes, so that a change "
            "could not be noticed; use torch.no_grad"
        )
    return int(tensor._version)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal types and bits of value."""
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))


def leaves_in(value: Any) -> Iterator[Any]:
    """What a value holds that is neither list nor tuple nor mapping; itself if it is none."""
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from leaves_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from leaves_in(inner)
    else:
        yield value


def _one_of(names: tuple[str, ...], arguments: Mapping[str, Any]) -> str:
    for name in names:
        if arguments.get(name) is not None:
            return name
    raise UnsupportedError(
        f"the denoiser is called without {' or '.join(names)}; its arguments are {', '.join(arguments)}"
    )


def _leaves(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list | tuple):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, inner in items:
            yield from _leaves(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, _LEAVES):
        yield prefix, value
    else:
        raise UnsupportedError(
            f"the pipeline gives its denoiser {prefix!r}, a {type(value).__name__}: only tensors, numbers, texts and "
            "lists and mappings of them can be compiled"
        )
