"""Open sizes padded to a few that are compiled, where padding provably cannot reach what is kept.

For each combination of sizes that is met, the programs at these sizes and at the padded ones are traced, which compiles
nothing, and compared by `rows.require_apart`, one open size after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jax.extend.core import ClosedJaxpr

from graphopt.backends.inputs import InputError, InputType
from graphopt.backends.xla.rows import require_apart
from graphopt.errors import PipelineError, UnsupportedError
from graphopt.ir.weights import Array

Sizes: TypeAlias = tuple[tuple[int, ...], ...]
"""Those of all inputs."""
Run: TypeAlias = Callable[[Sequence[Array]], Sequence[Any]]
Chosen: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class _Plan:
    """What one combination of sizes becomes."""

    padded: Sizes
    """Of the inputs."""
    kept: Sizes
    """Of the results."""


class Buckets:
    """The sizes that open dimensions are padded to."""

    def __init__(self, types: Sequence[InputType], chosen: Chosen, trace: Callable[[Sizes], ClosedJaxpr]) -> None:
        """
        Args:
            types: those of the inputs; open sizes are names.
            chosen: sizes for every open dimension, or by input and axis, as in {"x:0": (1, 4, 16)}; the others are not
                padded then.
            trace: the program of weights and inputs, at these sizes of the inputs.

        Raises:
            PipelineError: there is no such input and axis, or its size is fixed.
        """
        self._types = types
        self._trace = trace
        self._plans: dict[Sizes, _Plan] = {}
        self._checked: set[Sizes] = set()
        places = {
            f"{type_.name}:{axis}": size
            for type_ in types
            for axis, size in enumerate(type_.shape or ())
            if isinstance(size, str)
        }
        given = chosen if isinstance(chosen, Mapping) else dict.fromkeys(places, chosen)
        if unknown := sorted(given.keys() - places.keys()):
            raise PipelineError(
                f"buckets are given for {', '.join(unknown)}, and open are {', '.join(places) or 'no sizes'}; make a "
                "size open with dynamic_shapes"
            )
        self._sizes = {places[place]: tuple(sorted(sizes)) for place, sizes in given.items()}
        """Ascending, by symbol."""
        self._names = {symbol: place for place, symbol in reversed(places.items())}

    def run(self, inputs: Sequence[Array], compiled: Run, check: bool) -> list[Any]:
        """What `compiled` gives for `inputs`, by way of the next larger buckets; None stays None.

        With `check`, the first call of each combination of buckets is run once more, with NaN and zeros for padding.

        Raises:
            InputError: a size larger than all buckets.
            UnsupportedError: padding could reach what is kept, naming the node where; or it did.
        """
        asked: Sizes = tuple(x.shape for x in inputs)
        plan = self._plan(asked)
        if plan.padded == asked:
            return list(compiled(inputs))
        found = _kept(compiled(_padded(inputs, plan.padded, repeat=True)), plan.kept)
        if check and plan.padded not in self._checked:
            other = _kept(compiled(_padded(inputs, plan.padded, repeat=False)), plan.kept)
            if not all(a is None or _same_bits(a, b) for a, b in zip(found, other, strict=True)):
                raise UnsupportedError(
                    f"backend 'xla': inputs of sizes {asked} padded to {plan.padded} give other results with other "
                    "padding; lower the model without buckets"
                )
            self._checked.add(plan.padded)
        return found

    def _plan(self, asked: Sizes) -> _Plan:
        if asked not in self._plans:
            now, padded = self._trace(asked), asked
            kept = tuple(tuple(aval.shape) for aval in now.out_avals)
            for symbol, sizes in self._sizes.items():
                larger = self._enlarged(padded, symbol, sizes)
                if larger != padded:
                    then = self._trace(larger)
                    require_apart(now, then, self._names[symbol])
                    now, padded = then, larger
            self._plans[asked] = _Plan(padded, kept)
        return self._plans[asked]

    def _enlarged(self, given: Sizes, symbol: str, sizes: Sequence[int]) -> Sizes:
        return tuple(
            tuple(self._next(s, n, sizes) if s == symbol else n for s, n in zip(t.shape or (), shape, strict=True))
            for t, shape in zip(self._types, given, strict=True)
        )

    def _next(self, symbol: str, size: int, sizes: Sequence[int]) -> int:
        found = next((n for n in sizes if n >= size), None)
        if found is None or size < 1:
            raise InputError(
                f"{self._names[symbol]} has size {size}, and the buckets are {', '.join(map(str, sizes))}; lower the "
                "model with a larger one"
            )
        return found


def _padded(inputs: Sequence[Array], sizes: Sizes, *, repeat: bool) -> list[Array]:
    """`inputs` with their last slices repeated, or with NaN, for integers zeros."""
    found = []
    for array, shape in zip(inputs, sizes, strict=True):
        for axis, (own, size) in enumerate(zip(array.shape, shape, strict=True)):
            if own == size:
                continue
            rest = np.repeat(np.take(array, [own - 1], axis), size - own, axis)
            if not repeat:
                is_real = array.dtype.kind in "fcV" or array.dtype.name == "bfloat16"
                rest = np.full_like(rest, np.nan if is_real else 0)
            array = np.concatenate([array, rest], axis)
        found.append(array)
    return found


def _kept(results: Sequence[Any], sizes: Sizes) -> list[Any]:
    shapes = iter(sizes)
    return [None if r is None else np.asarray(r)[tuple(slice(n) for n in next(shapes))] for r in results]


def _same_bits(a: Array, b: Array) -> bool:
    return np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))
