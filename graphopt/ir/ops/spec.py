"""How an op of the vocabulary is declared: one Python function is its signature, its documentation and its meaning.

    @op()
    def leaky_relu(d, x, *, slope=0.01): "x where x >= 0, else slope * x. ..."

* the first parameter is the number domain (`d.exp`, `d.maximum` ...), see `domain.py`;
* positional parameters are operands; `None` as default makes one optional; `*xs` makes the op variadic;
* keyword-only parameters are fields. A field without default must always be given. `Fill(n)` as default stands for
  a tuple of n's of whatever length the operands demand (strides, pads, dilations): it only decides whether a field
  has its default value; readers and rules always give such a field as a concrete tuple.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class Fill:
    """The default of a tuple field whose length depends on the rank: equal to any tuple of `value`s."""

    value: int

    def accepts(self, given: Any) -> bool:
        return isinstance(given, tuple) and all(v == self.value for v in given)


class Required:
    """The default of a field that has none."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


@dataclass(frozen=True)
class Op:
    """One entry of the vocabulary."""

    name: str
    operands: tuple[str, ...]
    optional: frozenset[str]
    variadic: bool
    fields: Mapping[str, Any]
    """Field name to default value, `REQUIRED` or `Fill`."""
    commutative: bool
    outputs: int | None
    """Number of outputs; None if it depends on the fields (split)."""
    meaning: Callable[..., Any]

    def is_default(self, field: str, value: Any) -> bool:
        default = self.fields[field]
        if isinstance(default, Fill):
            return default.accepts(value)
        return default is not REQUIRED and type(default) is type(value) and bool(default == value)


OPS: dict[str, Op] = {}
"""The vocabulary by name. Filled when `graphopt.ir.ops` is imported."""

F = TypeVar("F", bound=Callable[..., Any])


def op(*, commutative: bool = False, outputs: int | None = 1) -> Callable[[F], F]:
    """Declare the decorated function as an op of the vocabulary, named as the function (a trailing `_` dropped)."""

    def declare(meaning: F) -> F:
        parameters = list(inspect.signature(meaning).parameters.values())[1:]
        positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        variadic = [p for p in parameters if p.kind is p.VAR_POSITIONAL]
        keyword = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        name = meaning.__name__.rstrip("_")
        OPS[name] = Op(
            name=name,
            operands=tuple(p.name for p in positional + variadic),
            optional=frozenset(p.name for p in positional if p.default is None),
            variadic=bool(variadic),
            fields={p.name: REQUIRED if p.default is p.empty else p.default for p in keyword},
            commutative=commutative,
            outputs=outputs,
            meaning=meaning,
        )
        return meaning

    return declare
