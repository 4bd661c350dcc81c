"""A small in-memory graph of vocabulary calls: float64 twins of fragments, generated test graphs, conversion.

It can hold nothing but vocabulary ops, so whatever it holds can be evaluated by the ops' own meanings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.ir.graph import Call, CannotEmit, Graph, Literal, Node, TensorType, Undo, Unreadable, Value
from graphopt.ir.ops import OPS
from graphopt.ir.ops.spec import REQUIRED
from graphopt.ir.rowwise import evaluated
from graphopt.ir.weights import FLOATS, Array, ArrayRef, TensorRef, numpy_dtype


class ScratchValue:
    __slots__ = ("data", "name", "producer", "type", "users")

    def __init__(self, name: str, type_: TensorType | None, data: TensorRef | None = None) -> None:
        self.name = name
        self.type = type_
        self.data = data
        self.producer: ScratchNode | None = None
        self.users: list[ScratchNode] = []


class ScratchNode:
    __slots__ = ("call", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.call: Call = Call(self, "", (), {}, ())


class ScratchGraph(Graph):
    """Implements the whole protocol; editing costs are linear in the graph, which is a fragment."""

    storage = "scratch"

    def __init__(self) -> None:
        self._nodes: list[ScratchNode] = []
        self._inputs: list[ScratchValue] = []
        self._outputs: list[ScratchValue] = []
        self._count = 0

    # ---- building ------------------------------------------------------------------------------------------

    def add_input(self, type_: TensorType | None, name: str | None = None) -> ScratchValue:
        value = ScratchValue(name or self._fresh("x"), type_)
        self._inputs.append(value)
        return value

    def add_output(self, value: Value) -> None:
        self._outputs.append(value)

    def append(self, op: str, *operands: Any, types: Sequence[TensorType | None] = (), **fields: Any) -> Any:
        """Add `op` at the end; TensorRef operands become constants. Returns its output, or the tuple of them."""
        values = [self.add_constant(o, "c")[0] if isinstance(o, TensorRef) else o for o in operands]
        outputs = self.append_call(op, values, fields, types).call.outputs
        return outputs[0] if len(outputs) == 1 else outputs

    def append_call(
        self, op: str, operands: Sequence[Value | None], fields: Mapping[str, Any], types: Sequence[TensorType | None]
    ) -> ScratchNode:
        """Add `op` at the end; returns its node."""
        node = self._make(op, operands, fields, types)
        self._nodes.append(node)
        return node

    def _fresh(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def _make(
        self, op: str, operands: Sequence[Value | None], fields: Mapping[str, Any], types: Sequence[TensorType | None]
    ) -> ScratchNode:
        reason = self.can_emit(op, fields, [])
        if reason is not None:
            raise CannotEmit(reason)
        spec = OPS[op]
        given = {k: v for k, v in spec.fields.items() if v is not REQUIRED} | dict(fields)
        padded = tuple(operands)
        if not spec.variadic:
            padded += (None,) * (len(spec.operands) - len(padded))
        count = spec.outputs if spec.outputs is not None else len(given["sizes"])
        node = ScratchNode(self._fresh(op))
        outputs = []
        for i in range(count):
            value = ScratchValue(self._fresh("v"), types[i] if i < len(types) else None)
            value.producer = node
            outputs.append(value)
        node.call = Call(node, op, padded, given, tuple(outputs))
        for operand in _values(padded):
            operand.users.append(node)
        return node

    # ---- reading -------------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        return iter(list(self._nodes))

    def inputs(self) -> Sequence[Value]:
        return self._inputs

    def outputs(self) -> Sequence[Value]:
        return self._outputs

    def key(self, node: Node) -> str:
        return str(node.call.op)

    raw_name = key

    def call(self, node: Node) -> Call | Unreadable:
        call: Call = node.call
        return call

    def raw_call(self, node: Node) -> Call:
        call: Call = node.call
        return call

    def producer(self, value: Value) -> Node | None:
        return value.producer if isinstance(value, ScratchValue) else None

    def users(self, value: Value) -> Sequence[Node]:
        return value.users if isinstance(value, ScratchValue) else ()

    def is_output(self, value: Value) -> bool:
        return any(value is o for o in self._outputs)

    def type(self, value: Value) -> TensorType | None:
        if isinstance(value, Literal):
            return TensorType(value.dtype, ())
        type_: TensorType | None = value.type
        return type_

    def constant(self, value: Value) -> TensorRef | None:
        if isinstance(value, Literal):
            return ArrayRef(np.asarray(value.value, numpy_dtype(value.dtype)))
        data: TensorRef | None = value.data
        return data

    def name(self, value: Value) -> str:
        return str(value.value) if isinstance(value, Literal) else value.name

    def node_name(self, node: Node) -> str:
        return str(node.name)

    def subgraphs(self, node: Node) -> Sequence[Graph]:
        return ()

    def is_pure(self, node: Node) -> bool:
        return True

    def precedes(self, a: Node, b: Node) -> bool:
        return self._nodes.index(a) < self._nodes.index(b)

    # ---- editing -------------------------------------------------------------------------------------------

    def can_emit(self, op: str, fields: Mapping[str, Any], types: Sequence[TensorType | None]) -> str | None:
        spec = OPS.get(op)
        if spec is None:
            return f"{op} is not an op of the vocabulary"
        if unknown := set(fields) - set(spec.fields):
            return f"{op} has no field {sorted(unknown)[0]}"
        missing = [k for k, v in spec.fields.items() if v is REQUIRED and k not in fields]
        return f"{op} needs the field {missing[0]}" if missing else None

    def insert(
        self,
        op: str,
        operands: Sequence[Value | None],
        fields: Mapping[str, Any],
        *,
        before: Node,
        types: Sequence[TensorType | None],
    ) -> tuple[list[Value], list[Node], Undo]:
        node = self._make(op, operands, fields, types)
        self._nodes.insert(self._nodes.index(before), node)
        return list(node.call.outputs), [node], lambda: self.remove(node)

    def add_constant(self, data: TensorRef, name: str) -> tuple[Value, Undo]:
        return ScratchValue(self._fresh(name), TensorType(data.dtype, data.shape), data), lambda: None

    def store(self, value: Value, data: TensorRef) -> Undo:
        if not isinstance(value, ScratchValue) or value.data is None:
            raise CannotEmit(f"{self.name(value)} is no weight")
        before = value.data, value.type
        value.data, value.type = data, TensorType(data.dtype, data.shape)

        def undo() -> None:
            value.data, value.type = before

        return undo

    def retype(self, node: Node, types: Sequence[TensorType | None]) -> Undo:
        outputs = node.call.outputs
        before = [o.type for o in outputs]
        for output, type_ in zip(outputs, types, strict=True):
            output.type = type_

        def undo() -> None:
            for output, type_ in zip(outputs, before, strict=True):
                output.type = type_

        return undo

    def replace(self, old: Value, new: Value) -> Undo:
        changed = list(old.users)
        calls = [node.call for node in changed]
        outputs = list(self._outputs)
        new_users = list(new.users) if isinstance(new, ScratchValue) else []
        for node in changed:
            call = node.call
            operands = tuple(new if o is old else o for o in call.operands)
            node.call = Call(node, call.op, operands, call.fields, call.outputs)
            if isinstance(new, ScratchValue) and node not in new.users:
                new.users.append(node)
        old.users = []
        self._outputs = [new if o is old else o for o in outputs]
        untyped = isinstance(new, ScratchValue) and new.type is None
        if untyped:
            new.type = old.type

        def undo() -> None:
            if untyped:
                new.type = None
            for node, call in zip(changed, calls, strict=True):
                node.call = call
            old.users = changed
            if isinstance(new, ScratchValue):
                new.users = new_users
            self._outputs = outputs

        return undo

    def remove(self, node: Node) -> None:
        self._nodes.remove(node)
        for operand in _values(node.call.operands):
            operand.users.remove(node)

    # ---- fragments -----------------------------------------------------------------------------------------

    def cut(self, nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> ScratchGraph:
        from graphopt.ir.transcribe import transcribe

        return transcribe(self, list(nodes), inputs, outputs)[0]

    def fingerprint(self) -> str:
        names = {id(v): v.name for v in self._inputs}
        lines = [f"in {v.name} {v.type}" for v in self._inputs]
        for node in self._nodes:
            call = node.call
            operands = [self._label(o, names) for o in call.operands]
            outputs = _values(call.outputs)
            names.update({id(o): o.name for o in outputs})
            lines.append(f"{sorted(names[id(o)] for o in outputs)} = {call.op}{operands} {sorted(call.fields.items())}")
        lines.append(f"out {[o.name for o in self._outputs]}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @staticmethod
    def _label(value: Value | None, names: Mapping[int, str]) -> str:
        if value is None or isinstance(value, Literal):
            return str(value)
        return names.get(id(value)) or f"const {value.data!r}"

    def evaluate(
        self,
        feeds: Sequence[Any],
        domain: Any,
        leaf: Callable[[TensorRef], Any],
        observe: Callable[[ScratchValue, Any], None] | None = None,
    ) -> list[Any]:
        """Values of the outputs over `domain`, by the ops' meanings; `leaf` brings constants into the domain.
        `observe` is told every value of the graph; without it, only what the outputs need is computed."""
        env: dict[int, Any] = {id(v): f for v, f in zip(self._inputs, feeds, strict=True)}
        if observe is not None:
            for value, feed in zip(self._inputs, feeds, strict=True):
                observe(value, feed)
        for node in self._needed() if observe is None else self._nodes:
            call = node.call
            operands = [None if o is None else self._fetch(o, env, leaf) for o in call.operands]
            results = OPS[call.op].meaning(domain, *operands, **call.fields)
            if len(call.outputs) == 1 and not isinstance(results, tuple | list):
                results = (results,)
            for output, result in zip(call.outputs, results, strict=True):
                env[id(output)] = result
                if observe is not None and output is not None:
                    observe(output, result)
        return [self._fetch(o, env, leaf) for o in self._outputs]

    def _needed(self) -> list[ScratchNode]:
        """The nodes that the outputs depend on, in order."""
        wanted = _values(self._outputs)
        needed = []
        for node in reversed(self._nodes):
            if not wanted.isdisjoint(_values(node.call.outputs)):
                needed.append(node)
                wanted |= _values(node.call.operands)
        return needed[::-1]

    def _fetch(self, value: Value, env: dict[int, Any], leaf: Callable[[TensorRef], Any]) -> Any:
        if isinstance(value, ScratchValue) and value.data is None:
            return env[id(value)]
        if id(value) in env:
            return env[id(value)]
        data = self.constant(value)
        if data is None:
            raise KeyError(value)
        env[id(value)] = result = leaf(data)
        return result


def _values(operands: Sequence[Value | None]) -> set[ScratchValue]:
    return {o for o in operands if isinstance(o, ScratchValue)}


def float64_leaf(data: TensorRef) -> Array:
    """A constant as the float64 domain takes it: floats widened, integers and booleans as they are."""
    return evaluated(data, numpy_dtype("float64" if data.dtype in FLOATS else data.dtype))
