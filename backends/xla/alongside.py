"""A program at padded sizes, corrected to keep what the same program at the sizes that are asked for gives.

The function is traced at both sizes. The two programs have to be the same op by op, but for sizes. By induction over
the ops, each corrected as `kept.correction_of` says: if the first parts of the operands, as large as those of the first
program, are those of the first program, so are those of the results. Numbers that are computed from the size are
literals or constants here: where they differ, those of the first program are what the second is told.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from graphopt.backends.xla.correction import Correction, Coupled, bound, padded_dims
from graphopt.backends.xla.kept import SIZES, correction_of
from graphopt.ir.weights import Array

CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat",
                   "checkpoint"})  # fmt: skip
"""What runs a program of its own on its operands."""
OTHER = "is another program at another size; add the size to the buckets"


Mark: TypeAlias = tuple[Hashable, ...]
"""Where in the program a number is."""


class CannotPad(Exception):
    """Padding could reach what is kept. Carries the node where, and why."""


@dataclass
class _Step:
    """What is done at an equation of the padded program."""

    equation: Any
    told: dict[int, Mark]
    """Operands that are numbers, by place."""
    correction: Correction | None = None
    marks: Sequence[Mark] = ()
    """Of the numbers that `correction` takes."""
    inner: _Steps | None = None
    """Instead of the equation."""


@dataclass
class _Steps:
    program: Jaxpr
    steps: list[_Step] = field(default_factory=list)
    results: dict[int, Mark] = field(default_factory=dict)
    """Those that are numbers, by place."""

    @property
    def are_plain(self) -> bool:
        return not self.results and all(
            step.correction is None and step.inner is None and not step.told for step in self.steps
        )


class Alongside:
    """The padded program beside the one that is asked for."""

    def __init__(self, asked: ClosedJaxpr, padded: ClosedJaxpr) -> None:
        """
        Raises:
            CannotPad: padding could reach what is kept.
        """
        self.numbers: dict[Mark, tuple[Array, Array]] = {}
        """What `run` is told for the sizes that are asked for, and for the padded sizes themselves."""
        self._count = 0
        self._steps = self._compare(asked, padded, "the program")
        self._constants = {
            i: self._told(_enlarged(a, b), b, ("constant", i))
            for i, (a, b) in enumerate(zip(asked.consts, padded.consts, strict=True))
            if not _is_beginning(a, b)
        }

    def run(self, constants: Sequence[Any], inputs: Sequence[Any], numbers: Mapping[Mark, Any]) -> list[Any]:
        """The padded program on padded inputs; `constants` are its own."""
        told = [numbers[self._constants[i]] if i in self._constants else c for i, c in enumerate(constants)]
        return _evaluated(self._steps, told, inputs, numbers)

    def _told(self, own: Any, other: Any, mark: Mark) -> Mark:
        self.numbers[mark] = np.asarray(own), np.asarray(other)
        return mark

    def _compare(self, asked: ClosedJaxpr, padded: ClosedJaxpr, around: str) -> _Steps:
        """`around` is the node that runs the two."""
        own, other = asked.jaxpr, padded.jaxpr
        counts = [(len(j.invars), len(j.constvars), len(j.eqns), len(j.outvars)) for j in (own, other)]
        if counts[0] != counts[1]:
            raise CannotPad(f"{around} {OTHER}")
        found = _Steps(other)
        alike = dict(zip((*own.invars, *own.constvars), (*other.invars, *other.constvars), strict=True))
        for a, b in zip(own.eqns, other.eqns, strict=True):
            node = _node(b, around)
            if not _read_alike(a.invars, b.invars, alike):
                raise CannotPad(f"{node} {OTHER}")
            alike.update(zip(a.outvars, b.outvars, strict=True))
            try:
                found.steps.append(self._step(a, b, node))
            except Coupled as error:
                raise CannotPad(f"{node} ({b.primitive.name}) {error}") from None
        if not _read_alike(own.outvars, other.outvars, alike):
            raise CannotPad(f"{around} {OTHER}")
        try:
            found.results = self._literals(own.outvars, other.outvars, ("results", self._count))
            for a, b in zip((*own.invars, *own.constvars), (*other.invars, *other.constvars), strict=True):
                padded_dims(a, b)
        except Coupled as error:
            raise CannotPad(f"{around} {error}") from None
        return found

    def _step(self, a: Any, b: Any, node: str) -> _Step:
        name = b.primitive.name
        if a.primitive is not b.primitive:
            raise CannotPad(f"{node} {OTHER}")
        if (differing := _differing(a.params, b.params, SIZES.get(name, frozenset()))) is not None:
            raise Coupled(f"has another {differing} at another size")
        self._count += 1
        mark = ("equation", self._count)
        step = _Step(b, self._literals(a.invars, b.invars, mark))
        programs = list(zip(_inner(a.params), _inner(b.params), strict=True))
        constants = [pair for own, other in programs for pair in zip(own.consts, other.consts, strict=True)]
        if not all(_is_beginning(*pair) for pair in constants):
            raise Coupled("reads a constant that depends on the size")
        if name in CALLS and len(programs) == 1:
            inner = self._compare(*programs[0], node)
            step.inner = None if inner.are_plain else inner
        elif name not in CALLS and programs:
            self._require_equal(a, b, programs, node)
        else:
            step.correction = correction_of(a, b)
        if step.correction is not None:
            step.marks = [self._told(*pair, (*mark, name, of)) for of, pair in step.correction.numbers.items()]
        return step

    def _require_equal(self, a: Any, b: Any, programs: Sequence[tuple[ClosedJaxpr, ClosedJaxpr]], node: str) -> None:
        """Loops and branches: nothing that the size reaches may be in them."""
        pairs = [*zip(a.invars, b.invars, strict=True), *zip(a.outvars, b.outvars, strict=True)]
        inner = [self._compare(own, other, node) for own, other in programs]
        if any(padded_dims(x, y) for x, y in pairs) or not all(steps.are_plain for steps in inner):
            raise Coupled("says nothing about axes")

    def _literals(self, asked: Sequence[Any], padded: Sequence[Any], mark: Mark) -> dict[int, Mark]:
        found = {}
        for i, (a, b) in enumerate(zip(asked, padded, strict=True)):
            if isinstance(a, Literal) != isinstance(b, Literal):
                raise Coupled("computes with a number at one size only")
            if isinstance(a, Literal) and not _equal(a.val, b.val):
                found[i] = self._told(_literal(a), _literal(b), (*mark, "literal", i))
            padded_dims(a, b)
        return found


def _evaluated(
    steps: _Steps, constants: Sequence[Any], inputs: Sequence[Any], numbers: Mapping[Mark, Any]
) -> list[Any]:
    program = steps.program
    env = dict(zip((*program.constvars, *program.invars), (*constants, *inputs), strict=True))

    def values(variables: Sequence[Any], told: Mapping[int, Mark]) -> list[Any]:
        return [
            numbers[told[i]] if i in told else v.val if isinstance(v, Literal) else env[v]
            for i, v in enumerate(variables)
        ]

    for step in steps.steps:
        operands = values(step.equation.invars, step.told)
        if step.inner is not None:
            inner = next(_inner(step.equation.params))
            results: Any = _evaluated(step.inner, inner.consts, operands, numbers)
        elif step.correction is not None:
            results = step.correction.apply(operands, [numbers[mark] for mark in step.marks])
        else:
            results = bound(step.equation, operands)
        several = results if isinstance(results, list | tuple) else [results]
        env.update(zip(step.equation.outvars, several, strict=True))
    return values(program.outvars, steps.results)


def _read_alike(asked: Sequence[Any], padded: Sequence[Any], alike: Mapping[Any, Any]) -> bool:
    """Whether both read the results of the same equations: products of several matrices are taken in an order that
    depends on their sizes. `alike`: the variables of the padded program, by those of the one that is asked for."""
    return len(asked) == len(padded) and all(
        isinstance(a, Literal) or alike[a] is b for a, b in zip(asked, padded, strict=True)
    )


def _literal(literal: Any) -> Array:
    found: Array = np.asarray(literal.val, literal.aval.dtype)
    return found


def _equal(a: Any, b: Any) -> bool:
    x, y = np.asarray(a), np.asarray(b)
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def _is_beginning(a: Any, b: Any) -> bool:
    """Whether the constant `b` begins with `a`."""
    if a is b:
        return True
    if np.ndim(a) != np.ndim(b) or any(m > n for m, n in zip(np.shape(a), np.shape(b), strict=True)):
        return False
    return _equal(a, np.asarray(b)[tuple(slice(n) for n in np.shape(a))])


def _enlarged(a: Any, b: Any) -> Array:
    """`a` with zeros behind, in the sizes of the constant `b`."""
    found = np.zeros_like(np.asarray(b))
    if found.ndim == np.ndim(a) and all(m <= n for m, n in zip(np.shape(a), found.shape, strict=True)):
        found[tuple(slice(n) for n in np.shape(a))] = np.asarray(a)
    return found


def _node(equation: Any, around: str) -> str:
    return str(equation.source_info.name_stack).rpartition("/")[2] or around


def _differing(a: dict[str, Any], b: dict[str, Any], sizes: frozenset[str]) -> str | None:
    """A parameter that differs and is no size. Programs are compared by themselves, functions are what made them."""
    for key in b.keys() - sizes:
        x, y = a.get(key), b[key]
        if not (callable(y) or list(_inner({key: y}))) and repr(x) != repr(y):
            return key
    return None


def _inner(params: dict[str, Any]) -> Iterator[ClosedJaxpr]:
    for value in params.values():
        for item in value if isinstance(value, Sequence) and not isinstance(value, str) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item
            elif isinstance(item, Jaxpr):
                yield ClosedJaxpr(item, ())
