"""The Graph protocol: what matching, rewriting and verification need of a graph, whatever stores it.

A `Graph` is a view of the real thing (an `onnx_ir` graph, a torch `ExportedProgram`, or an in-memory scratch
graph). `Node` and `Value` are opaque handles that belong to the storage; only the storage looks inside them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from graphopt.ir.weights import TensorRef

Node: TypeAlias = Any
Value: TypeAlias = Any
Dim: TypeAlias = int | str | None
"""A dimension: a size, the name of a symbolic size (equal names are equal sizes), or None when nothing is known."""
Undo: TypeAlias = Callable[[], None]


_SIZES = frozenset({int})


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape of a value.

    `dtype` is numpy's name ("float32", "bfloat16", "int64", "bool" ...). `shape` is None when even the rank is
    unknown.
    """

    dtype: str
    shape: tuple[Dim, ...] | None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def is_static(self) -> bool:
        return self.shape is not None and _SIZES.issuperset(map(type, self.shape))

    def __str__(self) -> str:
        dims = "*" if self.shape is None else ",".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"


def compatible(a: TensorType, b: TensorType) -> bool:
    """Whether two types can describe one value."""
    if a is b or a == b:
        return True
    if a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    if len(a.shape) != len(b.shape):
        return False
    return all(not (isinstance(x, int) and isinstance(y, int)) or x == y for x, y in zip(a.shape, b.shape, strict=True))


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant operand that the storage keeps inside the node (a Python number in FX, an old ONNX attribute).

    It is a `Value`: `Graph.constant`, `Graph.type` and `Graph.name` answer for it.
    """

    value: bool | int | float
    dtype: str


class Call:
    """A node read in the vocabulary: `outputs = op(*operands, **fields)`. Immutable once read.

    `operands` holds a Value, or None for an optional operand that is absent. Trailing absent operands are kept,
    so that positions always follow the op's signature; a variadic op holds as many operands as it is given.
    `outputs` holds None for an output that nothing can refer to.
    """

    __slots__ = ("node", "op", "operands", "fields", "outputs")

    def __init__(
        self,
        node: Node,
        op: str,
        operands: tuple[Value | None, ...],
        fields: Mapping[str, Any],
        outputs: tuple[Value | None, ...],
    ) -> None:
        self.node = node
        self.op = op
        self.operands = operands
        self.fields = fields
        self.outputs = outputs

    def __repr__(self) -> str:
        return f"Call({self.op}, {len(self.operands)} operands, {dict(self.fields)})"


INVALID = (LookupError, ValueError, ArithmeticError, TypeError)
"""What reading raises of a node that has no meaning, as one that names an axis which its operand does not have. Nothing
keeps a file from holding one."""


class Unreadable:
    """Why a node cannot be said in the vocabulary. Falsy, so that `if call := graph.call(node)` reads well."""

    __slots__ = ("reason",)

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"Unreadable({self.reason!r})"


class CannotEmit(Exception):
    """Raised by a writer that cannot say a call exactly in its storage. Carries the reason; never reaches users."""


class Branches(NamedTuple):
    """A node that runs one of two bodies."""

    condition: Value
    taken: Graph
    """What runs if the condition is true."""
    otherwise: Graph
    operands: tuple[Value, ...]
    """What the inputs of either body are; what a body captures it reads from the regions around it."""

    def body(self, condition: bool) -> Graph:
        return self.taken if condition else self.otherwise


class Graph(ABC):
    """One region of a model: the main graph, a control-flow body or a local function.

    Reading is pure. The editing methods return what undoes them; nothing is ever edited without an undo, so that
    a rewrite costs and reverts in proportion to its own size.
    """

    storage: str
    """"onnx", "fx" or "scratch"."""

    # ---- reading -------------------------------------------------------------------------------------------

    @abstractmethod
    def nodes(self) -> Iterator[Node]:
        """Nodes of this region in topological order. Safe while nodes are inserted or removed."""

    @abstractmethod
    def inputs(self) -> Sequence[Value]:
        """Inputs of this region that the caller provides (weights are not among them)."""

    @abstractmethod
    def outputs(self) -> Sequence[Value]:
        """Outputs of this region, in order; a value may occur twice."""

    @abstractmethod
    def key(self, node: Node) -> str:
        """The vocabulary name that `node` would have if it can be read, else its raw name
        ("ai.onnx::LSTM", "aten.lstm.input"). Cheap: it is what the rule index looks at."""

    @abstractmethod
    def raw_name(self, node: Node) -> str:
        """The storage's own name of the op ("ai.onnx::Conv", "com.microsoft::FusedConv", "aten.conv2d.default")."""

    @abstractmethod
    def call(self, node: Node) -> Call | Unreadable:
        """`node` in the vocabulary, or why it cannot be said exactly: what can be said is pure. Cached until the node
        changes."""

    @abstractmethod
    def raw_call(self, node: Node) -> Call:
        """`node` as the storage has it: `op` is the raw name, `fields` the raw attributes. Never fails."""

    def results(self, node: Node) -> Sequence[Value | None]:
        """The outputs of `node`, None for those that nothing can refer to. Cheaper than `raw_call`."""
        return self.raw_call(node).outputs

    def operand_keys(self, node: Node) -> tuple[str, ...]:
        """The keys of the nodes of this region whose outputs `node` reads; `call` has no operand from elsewhere.
        Cheap, and needs no reading: the rule index looks at every node with it."""
        operands = self.raw_call(node).operands
        producers = (self.producer(o) for o in operands if o is not None)
        return tuple(self.key(p) for p in producers if p is not None)

    @abstractmethod
    def producer(self, value: Value) -> Node | None:
        """The node of *this region* that computes `value`; None for inputs, weights, literals and outer values."""

    @abstractmethod
    def users(self, value: Value) -> Sequence[Node]:
        """Nodes that read `value`, in a deterministic order, those inside control-flow bodies included."""

    def readers(self, node: Node) -> Sequence[Node]:
        """Nodes that read an output of `node`, once for each that they read, in a deterministic order."""
        return [user for output in self.results(node) if output is not None for user in self.users(output)]

    def is_unread(self, node: Node) -> bool:
        """Whether nothing reads any output of `node`, and none is an output of the graph."""
        outputs = [o for o in self.results(node) if o is not None]
        return not any(self.is_output(o) or self.users(o) for o in outputs)

    @abstractmethod
    def is_output(self, value: Value) -> bool:
        """Whether `value` is an output of the region that owns it."""

    def may_be_returned(self, value: Value) -> bool:
        """Whether an output of the region may share the memory of `value`: is it, or, in a torch graph, a view of it.
        What a buffer is written with is an output too. ONNX knows no memory."""
        return self.is_output(value)

    def would_share(self, old: Value, new: Value) -> bool:
        """Whether an output that may be a view of `old` would share memory with an input, a weight or another output
        if it were a view of `new`, and does not now. `replace` writes a copy then, and one better leaves it."""
        return False

    def confines(self, value: Value, nodes: AbstractSet[Node]) -> bool:
        """Whether nothing but `nodes` reads `value`, and it is no output."""
        return not self.is_output(value) and all(user in nodes for user in self.users(value))

    @abstractmethod
    def type(self, value: Value) -> TensorType | None:
        """Type of `value`, or None if nothing is known."""

    @abstractmethod
    def constant(self, value: Value) -> TensorRef | None:
        """The data of `value` if it can never change: a weight that nothing writes and no caller may override."""

    @abstractmethod
    def name(self, value: Value) -> str:
        """The name of `value` in the storage; unique within the model."""

    @abstractmethod
    def node_name(self, node: Node) -> str:
        """A name for `node` that is stable between runs and unique within its region."""

    @abstractmethod
    def subgraphs(self, node: Node) -> Sequence[Graph]:
        """The control-flow bodies that `node` holds."""

    def branches(self, node: Node) -> Branches | None:
        """The two bodies of `node` and what decides between them; None if it is no such node."""
        return None

    @abstractmethod
    def is_pure(self, node: Node) -> bool:
        """False if `node` may not be removed, duplicated or merged: random numbers, side effects, unknown ops with
        effects."""

    @abstractmethod
    def precedes(self, a: Node, b: Node) -> bool:
        """Whether `a` stands before `b` in this region."""

    # ---- editing -------------------------------------------------------------------------------------------

    @abstractmethod
    def can_emit(self, op: str, fields: Mapping[str, Any], types: Sequence[TensorType | None]) -> str | None:
        """None if the storage can say `op` exactly with these fields and operand types, else the reason."""

    @abstractmethod
    def insert(
        self,
        op: str,
        operands: Sequence[Value | None],
        fields: Mapping[str, Any],
        *,
        before: Node,
        types: Sequence[TensorType | None],
    ) -> tuple[list[Value], list[Node], Undo]:
        """Write `op` in front of `before`; `types` are those of its outputs, where known.

        Returns the output values, the nodes written and the undo. `op` may be a raw name of this storage; then
        `fields` are raw attributes. Raises CannotEmit, leaving the graph as it was.
        """

    def insert_copy(
        self, node: Node, read: Callable[[Value], Value], *, before: Node
    ) -> tuple[list[Value | None], list[Node], Undo]:
        """Write a copy of `node`, which stands in a body of this region and has bodies itself, in front of `before`.

        It reads `read(value)` for each value that `node` reads from outside itself. Returns as `insert` does.
        Raises CannotEmit, leaving the graph as it was, where the storage cannot copy control flow.
        """
        raise CannotEmit(f"a {self.storage} graph takes no copy of {self.raw_name(node)}, which has bodies")

    @abstractmethod
    def add_constant(self, data: TensorRef, name: str) -> tuple[Value, Undo]:
        """Add a weight to this region under a fresh name derived from `name`."""

    @abstractmethod
    def replace(self, old: Value, new: Value) -> Undo:
        """Let every user of `old`, and every output that is `old`, read `new` instead.

        The name of a graph output is interface and is kept: `new` takes it over, or an identity is written if
        `new` is itself an input, a weight or another output.
        """

    def redirect(self, old: Value, new: Value) -> tuple[Sequence[Node], Undo]:
        """As `replace`; the nodes that read `new` instead, and the undo."""
        return self.users(old), self.replace(old, new)

    @abstractmethod
    def store(self, value: Value, data: TensorRef) -> Undo:
        """Let the weight `value` hold `data` of the same dtype, perhaps in another shape; its name stays.

        The types of what is computed from it are brought up to date with `retype`. Raises CannotEmit if `value` is not
        stored by this region.
        """

    @abstractmethod
    def retype(self, node: Node, types: Sequence[TensorType | None]) -> Undo:
        """Let the outputs of `node` have `types`, which follow from those that its operands have now.

        Raises CannotEmit if the storage can tell that they do not.
        """

    @abstractmethod
    def remove(self, node: Node) -> None:
        """Remove `node`, of whose outputs nothing reads any. Final: the driver removes only what is decided."""

    def remove_unread(self, nodes: Iterable[Node]) -> list[Node]:
        """Remove those of `nodes` (readers first) of whose outputs nothing reads any by then; returns them. Final."""
        removed = []
        for node in nodes:
            if self.is_unread(node):
                self.remove(node)
                removed.append(node)
        return removed

    # ---- fragments -----------------------------------------------------------------------------------------

    @abstractmethod
    def cut(self, nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> Graph:
        """A small runnable graph of the same storage holding copies of `nodes`. `inputs` become its inputs,
        every other value that it reads must be a constant and is captured."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of structure and names (not of weight data): equal before and after anything that was undone."""
