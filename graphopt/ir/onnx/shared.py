"""What the regions of one model share: names, cached reads, types and constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.ir.graph import Call, TensorType, Unreadable
from graphopt.ir.onnx import dtypes
from graphopt.ir.onnx.constants import constant_node_tensor, tensor_ref
from graphopt.ir.onnx.read import READERS
from graphopt.ir.onnx.reading import AnyReader
from graphopt.ir.weights import TensorRef

if TYPE_CHECKING:
    from graphopt.ir.onnx.cut import Fragment
    from graphopt.ir.onnx.storage import OnnxGraph

QUANTIZATION = "quant_parameter_tensor_names"
"""Key under which onnx_ir keeps a value's quantization annotation."""


def body_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The control-flow bodies that `node` holds, in attribute order."""
    for attribute in node.attributes.data.values():
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def nested_graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    """`graph` and every control-flow body below it, depth first."""
    pending = [graph]
    while pending:
        current = pending.pop()
        yield current
        bodies = [body for node in current if node.attributes.data for body in body_graphs(node)]
        pending.extend(reversed(bodies))


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Every graph of the model: main, its bodies depth first, then functions and their bodies."""
    yield from nested_graphs(model.graph)
    for function in model.functions.values():
        yield from nested_graphs(function.graph)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The values that `graph` itself defines, in its order."""
    yield from graph.inputs
    yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    yield from (value for node in graph for value in node.outputs)


def copy_of(model: ir.Model) -> ir.Model:
    """A copy of `model` with what is noted of it in memory, which onnx_ir leaves behind."""
    copied = model.clone()
    copied.meta.update(model.meta)
    return copied


class Names:
    """Value and node names in use anywhere in the model. Fresh ones depend on the edits made, on nothing
    else."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._used: set[str | None] | None = None
        self._next: dict[str, int] = {}
        self._given: list[tuple[str, str, int]] = []
        """Each name given out, with its hint and the number at which the search for it began."""

    def _collect(self) -> set[str | None]:
        used: set[str | None] = set()
        graphs = [self._model.graph, *(function.graph for function in self._model.functions.values())]
        for graph in graphs:
            nodes = list(graph)
            used.update([value.name for value in graph.inputs], graph.initializers)
            used.update([node.name for node in nodes])
            used.update([value.name for node in nodes for value in node.outputs])
            # The loop goes on with them.
            graphs += [body for node in nodes if node.attributes.data for body in body_graphs(node)]
        return used

    def fresh(self, hint: str) -> str:
        """An unused name derived from `hint`."""
        if self._used is None:
            self._used = self._collect()
        number = first = self._next.get(hint, 0)
        name = hint if number == 0 else f"{hint}_{number}"
        while name in self._used:
            number += 1
            name = f"{hint}_{number}"
        self._used.add(name)
        self._next[hint] = number + 1
        self._given.append((name, hint, first))
        return name

    def mark(self) -> int:
        """The present, to be given to `release_since`."""
        return len(self._given)

    def release_since(self, mark: int) -> None:
        """Take back the names given out since `mark`. Edits are undone in reverse, so nobody needs them."""
        while len(self._given) > mark:
            name, hint, first = self._given.pop()
            self._next[hint] = first
            if self._used is not None:
                self._used.discard(name)


class Shared:
    """State of one model that its regions have in common."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.names = Names(model)
        self.regions: dict[ir.Graph, OnnxGraph] = {}
        functions = {(domain, name) for domain, name, _ in model.functions}
        self.readers: Mapping[ir.OperatorIdentifier, AnyReader] = {
            (*k, ""): r for k, r in READERS.items() if k not in functions
        }
        """Reader by op; a function of the model hides the op that it is named after."""
        self.keys: dict[ir.OperatorIdentifier, str] = {k: reader.op for k, reader in self.readers.items()}
        """Key by op: the vocabulary's name, or the raw name of ops that have none."""
        self.calls: dict[ir.Node, Call | Unreadable] = {}
        self.annotated = False
        """Whether any value has a quantization annotation: then, and only then, edits look for them."""
        self.believed = True
        """Whether what the file declares of computed values may be true: nothing of it has been refuted."""
        self._roots = {model.graph, *(function.graph for function in model.functions.values())}
        self.fresh: set[ir.Value] = set()
        """Values that edits have written and that have not taken over the name of another one."""
        self._given: dict[ir.Value, TensorType] = {}
        self._inherited: dict[ir.Value, TensorType | None] = {}
        """What was inferred of the value whose declaration a value took over: with that it is what is given, which
        few ask for."""
        self._inferred: dict[ir.Value, TensorType] = {}
        self._types: dict[ir.Value, TensorType | None] = {}
        self._tensors: dict[ir.Node, ir.TensorProtocol | None] = {}
        self._refs: dict[ir.TensorProtocol, TensorRef | None] = {}

    # ---- types -------------------------------------------------------------------------------------------

    def type(self, value: ir.Value) -> TensorType | None:
        """What is known of the type of `value`: declared in the model, inferred, or given by whoever wrote
        it."""
        known = self._types.get(value)
        if known is None and value not in self._types:
            known = self._types[value] = self._find_type(value)
        return known

    def _find_type(self, value: ir.Value) -> TensorType | None:
        if value in self.fresh:  # Nothing is declared of what an edit has just written.
            result = self._given.get(value)
        else:
            result = self.given_type(value)
            if result is not None and value in self._inherited and value not in self._inferred:
                return result  # Less than is declared, where what was inferred contradicted it.
            result = dtypes.merged(result, self.declared_type(value))
        if (inferred := self._inferred.get(value)) is not None:
            result = dtypes.merged(result, inferred)
        if result is None and (tensor := self.tensor(value)) is not None:
            ref = self.ref(tensor)
            result = None if ref is None else TensorType(ref.dtype, ref.shape)
        return result

    def declared_type(self, value: ir.Value) -> TensorType | None:
        """What the file declares of `value`, as far as it is to be believed.

        A name in a body is one of that body and of one run of it: that of a loop's state is another size in each
        iteration, whatever is called so outside.
        """
        known = dtypes.declared_type(value)
        if known is None or known.shape is None:
            return known
        if not self.believed and value.producer() is not None:
            return TensorType(known.dtype, None)
        graph = value.graph
        if graph is None or graph in self._roots:
            return known
        return TensorType(known.dtype, tuple(d if isinstance(d, int) else None for d in known.shape))

    def inferred_type(self, value: ir.Value) -> TensorType | None:
        """What follows from the inputs' types and the ops alone, whatever the file declares of `value`."""
        return self._inferred.get(value)

    def give_type(self, value: ir.Value, type_: TensorType | None) -> None:
        """Note a type without declaring it in the model, so that saving does not write it."""
        self._types.pop(value, None)
        self._inherited.pop(value, None)
        if type_ is None:
            self._given.pop(value, None)
        else:
            self._given[value] = type_

    def given_type(self, value: ir.Value) -> TensorType | None:
        known = self._given.get(value)
        if known is None and value in self._inherited:
            known = dtypes.merged(self.declared_type(value), self._inherited[value])
        return known

    def known_of(self, value: ir.Value) -> tuple[TensorType | None, TensorType | None]:
        """What was given and what was inferred of `value`."""
        return self.given_type(value), self._inferred.get(value)

    def know(self, value: ir.Value, known: tuple[TensorType | None, TensorType | None]) -> None:
        """Let this be what was given and what was inferred, until types are inferred anew."""
        given, inferred = known
        self.give_type(value, given)
        if inferred is None:
            self._inferred.pop(value, None)
        else:
            self._inferred[value] = inferred

    def inherit_type(self, new: ir.Value, old: ir.Value) -> None:
        """Note that `new`, which is declared as `old` is and of which nothing is given, has the type of `old`:
        inferred types hold for it too, and so does what a contradiction between the two took away."""
        known = old in self._types or old in self._given or old in self._inherited
        if known or new in self._inferred or self.tensor(old) is not None:
            type_ = self.type(old)
            self.give_type(new, type_)
            if type_ is not None:
                self._types[new] = type_
        else:
            self._types.pop(new, None)
            self._inherited[new] = self._inferred.get(old)

    def set_inferred(self, types: Mapping[ir.Value, TensorType]) -> None:
        """Take the result of shape inference; everything read before is read anew."""
        self._inferred = dict(types)
        self._types.clear()
        self.calls.clear()

    # ---- constants ---------------------------------------------------------------------------------------

    def tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The stored tensor of `value` if it can never change, else None."""
        node = value.producer()
        if node is None:
            overridable = value.is_graph_input() and self.model.ir_version >= 4
            return value.const_value if value.is_initializer() and not overridable else None
        if node.op_type != "Constant" or node.domain != "":
            return None
        if node not in self._tensors:
            self._tensors[node] = constant_node_tensor(node)
        return self._tensors[node]

    def ref(self, tensor: ir.TensorProtocol) -> TensorRef | None:
        if tensor not in self._refs:
            self._refs[tensor] = tensor_ref(tensor)
        return self._refs[tensor]

    def remember_ref(self, tensor: ir.TensorProtocol, ref: TensorRef) -> None:
        """Let `tensor` be seen as `ref`, so that a deferred expression stays one."""
        self._refs[tensor] = ref

    def remember(self, fragment: Fragment) -> None:
        """Take over what is known of the model that `fragment` was cut out as."""
        for tensor, ref in fragment.refs.items():
            self.remember_ref(tensor, ref)
        for value, type_ in fragment.types.items():
            self.give_type(value, type_)

    def known_of_twin(self, twin: ir.Model) -> Fragment:
        """`twin`, which is a copy of the model, with what was given to this one."""
        from graphopt.ir.onnx.cut import Fragment

        types = {}
        for graph, copy in zip(all_graphs(self.model), all_graphs(twin), strict=True):
            for value, other in zip(_values(graph), _values(copy), strict=True):
                if (given := self.given_type(value)) is not None:
                    types[other] = given
        return Fragment(twin, {tensor: ref for tensor, ref in self._refs.items() if ref is not None}, types)

    def forget_tensor(self, node: ir.Node) -> None:
        """Read the tensor of a Constant node anew when it is next asked for."""
        self._tensors.pop(node, None)

    # ---- forgetting --------------------------------------------------------------------------------------

    def forget_value(self, value: ir.Value) -> None:
        self._given.pop(value, None)
        self._inherited.pop(value, None)
        self._inferred.pop(value, None)
        self._types.pop(value, None)
        self.fresh.discard(value)
        if (tensor := value.const_value) is not None:
            self._refs.pop(tensor, None)

    def forget_nodes(self, nodes: Iterable[ir.Node]) -> None:
        for node in nodes:
            self.calls.pop(node, None)
            self._tensors.pop(node, None)
            for value in node.outputs:
                self.forget_value(value)
