"""`build` inside a rewrite: vocabulary ops and weights, written at the match through the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from types import MethodType
from typing import Any

import numpy as np

from graphopt.errors import RuleError, did_you_mean
from graphopt.ir.graph import Call, CannotEmit, Graph, Node, TensorType, Value
from graphopt.ir.ops import OPS
from graphopt.ir.ops.spec import REQUIRED, Fill, Op
from graphopt.ir.weights import Array, TensorRef, as_ref
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.matcher import Bindings

_NUMBERS = (int, float, complex, np.ndarray, np.generic)


class Builder:
    """`build.<op>(*operands, like=None, **fields)` writes a call in front of the match and returns its output.

    Operands are value handles, `TensorRef`s (a captured weight is reused, a new one is added) or None. `like` is a
    value whose type the output has, or that type; the type of the value that is finally replaced need not be given.
    """

    __slots__ = ("_graph", "_journal", "_before", "_known")

    def __init__(self, graph: Graph, journal: Journal, before: Node, bindings: Bindings) -> None:
        self._graph = graph
        self._journal = journal
        self._before = before
        # The ref is held beside its value so that its id stays its own.
        self._known: dict[int, tuple[TensorRef, Value]] = {}
        for name, ref in bindings.constants.items():
            self._known[id(ref)] = ref, bindings.values[name]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = name.rstrip("_")
        if op not in OPS:
            raise RuleError(
                f"build.{name}: not in the vocabulary{did_you_mean(op, OPS)}; build.raw(name, ...) writes an op of one "
                "storage"
            )
        write = _writer(OPS[op])
        setattr(Builder, name, write)  # The next time it is found at once.
        return MethodType(write, self)

    def raw(self, name: str, *operands: Any, like: Value | TensorType | None = None, **attributes: Any) -> Any:
        """Write an op by its storage's own name with the storage's own attributes."""
        return self._write(name, operands, attributes, like)

    def can(self, op: str, *operands: Any, **fields: Any) -> bool:
        """Whether the storage can say `op` exactly with these operands and fields."""
        if op not in OPS:
            raise RuleError(f"build.can({op!r}): not in the vocabulary{did_you_mean(op, OPS)}")
        types = [self._type(o) for o in operands]
        return self._graph.can_emit(op, _complete(OPS[op], fields), types) is None

    def const(self, data: TensorRef | Array | float, name: str = "weight", dtype: str | None = None) -> Value:
        """A new weight. Numbers and arrays need `dtype` when theirs is not the one wanted."""
        ref = as_ref(data, dtype)
        if id(ref) not in self._known:
            self._known[id(ref)] = ref, self._journal.add_constant(ref, name)
        return self._known[id(ref)][1]

    def _write(self, op: str, operands: Sequence[Any], fields: dict[str, Any], like: Any) -> Any:
        values: list[Value | None] = []
        for given in operands:
            kind = _kind(given.__class__)
            if isinstance(kind, str):
                raise RuleError(
                    f"build.{op} is given a {type(given).__name__}; expected values of the graph and TensorRefs; {kind}"
                )
            values.append(self.const(given) if kind is TensorRef else given)
        if isinstance(like, str | Call | TensorRef | tuple):
            raise RuleError(f"build.{op}: like={like!r}: expected a value of the graph, as m.out, or a TensorType")
        types = () if like is None else (like if isinstance(like, TensorType) else self._graph.type(like),)
        outputs = self._journal.insert(op, values, fields, before=self._before, types=types)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _type(self, operand: Any) -> TensorType | None:
        if isinstance(operand, TensorRef):
            return TensorType(operand.dtype, operand.shape)
        return None if operand is None else self._graph.type(operand)


@cache
def _kind(given: type) -> Any:
    """What an operand of this type is: a `TensorRef`, None for a handle of the graph, or, of what is neither, what to
    do about it."""
    if issubclass(given, _NUMBERS):
        return "make a weight of it with build.const"
    if issubclass(given, Call):
        return "of a call take a value, as in m.conv.outputs[0]"
    if issubclass(given, str | list | tuple | dict | TensorType):
        return "give each of them as an operand of its own" if issubclass(given, list | tuple) else "such as m.x"
    return TensorRef if issubclass(given, TensorRef) else None


def require_result(given: Any) -> None:
    """Raises RuleError for what a rewrite returns and no value of the graph is."""
    kind = _kind(given.__class__)
    if kind is None and not isinstance(given, bool | None):
        return
    advice = "return what build.<op>(...) gives, or m.x"
    if kind is TensorRef:
        advice = "write a weight with build.const(...)"
    raise RuleError(f"the rewrite returned a {type(given).__name__} and no value of the graph; {advice}")


def _writer(spec: Op) -> Callable[..., Any]:
    """The method of `Builder` that writes an op of the vocabulary."""
    op, has_fields, arity = spec.name, bool(spec.fields), 0 if spec.variadic else len(spec.operands)

    def write(self: Builder, *operands: Any, like: Value | TensorType | None = None, **fields: Any) -> Any:
        if has_fields or fields:
            _complete(spec, fields)
        if arity and len(operands) != arity:
            _check_count(spec, len(operands))
            operands += (None,) * (arity - len(operands))
        return self._write(op, operands, fields, like)

    return write


def _check_count(spec: Op, given: int) -> None:
    missing = [name for name in spec.operands[given:] if name not in spec.optional]
    if missing or given > len(spec.operands):
        said = f"is not given {missing[0]!r}" if missing else f"is given {given} operands"
        raise RuleError(f"build.{spec.name} {said}; its operands are {', '.join(spec.operands)}")


def _complete(spec: Op, fields: dict[str, Any]) -> dict[str, Any]:
    """`fields`, to which the defaults of those that are not given are added."""
    for name, default in spec.fields.items():
        if name in fields:
            continue
        if default is REQUIRED or isinstance(default, Fill):
            _refuse_unknown(spec, fields)
            raise CannotEmit(f"build.{spec.name} must be given {name}")
        fields[name] = default
    if len(fields) > len(spec.fields):
        _refuse_unknown(spec, fields)
    return fields


def _refuse_unknown(spec: Op, fields: dict[str, Any]) -> None:
    if unknown := fields.keys() - spec.fields.keys():
        known = ", ".join(spec.fields) or "none"
        raise CannotEmit(f"build.{spec.name} has no field {sorted(unknown)[0]!r}; its fields are: {known}")
