"""Reading: an ATen node in the vocabulary, or the reason why it cannot be said exactly.

A reader is a function of a `Reading`; the table maps operators to the vocabulary name and the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import fx

from graphopt.ir.fx.schema import (
    arguments,
    find_operator,
    is_operator,
    operator_has_effects,
    raw_name_of,
    short_name,
)
from graphopt.ir.fx.strides import read_by
from graphopt.ir.fx.tensors import type_of
from graphopt.ir.graph import Call, Literal, Node, TensorType, Unreadable, Value

if TYPE_CHECKING:
    from graphopt.ir.fx.storage import FxGraph


class CannotRead(Exception):
    """Raised by a reader: what the node does cannot be said exactly. Carries the reason."""


class Said(NamedTuple):
    """What a reader found: operands, fields, and how many of the node's outputs the vocabulary's op has."""

    operands: Sequence[Value | None]
    fields: Mapping[str, Any] = {}
    outputs: int = 1


class Reading:
    """The arguments of one node by the names of its schema, and what readers ask about them."""

    __slots__ = ("_args", "graph", "node", "op")

    def __init__(self, graph: FxGraph, node: Node, op: str) -> None:
        self.graph = graph
        self.node = node
        self.op = op
        self._args: dict[str, Any] | None = None

    @property
    def args(self) -> dict[str, Any]:
        """Every argument by name, defaults filled in."""
        if self._args is None:
            self._args = arguments(self.node)
        return self._args

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def require(self, condition: bool, reason: str) -> None:
        if not condition:
            raise CannotRead(reason)

    def type(self, value: Value | None) -> TensorType:
        """The type of `value`, whose rank is known. Raises CannotRead if there is none."""
        found = None if value is None else self.graph.type(value)
        if found is None:
            raise CannotRead("not a tensor" if value is not None else "absent operand")
        return found

    def result(self, index: int | None = None) -> TensorType:
        """The type of the node's result, or of one of its results."""
        found = self.graph.type(self.node) if index is None else type_of(self.node.meta["val"][index])
        if found is None:
            raise CannotRead("not a tensor")
        return found

    def dims(self, value: Value | None) -> tuple[Any, ...]:
        shape = self.type(value).shape
        assert shape is not None
        return shape

    def rank(self, value: Value | None) -> int:
        return len(self.dims(value))

    def size(self, value: Value | None, axis: int) -> int:
        """The static size of `value` along `axis`."""
        found = self.dims(value)[axis]
        if not isinstance(found, int):
            raise CannotRead("dynamic size")
        return found

    def number(self, name: str) -> Any:
        """An argument that is one number."""
        found = self.args[name]
        if isinstance(found, fx.Node):
            raise CannotRead("dynamic size")
        return found

    def numbers(self, name: str, length: int | None = None) -> tuple[Any, ...]:
        """An argument that is a list of numbers; one number stands for `length` of them."""
        found = self.args[name]
        found = tuple(found) if isinstance(found, (list, tuple)) else (found,)
        if any(isinstance(v, fx.Node) for v in found):
            raise CannotRead("dynamic size")
        if length is not None and len(found) == 1:
            found *= length
        self.require(length is None or len(found) == length, f"{name} has {len(found)} values, not {length}")
        return found

    def axis(self, name: str, rank: int) -> int:
        """An argument that is an axis, counted from the front."""
        found = int(self.number(name))
        return found + rank if found < 0 else found

    def axes(self, name: str, rank: int) -> tuple[int, ...]:
        """An argument that is a set of axes, sorted; absent or empty stands for all."""
        if self.args[name] is None:
            return tuple(range(rank))
        found = sorted(a + rank if a < 0 else a for a in self.numbers(name))
        return tuple(found) or tuple(range(rank))

    def one_dtype(self, *values: Value | None) -> str:
        """The dtype that all of `values` (None left out) have. Raises CannotRead if they differ."""
        first, *rest = [self.type(v).dtype for v in values if v is not None]
        self.require(all(dtype == first for dtype in rest), "type promotion")
        return first

    def keeps_dtype(self, *values: Value | None) -> str:
        """The dtype that `values` and the node's first result have."""
        dtype = self.one_dtype(*values)
        value = self.node.meta.get("val")
        first = self.result(0) if isinstance(value, (tuple, list)) else self.result()
        self.require(first.dtype == dtype, "type promotion")
        return dtype

    def literal(self, value: Any, dtype: str) -> Literal:
        """A Python number as an operand of `dtype`. Raises CannotRead if torch would promote."""
        if isinstance(value, fx.Node):
            raise CannotRead("dynamic size")
        return literal(value, dtype)


def literal(value: bool | int | float, dtype: str) -> Literal:
    """`value` as a Literal of `dtype`. Raises CannotRead if it is of a higher kind than `dtype`."""
    if dtype == "bool":
        if isinstance(value, bool):
            return Literal(value, dtype)
    elif dtype.startswith(("float", "bfloat")):
        if not isinstance(value, complex):
            return Literal(float(value), dtype)
    elif isinstance(value, int) and not dtype.startswith("complex"):
        return Literal(int(value), dtype)
    raise CannotRead("type promotion")


Reader = Callable[[Reading], Said]


class Entry(NamedTuple):
    op: str
    reader: Reader
    plain: bool = False
    """Whether the op takes one tensor, gives one of the same dtype and has no fields."""


READERS: dict[str, Entry] = {}
"""Raw name to the vocabulary name and the reader. Filled when `graphopt.ir.fx.vocabulary` is imported."""
KEYS: dict[Any, str | Callable[[Node], str]] = {}
"""Operator to the key of its nodes, or to the function that tells it."""


def reads(op: str, *names: str, plain: bool = False) -> Callable[[Reader], Reader]:
    """Register the decorated function as what reads the ATen operators `names` ("conv2d.default") as `op`, or those of
    a library ("library.op.default"), which may be loaded later or never. Nodes of `plain` operators are read without it
    if they have one positional argument and no other."""

    def register(reader: Reader) -> Reader:
        for name in names:
            if name.count(".") == 2:
                READERS[name] = Entry(op, reader, plain)
                continue
            raw_name = f"aten.{name}"
            target = find_operator(raw_name)
            if target is None:  # This torch has no such operator, so no graph can hold it.
                continue
            READERS[raw_name] = Entry(op, reader, plain)
            KEYS[target] = op
        return reader

    return register


class Target:
    """What is known of all nodes that run one operator."""

    __slots__ = ("target", "raw_name", "short_name", "key", "key_of", "entry", "has_effects", "strides")

    def __init__(self, target: Any) -> None:
        self.target = target
        self.raw_name = raw_name_of(target)
        self.short_name = short_name(target)
        self.entry = READERS.get(self.raw_name)
        key = KEYS.get(target) or (self.entry.op if self.entry is not None else self.raw_name)
        self.key = key if isinstance(key, str) else ""
        """The vocabulary name of the nodes if there is a reader for them, else their raw name; "" if nodes differ."""
        self.key_of: Callable[[Node], str] = (lambda _: self.key) if isinstance(key, str) else key
        self.has_effects = operator_has_effects(target) if is_operator(target) else None
        """Whether the nodes do more than compute; None if that depends on the node."""
        self.strides = read_by(target)
        """What the nodes may read of how their operands lie in memory."""


def read(graph: FxGraph, node: Node, target: Target) -> Call | Unreadable:
    """`node`, which runs `target`, in the vocabulary."""
    entry = target.entry
    if entry is None:
        return Unreadable(f"the vocabulary has no {target.raw_name}")
    if entry.plain and len(args := node.args) == 1:
        given, result = graph.type(args[0]), graph.type(node)
        if given is not None and result is not None and given.dtype == result.dtype:
            return Call(node, entry.op, args, {}, (node,))
    op = target.key_of(node)
    try:
        said = entry.reader(Reading(graph, node, op))
        outputs = _outputs(graph, node, said.outputs)
    except CannotRead as refusal:
        return Unreadable(str(refusal))
    return Call(node, op, tuple(said.operands), said.fields, outputs)


def _outputs(graph: FxGraph, node: Node, count: int) -> tuple[Value | None, ...]:
    """The first `count` outputs. Raises CannotRead if anything reads another one."""
    results = graph.results(node)
    if len(results) == count:
        return results
    for index, value in enumerate(results[count:], count):
        if value is not None and value.users:
            raise CannotRead(f"output {index} is used, which the vocabulary does not have")
    return results[:count]
