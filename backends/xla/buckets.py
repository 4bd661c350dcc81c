"""Open sizes padded to a few that are compiled, the padding hidden from what would mix it in.

For each combination of sizes that is met, the programs at these sizes and at the padded ones are traced, which compiles
nothing, and aligned by `alongside.Alongside`: the compiled program is the second, told the sizes of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from graphopt.backends.inputs import InputError, InputType
from graphopt.backends.xla.alongside import Alongside, CannotPad, Mark
from graphopt.errors import PipelineError, UnsupportedError
from graphopt.ir.weights import Array

Sizes: TypeAlias = tuple[tuple[int, ...], ...]
"""Those of all inputs."""
Run: TypeAlias = Callable[[Sequence[Array]], Sequence[Any]]
Chosen: TypeAlias = Sequence[int] | Mapping[str, Sequence[int]]


class _Told:
    """A program of padded sizes that is told what is kept."""

    def __init__(self, program: ClosedJaxpr, alongside: Alongside, device: Any) -> None:
        self.alongside = alongside
        self._device = device
        self._constants = [jax.device_put(c, device) for c in program.consts]
        self._marks = list(alongside.numbers)

        def run(constants: Sequence[Any], inputs: Sequence[Any], numbers: Sequence[Any]) -> list[Any]:
            return alongside.run(constants, inputs, dict(zip(self._marks, numbers, strict=True)))

        self._run = jax.jit(run)

    def numbers(self, asked: Mapping[Mark, tuple[Array, Array]]) -> list[Any]:
        """What it is told, of what the program at the sizes that are asked for differs in; what does not, is as at the
        padded sizes."""
        of_padded = self.alongside.numbers
        values = [asked[mark][0] if mark in asked else of_padded[mark][1] for mark in self._marks]
        return [jax.device_put(value, self._device) for value in values]

    def __call__(self, inputs: Sequence[Array], numbers: Sequence[Any]) -> list[Any]:
        given = [jax.device_put(np.ascontiguousarray(x).reshape(x.shape), self._device) for x in inputs]
        return list(self._run(self._constants, given, numbers))

    @property
    def compilations(self) -> int:
        return int(self._run._cache_size())


@dataclass
class _Plan:
    """What one combination of sizes becomes."""

    padded: Sizes
    """Of the inputs."""
    kept: Sizes
    """Of the results."""
    told: _Told | None = None
    """None if the program as it is keeps what it should."""
    numbers: Sequence[Any] = ()
    """What it is told."""
    is_checked: bool = False
    """With other padding."""


class Buckets:
    """The sizes that open dimensions are padded to."""

    def __init__(
        self, types: Sequence[InputType], chosen: Chosen, trace: Callable[[Sizes], ClosedJaxpr], device: Any
    ) -> None:
        """
        Args:
            types: those of the inputs; open sizes are names.
            chosen: sizes for every open dimension, or by input and axis, as in {"x:0": (1, 4, 16)}; the others are not
                padded then.
            trace: the program of the inputs, weights being constants, at these sizes of the inputs.
            device: where it runs.

        Raises:
            PipelineError: there is no such input and axis, or its size is fixed.
        """
        self._types = types
        self._trace = trace
        self._device = device
        self._plans: dict[Sizes, _Plan] = {}
        self._programs: dict[Sizes, ClosedJaxpr] = {}
        """By padded sizes."""
        self.notes: dict[Sizes, str] = {}
        """What is known of each, for a reader."""
        self._told: dict[Sizes, list[_Told]] = {}
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

    @property
    def compilations(self) -> int:
        """How often programs that are told what is kept have been compiled."""
        return sum(told.compilations for found in self._told.values() for told in found)

    def run(
        self, inputs: Sequence[Array], compiled: Run, before: Callable[[Sequence[Array]], None], check: bool
    ) -> list[Any]:
        """What `compiled` gives for `inputs`, by way of the next larger buckets; None stays None.

        `before` is called with the padded inputs. With `check`, the first call of each combination of sizes is run once
        more, with NaN and zeros for padding.

        Raises:
            InputError: a size larger than all buckets.
            UnsupportedError: padding could reach what is kept, naming the node where; or it did.
        """
        asked: Sizes = tuple(x.shape for x in inputs)
        plan = self._plan(asked)
        given = _padded(inputs, plan.padded, repeat=True)
        before(given)
        found = _kept(self._results(plan, given, compiled), plan.kept)
        if check and not plan.is_checked and plan.padded != asked:
            other = _kept(self._results(plan, _padded(inputs, plan.padded, repeat=False), compiled), plan.kept)
            if not all(a is None or _same_bits(a, b) for a, b in zip(found, other, strict=True)):
                raise UnsupportedError(
                    f"backend 'xla': inputs of sizes {asked} padded to {plan.padded} give other results with other "
                    "padding; lower the model without buckets"
                )
            self.notes[plan.padded] = f"{self._said(plan.padded)}, and padding of NaN gives the same bits"
            plan.is_checked = True
        return found

    def _said(self, padded: Sizes) -> str:
        places = [(t.shape or ()) for t in self._types]
        sizes = {s: n for own, given in zip(places, padded, strict=True) for s, n in zip(own, given, strict=True)}
        return "; ".join(f"{self._names[symbol]} is padded to {sizes[symbol]}" for symbol in self._sizes)

    def _results(self, plan: _Plan, inputs: Sequence[Array], compiled: Run) -> Sequence[Any]:
        return compiled(inputs) if plan.told is None else plan.told(inputs, plan.numbers)

    def _plan(self, asked: Sizes) -> _Plan:
        if asked not in self._plans:
            padded = self._bucket(asked)
            program = self._program(padded) if padded == asked else self._trace(asked)
            kept = tuple(tuple(aval.shape) for aval in program.out_avals)
            alongside = self._alongside(asked, program, padded)
            told = self._told_what(alongside, padded)
            numbers = () if told is None else told.numbers(alongside.numbers)
            self._plans[asked] = _Plan(padded, kept, told, numbers)
        return self._plans[asked]

    def _alongside(self, asked: Sizes, program: ClosedJaxpr, padded: Sizes) -> Alongside:
        try:
            return Alongside(program, self._program(padded))
        except CannotPad as error:
            raise UnsupportedError(
                f"backend 'xla': {self._blamed(asked, program)} cannot be padded: {error}; lower the model without "
                "buckets for it, which compiles it for each size"
            ) from None

    def _told_what(self, alongside: Alongside, padded: Sizes) -> _Told | None:
        """A program that can be told what `alongside` is; None if that is nothing."""
        if padded not in self._told:
            self._told[padded] = [] if (most := self._below(padded)) is None else [most]
        found = self._told[padded]
        for told in found:
            if alongside.numbers.keys() <= told.alongside.numbers.keys():
                return told
        if alongside.numbers:
            found.append(_Told(self._program(padded), alongside, self._device))
            return found[-1]
        return None

    def _below(self, padded: Sizes) -> _Told | None:
        """The program that is told all it can be: that a bucket is not filled along any axis."""
        below = self._at_bucket(padded, lambda size, _: max(size - 1, 1))
        try:
            alongside = Alongside(self._trace(below), self._program(padded))
        except (CannotPad, UnsupportedError):  # maybe of this size only
            return None
        return _Told(self._program(padded), alongside, self._device) if alongside.numbers else None

    def _program(self, padded: Sizes) -> ClosedJaxpr:
        if padded not in self._programs:
            self._programs[padded] = self._trace(padded)
        return self._programs[padded]

    def _blamed(self, asked: Sizes, program: ClosedJaxpr) -> str:
        """The axis that cannot be padded, or all that are if none of them alone is the reason."""
        changed = []
        for symbol in self._sizes:
            alone = self._bucket(asked, symbol)
            if alone != asked:
                changed.append(self._names[symbol])
                try:
                    Alongside(program, self._trace(alone))
                except CannotPad:
                    return self._names[symbol]
        return ", ".join(changed)

    def _bucket(self, asked: Sizes, only: str | None = None) -> Sizes:
        """`asked`, enlarged to the next buckets."""
        return self._at_bucket(asked, lambda n, symbol: n if only not in (None, symbol) else self._next(symbol, n))

    def _at_bucket(self, given: Sizes, change: Callable[[int, str], int]) -> Sizes:
        return tuple(
            tuple(change(n, s) if s in self._sizes else n for s, n in zip(t.shape or (), shape, strict=True))
            for t, shape in zip(self._types, given, strict=True)
        )

    def _next(self, symbol: str, size: int) -> int:
        sizes = self._sizes[symbol]
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
