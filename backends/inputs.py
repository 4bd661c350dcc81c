"""Inputs of a call against what a compiled model takes: names, number, dtypes, ranks and sizes, before its runtime
looks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.errors import InputError as InputError
from graphopt.errors import did_you_mean


@dataclass(frozen=True)
class InputType:
    """One input of a compiled model."""

    name: str
    text: str
    """The runtime's name of the type, such as "tensor(float)"."""
    dtype: str | None
    """numpy's name of the element type; None for strings, sequences and optionals, which are not checked."""
    shape: tuple[int | str | None, ...] | None
    """None if even the rank is open."""

    def __str__(self) -> str:
        sizes = "*" if self.shape is None else ",".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype or self.text}[{sizes}]"


def name_inputs(
    types: Sequence[InputType], optional: Iterable[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Input name to value for a call by position, by name, with one dict, or mixed.

    Raises:
        InputError: too many, unknown, missing or twice given.
    """
    names = [t.name for t in types]
    if len(args) == 1 and isinstance(first := next(iter(args)), Mapping):
        args, kwargs = [], {**first, **kwargs}
    if len(args) > len(names):
        raise InputError(f"the model takes {len(names)} inputs ({', '.join(names)}), got {len(args)}")
    feeds = dict(zip(names, args, strict=False))
    optional = set(optional)
    for name, value in kwargs.items():
        if name in feeds:
            raise InputError(f"input {name!r} is given both by position and by name")
        if name not in names and name not in optional:
            raise InputError(
                f"the model has no input {name!r}{did_you_mean(name, [*names, *optional])}; it takes "
                f"{_listed(types)}"
            )
        feeds[name] = value
    missing = [t for t in types if t.name not in feeds]
    if missing:
        raise InputError(f"missing input {_listed(missing)}; the model takes {_listed(types)}")
    return feeds


def check_input(expected: InputType, dtype: str, shape: Sequence[int]) -> None:
    """Raises InputError unless a tensor of `dtype` and `shape` can be given for `expected`."""
    if expected.dtype is None:
        return
    got = f"{dtype}[{','.join(map(str, shape))}]"
    if dtype != expected.dtype:
        raise InputError(f"input {expected.name!r} is {expected}, got {got}; cast it to {expected.dtype}")
    if expected.shape is None:
        return
    if len(shape) != len(expected.shape):
        raise InputError(f"input {expected.name!r} is {expected}, of rank {len(expected.shape)}, got {got}")
    for axis, (size, wanted) in enumerate(zip(shape, expected.shape, strict=True)):
        if isinstance(wanted, int) and wanted >= 0 and size != wanted:
            raise InputError(
                f"input {expected.name!r} is {expected}, got {got}: size {size} at axis {axis} where "
                f"{wanted} is fixed"
            )


def _listed(types: Sequence[InputType]) -> str:
    return ", ".join(f"{t.name!r} {t}" for t in types) or "no inputs"
