"""Running a whole ONNX graph over a number domain, each node read when its operands are known.

A shape that a file computes, axes that it stores as an input, a branch on a rank: when the nodes are run in their
order over real numbers of a finite field and plain integers, all of these are known by the time they are needed. An op
that the vocabulary cannot say, or whose meaning needs the numbers themselves, is expanded to the function that onnx
defines it by, else it is an unknown function of all that it reads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from graphopt.ir.graph import Call, Literal, TensorType, Value
from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64
from graphopt.ir.weights import FLOATS, Array, TensorRef, as_ref, numpy_dtype
from graphopt.verify.algebra import onnx_nodes
from graphopt.verify.algebra.bodies import run_bodies
from graphopt.verify.algebra.domain import Field
from graphopt.verify.algebra.lifting import Table
from graphopt.verify.algebra.onnx_meanings import own_meaning
from graphopt.verify.algebra.tensor import FieldTensor, Undecided, lift, open_facts
from graphopt.verify.algebra.tokens import MOVES
from graphopt.verify.algebra.unknown import scrambled
from graphopt.verify.fragment import reads

TOKENS = MOVES | {
    "where", "equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "cast", "shape", "dequantize",
}  # fmt: skip
"""Ops that are exact for integers of which only that they are integers is known: nothing overflows in them."""
NESTED = 8
"""How deep functions are expanded."""


class Unknown(Undecided):
    """A node is neither said by the vocabulary nor of known result types."""


@dataclass
class Tensors:
    """What the values of a run are."""

    env: dict[Value, Any] = field(default_factory=dict)
    types: dict[Value, TensorType] = field(default_factory=dict)
    numbers: dict[Value, Array] = field(default_factory=dict)
    """Values that are the same for every input, in their own dtypes."""
    varying: set[Value] = field(default_factory=set)
    """Values that depend on an input's numbers, not on its shape alone."""
    opened: set[Value] = field(default_factory=set)
    """Those of them that depend on an input that was left open."""
    tokens: set[Value] = field(default_factory=set)
    """Integers that were left open, or that follow from real numbers."""


class Running:
    """One program at one point. The facts that readers ask for are those of the values met so far.

    Args:
        domain: a `Field`, or `Float64` to replay.
        leaf: what a stored float tensor is over the domain, and whether its numbers may be looked at.
        table: if given, nodes of constants alone are computed by onnxruntime, and their results read by it.
        end: when to give up, on the clock of `time.perf_counter`.
    """

    def __init__(
        self,
        domain: Float64,
        leaf: Callable[[TensorRef], tuple[Any, bool]],
        table: Table | None = None,
        end: float = math.inf,
    ) -> None:
        self.domain = domain
        self.field = domain if isinstance(domain, Field) else None
        self.leaf = leaf
        self.table = table
        self.end = end
        self.known = Tensors()
        self.computed: set[str] = set()
        """Ops of constants alone that onnxruntime computed."""

    # ---- facts for readers -----------------------------------------------------------------------------------

    def type(self, value: Value) -> TensorType | None:
        return TensorType(value.dtype, ()) if isinstance(value, Literal) else self.known.types.get(value)

    inferred_type = type

    def constant(self, value: Value) -> TensorRef | None:
        if isinstance(value, Literal):
            return as_ref(value.value, value.dtype)
        found = self._number(value)
        return None if found is None else as_ref(found)

    def _number(self, value: Value | None) -> Array | None:
        """The concrete tensor that `value` is, in its own dtype; integers may follow from inputs."""
        if value is None or value in self.known.numbers:
            return self.known.numbers.get(value)
        found, type_ = self.known.env.get(value), self.known.types.get(value)
        if isinstance(found, np.ndarray | np.generic) and type_ is not None and type_.dtype not in FLOATS:
            return onnx_nodes.array_of(found, type_.dtype)
        return None

    # ---- running ---------------------------------------------------------------------------------------------

    def give(self, value: Value, tensor: Any, type_: TensorType, *, varying: bool = True, token: bool = False) -> None:
        """Let an input be `tensor`."""
        self.known.env[value], self.known.types[value] = tensor, type_
        if varying:
            self.known.varying.add(value)
            if isinstance(tensor, FieldTensor):
                self.known.opened.add(value)
        if token:
            self.known.tokens.add(value)

    def run(self, graph: Any, depth: int = 0) -> list[Any]:
        """The outputs of `graph`, whose inputs have been given. Raises Undecided, with the op that is the reason."""
        for node in graph.nodes():
            if time.perf_counter() > self.end:
                raise Undecided("not decided in the time that was given")
            if all(v is None or graph.constant(v) is not None for v in graph.results(node)):
                continue
            for value in node.inputs:
                if value is not None:
                    self._fetch(graph, value)
            try:
                results = self._results(graph, node, depth)
            except Undecided as error:
                raise Undecided(f"{graph.raw_name(node)}: {error}") from error
            self._keep(graph, node, results)
        return [self._fetch(graph, v) for v in graph.outputs()]

    def _fetch(self, graph: Any, value: Value) -> Any:
        known = self.known
        if value in known.env:
            return known.env[value]
        data = graph.constant(value)
        if data is None:
            raise Undecided(f"{graph.name(value)} is neither computed nor a constant of numbers")
        if data.dtype in FLOATS:
            known.env[value], seen = self.leaf(data)
        else:
            known.env[value], seen = data.numpy(), True
        if seen:
            known.numbers[value] = data.numpy()
        known.types[value] = TensorType(data.dtype, data.shape)
        return known.env[value]

    def _keep(self, graph: Any, node: Any, results: Sequence[Any]) -> None:
        """Note results and their types: the dtype is the one of the file, the shape the one that was met."""
        known = self.known
        read = self._of_numbers(node) if _is_cast_like(node) else reads(graph, node)
        varies = graph.raw_name(node) not in ("ai.onnx::Shape", "ai.onnx::Size") and not known.varying.isdisjoint(read)
        inferred: list[Any] | None = None
        for i, (value, result) in enumerate(zip(graph.results(node), results, strict=False)):
            if value is None:
                continue
            if value not in known.types:
                static = graph.type(value)
                if static is None:
                    inferred = self._inferred(graph, node) if inferred is None else inferred
                    static = inferred[i]
                if static is None:
                    raise Undecided(f"{graph.raw_name(node)}: the element type of a result is not known")
                known.types[value] = TensorType(static.dtype, tuple(np.shape(result)))
            known.env[value] = self._as_real(result, known.types[value].dtype)
            if varies:
                known.varying.add(value)
                if not known.opened.isdisjoint(read):
                    known.opened.add(value)
            if isinstance(result, FieldTensor) and result.facts.kind == "int":
                known.tokens.add(value)

    def _as_real(self, result: Any, dtype: str) -> Any:
        """Floats that a meaning made with numpy alone are exact."""
        if self.field is None or isinstance(result, FieldTensor | tuple) or dtype not in FLOATS:
            return result
        return lift(self.field.point, np.asarray(result), dtype)

    # ---- one node --------------------------------------------------------------------------------------------

    def _results(self, graph: Any, node: Any, depth: int) -> Sequence[Any]:
        if (own := own_meaning(self, graph, node)) is not None:
            return own
        if not graph.is_pure(node):
            raise Undecided("it draws random numbers, or nothing is known of it")
        if graph.subgraphs(node):
            return run_bodies(self, graph, node, depth)
        if self.table is not None and (found := self._folded(graph, node)) is not None:
            return found
        call = graph.read_with(node, self)
        reason = "" if isinstance(call, Call) else call.reason
        if isinstance(call, Call) and self._is_exact(call):
            try:
                return self._meaning(call)
            except Undecided as error:
                self._point_has_work_left(error)
                reason = str(error)
        if (expanded := self._expanded(graph, node, depth)) is not None:
            return expanded
        if (found := self._executed(graph, node, floats=False)) is not None:
            return found
        return self._opaque(graph, node, reason)

    def _is_exact(self, call: Call) -> bool:
        """Whether the meaning holds for open integers that overflow."""
        unknown = self.known.tokens.intersection(o for o in call.operands if o is not None)
        if call.op == "cast" and unknown:
            to = call.fields["dtype"]
            return to in FLOATS or to == "bool" or all(_holds(to, self.known.types[v].dtype) for v in unknown)
        return call.op in TOKENS or not unknown

    def _meaning(self, call: Call) -> Sequence[Any]:
        operands = [None if o is None else self._operand(o) for o in call.operands]
        try:
            results = OPS[call.op].meaning(self.domain, *operands, **call.fields)
        except Undecided:
            raise
        except Exception as error:
            raise Undecided(f"its meaning fails: {type(error).__name__}: {error}") from error
        return results if isinstance(results, tuple | list) else (results,)

    def _operand(self, value: Value) -> Any:
        if not isinstance(value, Literal):
            return self.known.env[value]
        if value.dtype in FLOATS:
            return self.domain.number(float(value.value))
        return onnx_nodes.array_of(value.value, value.dtype)

    def _point_has_work_left(self, error: Undecided) -> None:
        exhausted = self.field is None or self.field.point.work > self.field.point.limit
        if exhausted or time.perf_counter() > self.end:
            raise error

    def _types(self, node: Any) -> list[TensorType | None]:
        return [None if v is None else self.known.types.get(v) for v in node.inputs]

    def _inferred(self, graph: Any, node: Any) -> list[Any]:
        data = [self._number(v) for v in node.inputs]
        return onnx_nodes.result_types(node, graph.opsets, self._types(node), data)

    # ---- constants alone -------------------------------------------------------------------------------------

    def _folded(self, graph: Any, node: Any) -> Sequence[Any] | None:
        """The results of a node of constants alone as numbers, read by the table."""
        read = self._of_numbers(node)
        if not read or any(v in self.known.opened or self._number(v) is None for v in read):
            return None
        results = self._executed(graph, node, floats=True)
        if results is None:
            return None
        found: list[Any] = []
        for value, array in zip(graph.results(node), results, strict=False):
            if value is None:
                found.append(None)
                continue
            self.known.numbers[value] = array
            self.known.types[value] = TensorType(array.dtype.name, array.shape)
            real = self.table is not None and array.dtype.name in FLOATS
            found.append(self.table.tensor(array, array.dtype.name) if real and self.table else array)
        return found

    @staticmethod
    def _of_numbers(node: Any) -> list[Value]:
        """The operands whose numbers may matter: of what a CastLike is like that is the type alone."""
        given = node.inputs[:1] if _is_cast_like(node) else node.inputs
        return [v for v in given if v is not None]

    def _executed(self, graph: Any, node: Any, *, floats: bool) -> Sequence[Any] | None:
        """What onnxruntime computes of concrete operands; floats only where rounding may be part of the result."""
        data = [None if v is None else self._number(v) for v in node.inputs]
        if _is_cast_like(node):
            data[1] = np.zeros(0, numpy_dtype(self.known.types[node.inputs[1]].dtype))
        if self.field is None or any(v is not None and d is None for v, d in zip(node.inputs, data, strict=True)):
            return None
        if not floats and not self._whole(graph, node, data):
            return None
        named = [i for i, v in enumerate(node.outputs) if v.name]
        types = [None if d is None else TensorType(d.dtype.name, d.shape) for d in data]
        results = onnx_nodes.executed(node, graph.opsets, types, data)
        if results is None or not all(isinstance(r, np.ndarray) for r in results):
            return None
        self.computed.add(graph.raw_name(node))
        placed: list[Any] = [None] * len(node.outputs)
        for i, result in zip(named, results, strict=True):
            placed[i] = result
        return placed

    def _whole(self, graph: Any, node: Any, data: Sequence[Array | None]) -> bool:
        """Whether operands and results are integers and truth values."""
        types = [*self._inferred(graph, node)] if all(d is None or d.dtype.kind in "biu" for d in data) else [None]
        return all(t is not None and t.dtype not in FLOATS for t in types)

    # ---- ops that the vocabulary does not say ----------------------------------------------------------------

    def _expanded(self, graph: Any, node: Any, depth: int) -> Sequence[Any] | None:
        """The results by the function that onnx defines the op by; None if there is none, or it leads nowhere."""
        body = onnx_nodes.expansion(node, graph.opsets, self._types(node)) if depth < NESTED else None
        if body is None:
            return None
        from graphopt.ir.onnx.model import OnnxModel

        main = OnnxModel(body).main
        inside = Running(self.domain, self.leaf, self.table, self.end)
        place: dict[Any, Value] = {f"i{i}": v for i, v in enumerate(node.inputs) if v is not None}
        for value in main.ir.inputs:
            outer = place[value.name]
            varying, token = outer in self.known.varying, outer in self.known.tokens
            inside.give(value, self.known.env[outer], self.known.types[outer], varying=varying, token=token)
            if (number := self._number(outer)) is not None and outer not in self.known.opened:
                inside.known.numbers[value] = number
        try:
            made = inside.run(main, depth + 1)
        except Undecided as error:
            self._point_has_work_left(error)
            return None
        self.computed |= inside.computed
        by_name: dict[Any, Any] = {
            v.name: (r, inside.known.types[v]) for v, r in zip(main.outputs(), made, strict=True)
        }
        results: list[Any] = []
        for i, value in enumerate(node.outputs):
            result, type_ = by_name[f"o{i}"] if value.name else (None, None)
            if type_ is not None:
                self.known.types[value] = type_
            results.append(result)
        return results

    def _opaque(self, graph: Any, node: Any, reason: str) -> Sequence[Any]:
        """Unknown tensors that follow from the op, its attributes and all that it reads."""
        if self.field is None:
            raise Undecided(reason or "it has no meaning in float64")
        point = self.field.point
        label = onnx_nodes.said(node, graph.opsets)
        label += str([None if t is None else t.dtype for t in self._types(node)])
        operands = [None if v is None else self.known.env[v] for v in node.inputs]
        while operands and operands[-1] is None:
            operands.pop()
        inferred = self._inferred(graph, node)
        results: list[Any] = []
        for i, (value, type_) in enumerate(zip(graph.results(node), inferred, strict=True)):
            if value is None:
                results.append(None)
                continue
            if type_ is None or not type_.is_static or not _is_number(type_.dtype):
                raise Unknown(f"{reason or 'it has no meaning'}, and the shape of its result is not known")
            tensors = [None if o is None else o if isinstance(o, FieldTensor) else lift(point, o) for o in operands]
            results.append(scrambled(point, tensors, f"{label} {i}", type_.shape, open_facts(type_.dtype)))
        point.functions.add(graph.raw_name(node))
        return results


def _is_cast_like(node: Any) -> bool:
    return bool(node.op_type == "CastLike" and node.domain == "")


def _holds(wide: str, narrow: str) -> bool:
    """Whether every number of one integer type is one of another."""
    return bool(np.can_cast(numpy_dtype(narrow), numpy_dtype(wide)))


def _is_number(dtype: str) -> bool:
    """Whether a tensor can be unknown; the floats of 8 and 4 bits are but moved and cast, as integers are."""
    return dtype in FLOATS or dtype.startswith(("bool", "int", "uint", "float"))
