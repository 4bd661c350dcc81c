"""OnnxGraph: one region of an onnx_ir model (main graph, control-flow body or function body) behind the
protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir

from graphopt.ir.graph import Branches, Call, Graph, Literal, TensorType, Undo, Unreadable, Value
from graphopt.ir.onnx import edits, resize
from graphopt.ir.onnx.cut import cut_fragment
from graphopt.ir.onnx.drafting import PlainWriter
from graphopt.ir.onnx.fingerprint import graph_fingerprint
from graphopt.ir.onnx.positions import Positions
from graphopt.ir.onnx.purity import is_pure
from graphopt.ir.onnx.reading import Facts
from graphopt.ir.onnx.shared import Shared, body_graphs, nested_graphs
from graphopt.ir.onnx.write import WRITERS, cannot_emit, draft
from graphopt.ir.weights import TensorRef, as_ref


@dataclass(frozen=True)
class Parameter:
    """The value of an attribute that a call of the function around it gives."""

    name: str | None

    def __str__(self) -> str:
        return f"@{self.name}"


class OnnxGraph(Graph):
    """A region. Nodes are `onnx_ir.Node`s, values are `onnx_ir.Value`s or `Literal`s (old attributes).

    `inputs()` holds every graph input that is no constant, those that have a default value (overridable
    initialisers, IR version 4 and later) included.
    """

    storage = "onnx"

    def __init__(
        self, shared: Shared, graph: ir.Graph, opsets: dict[str, int], function: ir.Function | None = None
    ) -> None:
        self.shared = shared
        self.ir = graph
        self.opsets = opsets
        self.function = function
        """The function whose body, or one of whose bodies, this region is."""
        shared.regions[graph] = self
        self.opset = opsets.get("") or opsets.get("ai.onnx", 1)
        """Version of the ONNX operator set that this region imports."""
        self._keys = shared.keys
        self._positions: Positions | None = None
        self._ambiguous: frozenset[str] | None = None

    # ---- reading -----------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[ir.Node]:
        return iter(self.ir)

    def inputs(self) -> Sequence[ir.Value]:
        return [value for value in self.ir.inputs if self.shared.tensor(value) is None]

    def outputs(self) -> Sequence[ir.Value]:
        return list(self.ir.outputs)

    def key(self, node: ir.Node) -> str:
        op = node.op_identifier()
        try:
            return self._keys[op]
        except KeyError:
            return self._keys.setdefault(op, self.raw_name(node))

    def raw_name(self, node: ir.Node) -> str:
        name = f"{node.domain or 'ai.onnx'}::{node.op_type}"
        return f"{name}:{node.overload}" if node.overload else name

    def call(self, node: ir.Node) -> Call | Unreadable:
        calls = self.shared.calls
        known = calls.get(node)
        if known is None:
            known = calls[node] = self.read_with(node, self)
        return known

    def read_with(self, node: ir.Node, facts: Facts) -> Call | Unreadable:
        """`node` in the vocabulary as far as `facts` tell of its operands, who may know more than the file does."""
        op = node.op_identifier()
        reader = self.shared.readers.get(op)
        if reader is None:
            return Unreadable(f"{self.raw_name(node)} is not in the vocabulary")
        domain = op[0]
        return reader(node, self.opsets.get(domain, 1) if domain else self.opset, facts)

    def raw_call(self, node: ir.Node) -> Call:
        fields = {
            name: Parameter(attribute.ref_attr_name) if attribute.is_ref() else attribute.value
            for name, attribute in node.attributes.items()
        }
        outputs = tuple(value if value.name else None for value in node.outputs)
        return Call(node, self.raw_name(node), tuple(node.inputs), fields, outputs)

    def results(self, node: ir.Node) -> Sequence[ir.Value | None]:
        return [value if value.name else None for value in node.outputs]

    def operand_keys(self, node: ir.Node) -> tuple[str, ...]:
        graph, keys = self.ir, []
        for value in node.inputs:
            if value is not None and (p := value.producer()) is not None and p.graph is graph:
                keys.append(self._keys.get(p.op_identifier()) or self.key(p))
        return tuple(keys)

    def readers(self, node: ir.Node) -> Sequence[ir.Node]:
        return [user for value in node.outputs for user, _ in value.uses()]

    def producer(self, value: Value) -> ir.Node | None:
        if isinstance(value, Literal):
            return None
        node = value.producer()
        return node if node is not None and node.graph is self.ir else None

    def users(self, value: ir.Value | Literal) -> Sequence[ir.Node]:
        if isinstance(value, Literal):
            return ()
        uses = value.uses()
        if len(uses) > 1:
            return value.consumers()
        for user, _ in uses:  # Most values have one.
            return (user,)
        return ()

    def is_output(self, value: Value) -> bool:
        return not isinstance(value, Literal) and value.is_graph_output()

    def type(self, value: Value) -> TensorType | None:
        return TensorType(value.dtype, ()) if isinstance(value, Literal) else self.shared.type(value)

    def inferred_type(self, value: ir.Value) -> TensorType | None:
        """What inference found, without trust in what the file declares."""
        return self.shared.inferred_type(value)

    def constant(self, value: Value) -> TensorRef | None:
        if isinstance(value, Literal):
            return as_ref(value.value, value.dtype)
        tensor = self.shared.tensor(value)
        return None if tensor is None else self.shared.ref(tensor)

    def name(self, value: Value) -> str:
        return repr(value.value) if isinstance(value, Literal) else value.name or ""

    def node_name(self, node: ir.Node) -> str:
        if self._ambiguous is None:
            names = [n.name for n in self.ir]
            count = Counter(names) if len(set(names)) < len(names) else {}
            self._ambiguous = frozenset(name for name, times in count.items() if name and times > 1)
        own = node.name
        if own and own not in self._ambiguous:
            return own
        output = next((value.name for value in node.outputs if value.name), "")
        return f"{own or node.op_type}:{output}"

    def subgraphs(self, node: ir.Node) -> Sequence[OnnxGraph]:
        return [self.shared_region(body) for body in body_graphs(node)]

    def branches(self, node: ir.Node) -> Branches | None:
        condition = next(iter(node.inputs), None)
        bodies = [node.attributes.get(name) for name in ("then_branch", "else_branch")]
        graphs = [a.as_graph() for a in bodies if a is not None and not a.is_ref() and a.type == ir.AttributeType.GRAPH]
        if self.raw_name(node) != "ai.onnx::If" or condition is None or len(graphs) < 2:
            return None
        taken, otherwise = map(self.shared_region, graphs)
        return Branches(condition, taken, otherwise, ())

    def shared_region(self, graph: ir.Graph) -> OnnxGraph:
        """The region of `graph`: this one, one around it or one inside it."""
        known = self.shared.regions.get(graph)
        return known or OnnxGraph(self.shared, graph, self.opsets, self.function)

    def is_pure(self, node: ir.Node) -> bool:
        return is_pure(self.shared, node, self.opsets)

    def precedes(self, a: ir.Node, b: ir.Node) -> bool:
        if self._positions is None:
            self._positions = Positions(self.ir)
        return self._positions.precedes(self._holder(a), self._holder(b))

    def _holder(self, node: ir.Node) -> ir.Node:
        """The node of this region that is `node`, or has it in a body."""
        if node.graph is self.ir:
            return node
        inside = (n for n in self.ir if any(node.graph is g for body in body_graphs(n) for g in nested_graphs(body)))
        return next(inside)

    # ---- editing -----------------------------------------------------------------------------------------

    def can_emit(self, op: str, fields: Mapping[str, Any], types: Sequence[TensorType | None]) -> str | None:
        return cannot_emit(op, fields, types, self.opset)

    def insert(
        self,
        op: str,
        operands: Sequence[Value | None],
        fields: Mapping[str, Any],
        *,
        before: ir.Node,
        types: Sequence[TensorType | None],
    ) -> tuple[list[Value], list[ir.Node], Undo]:
        writer = WRITERS.get(op)
        if isinstance(writer, PlainWriter) and writer.needs_no_draft(operands, fields, self.opset):
            return edits.write_plain(self, writer.op_type, operands, before, op, types)
        operand_types = [None if value is None else partial(self.type, value) for value in operands]
        present = [value is not None for value in operands]
        written, results = draft(op, fields, operand_types, self.opset, present=present, outputs=len(types))
        hint = op.rpartition("::")[2].lower()
        return edits.write_draft(self, written, results, operands, before, hint, types)

    def insert_copy(
        self, node: ir.Node, read: Callable[[Value], Value], *, before: ir.Node
    ) -> tuple[list[Value | None], list[ir.Node], Undo]:
        return edits.write_copy(self, node, read, before)

    def add_constant(self, data: TensorRef, name: str) -> tuple[ir.Value, Undo]:
        return edits.add_constant(self, data, name)

    def replace(self, old: Value, new: Value) -> Undo:
        return edits.replace_value(self, old, new)

    def store(self, value: Value, data: TensorRef) -> Undo:
        return resize.store(self, value, data)

    def retype(self, node: ir.Node, types: Sequence[TensorType | None]) -> Undo:
        return resize.retype(self, node, types)

    def remove(self, node: ir.Node) -> None:
        edits.delete_node(self, node)

    def remove_unread(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        return edits.delete_unread(self, nodes)

    # ---- placing nodes: their order is kept up ----------------------------------------------------------

    def put_before(self, before: ir.Node, node: ir.Node) -> None:
        self.ir.insert_before(before, node)
        if self._positions is not None:
            self._positions.insert_before(before, [node])

    def put_first(self, node: ir.Node) -> None:
        first = next(iter(self.ir), None)
        if first is None:
            self.ir.append(node)
        else:
            self.ir.insert_before(first, node)
        if self._positions is not None:
            self._positions.prepend(node)

    def put_last(self, node: ir.Node) -> None:
        self.ir.append(node)
        if self._positions is not None:
            self._positions.append(node)

    def take_out(self, nodes: Collection[ir.Node]) -> None:
        self.ir.remove(nodes)
        if self._positions is not None:
            self._positions.discard(nodes)

    # ---- fragments ---------------------------------------------------------------------------------------

    def cut(self, nodes: Iterable[ir.Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> OnnxGraph:
        fragment = cut_fragment(self, nodes, inputs, outputs)
        shared = Shared(fragment.model)
        shared.remember(fragment)
        return OnnxGraph(shared, fragment.model.graph, fragment.model.graph.opset_imports)

    def in_order(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """`nodes` of this region in the order in which they stand, each once."""
        if self._positions is None:
            self._positions = Positions(self.ir)
        return sorted(set(nodes), key=self._positions.label)

    def fingerprint(self) -> str:
        return graph_fingerprint(self.ir, self.opsets)
