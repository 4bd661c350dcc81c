"""FxGraph: the Graph protocol over one `torch.fx.Graph` of a lifted, functional ExportedProgram."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import Any

import torch
from torch import fx

from graphopt.ir.fx.aliasing import exposes, returned_views
from graphopt.ir.fx.constants import add_constant
from graphopt.ir.fx.fake import compute
from graphopt.ir.fx.names import Names
from graphopt.ir.fx.read import read
from graphopt.ir.fx.redirect import redirect
from graphopt.ir.fx.schema import bodies_of, has_effects, raw_name_of, split_arguments
from graphopt.ir.fx.strides import NOTHING, read_by
from graphopt.ir.fx.tensors import LiteralRef, TorchRef, type_of
from graphopt.ir.fx.vocabulary import Target
from graphopt.ir.fx.weight import Weight
from graphopt.ir.fx.write import cannot_emit, check_types, plan
from graphopt.ir.graph import Branches, Call, Graph, Literal, Node, TensorType, Undo, Unreadable, Value
from graphopt.ir.weights import Array, TensorRef

_set_attribute = object.__setattr__
_UNASKED: Any = object()
_PROVENANCE = ("stack_trace", "nn_module_stack", "from_node", "torch_fn")


class FxGraph(Graph):
    """One region: the main graph, a control-flow body, or a fragment that was cut out.

    Values are `torch.fx.Node`s (or Literals). The node of an operator with several outputs is no value; its
    outputs are the `getitem` nodes behind it, which in turn are no nodes in the sense of the protocol.
    """

    storage = "fx"

    def __init__(
        self,
        module: torch.nn.Module,
        weights: Mapping[fx.Node, Weight],
        fake_mode: Any,
        *,
        graph: fx.Graph | None = None,
        hidden_outputs: int = 0,
        prefix: str = "",
    ) -> None:
        """`module` owns control-flow bodies and the graph, or no more than the bodies if `graph` is given: a graph
        that is only run node by node needs no code. The first `hidden_outputs` outputs write buffers."""
        self.module: Any = module
        self.graph: fx.Graph = self.module.graph if graph is None else graph
        self.weights: dict[fx.Node, Weight] = dict(weights)
        self.fake_mode = fake_mode
        self.hidden_outputs = hidden_outputs
        self.prefix = prefix
        self.output_node: fx.Node = self.graph.output_node()
        self.names = Names(w.name for w in self.weights.values())
        self.calls: dict[fx.Node, Call | Unreadable] = {}
        self._types: dict[fx.Node, TensorType | None] = {}
        self._constants: dict[fx.Node, TensorRef] = {}
        self._bodies: dict[str, FxGraph] = {}
        self._targets: dict[int, Target] = {}
        """By the id of the target, which they hold so that its id stays its own."""
        self.first_input: fx.Node | None = None
        """Once it was asked for."""
        self._read: int | None = None
        """The most that an operator of the graph may read of strides, once that was asked."""

    # ---- reading -------------------------------------------------------------------------------------------

    def nodes(self) -> Iterator[Node]:
        for node in self.graph.nodes:
            if node.op == "call_function" and node.target is not operator.getitem:
                yield node

    def inputs(self) -> Sequence[Value]:
        return [n for n in self.graph.find_nodes(op="placeholder") if n not in self.weights and _is_given(n)]

    def outputs(self) -> Sequence[Value]:
        returned = self.output_node.args[0]
        values = returned if isinstance(returned, (tuple, list)) else (returned,)
        return [v for v in values[self.hidden_outputs :] if isinstance(v, fx.Node)]

    def key(self, node: Node) -> str:
        target = self._targets.get(id(node.target)) or self.target(node.target)
        return target.key or target.key_of(node)

    def target(self, target: Any) -> Target:
        """What is known of all nodes that run `target`."""
        known = self._targets.get(id(target))
        if known is None:
            known = self._targets[id(target)] = Target(target)
            if self._read is not None:
                self._read = max(self._read, known.strides)
        return known

    def reads_strides(self) -> int:
        """The most that an operator of this region or of its bodies may read of strides."""
        if self._read is None:
            operators = {id(node.target): node.target for node in self.graph.nodes}
            bodies = [self.body(n) for n in self.graph.find_nodes(op="get_attr") if self.is_body(n)]
            self._read = max([NOTHING, *map(read_by, operators.values()), *(b.reads_strides() for b in bodies)])
        return self._read

    def operand_keys(self, node: Node) -> tuple[str, ...]:
        keys = []
        for value in node.all_input_nodes:
            if value.op == "call_function":
                keys.append(self.key(value.args[0] if value.target is operator.getitem else value))
        return tuple(keys)

    def raw_name(self, node: Node) -> str:
        return self.target(node.target).raw_name

    def call(self, node: Node) -> Call | Unreadable:
        found = self.calls.get(node)
        if found is None:
            target = self._targets.get(id(node.target)) or self.target(node.target)
            found = self.calls[node] = read(self, node, target)
        return found

    def raw_call(self, node: Node) -> Call:
        operands, fields = split_arguments(node)
        return Call(node, raw_name_of(node.target), operands, fields, self.results(node))

    def results(self, node: Node) -> tuple[Value | None, ...]:
        """The outputs of `node`, None for those that nothing refers to."""
        value = node.meta.get("val")
        if type(value) is not tuple and type(value) is not list:
            return (node,)
        found: list[Value | None] = [None] * len(value)
        for user in node.users:
            if user.target is operator.getitem:
                found[user.args[1]] = user
        return tuple(found)

    def producer(self, value: Value) -> Node | None:
        if isinstance(value, Literal) or value.op != "call_function" or value.graph is not self.graph:
            return None
        return value.args[0] if value.target is operator.getitem else value

    def users(self, value: Value) -> Sequence[Node]:
        if isinstance(value, Literal):
            return ()
        users = sorted(value.users)
        if users and users[-1] is self.output_node:
            users.pop()
        return users

    def readers(self, node: Node) -> Sequence[Node]:
        # Nearly every node has one output, which is the node itself.
        several = isinstance(node.meta.get("val"), (tuple, list))
        return super().readers(node) if several else self.users(node)

    def is_unread(self, node: Node) -> bool:
        # What has several outputs is read by the getitem nodes that are these outputs.
        users = node.users
        return not users or all(user.target is operator.getitem and not user.users for user in users)

    def is_output(self, value: Value) -> bool:
        return not isinstance(value, Literal) and self.output_node in value.users

    def may_be_returned(self, value: Value) -> bool:
        return not isinstance(value, Literal) and bool(returned_views(value, self.output_node))

    def would_share(self, old: Value, new: Value) -> bool:
        if isinstance(new, Literal):
            return False
        seen = returned_views(old, self.output_node)
        return not seen <= {old} and exposes(old, new, seen, self.output_node)

    def confines(self, value: Value, nodes: AbstractSet[Node]) -> bool:
        return isinstance(value, Literal) or value.users.keys() <= nodes or super().confines(value, nodes)

    def type(self, value: Value) -> TensorType | None:
        known: TensorType | None = self._types.get(value, _UNASKED)
        if known is not _UNASKED:
            return known
        if isinstance(value, Literal):
            return TensorType(value.dtype, ())
        found = self._types[value] = type_of(value.meta.get("val"))
        return found

    def constant(self, value: Value) -> TensorRef | None:
        if isinstance(value, Literal):
            return LiteralRef(value)
        if value.op != "placeholder":
            return None
        found = self._constants.get(value)
        if found is None:
            weight = self.weights.get(value)
            if weight is None or weight.mutable or self.type(value) is None:
                return None
            found = self._constants[value] = TorchRef(weight.tensor)
        return found

    def name(self, value: Value) -> str:
        if isinstance(value, Literal):
            return str(value.value)
        weight = self.weights.get(value)
        # A qualified name without a dot could also be the name of a node.
        if weight is not None and "." in weight.name:
            return weight.name
        return f"{self.prefix}{value.name}"

    def node_name(self, node: Node) -> str:
        name: str = node.name
        return name

    def subgraphs(self, node: Node) -> Sequence[Graph]:
        return [self.body(n) for n in bodies_of(node) if self.is_body(n)]

    def branches(self, node: Node) -> Branches | None:
        if raw_name_of(node.target) != "higher_order.cond" or len(node.args) != 4:
            return None
        condition, taken, otherwise, operands = node.args
        if not all(isinstance(value, fx.Node) for value in (condition, *operands)):
            return None
        return Branches(condition, self.body(taken), self.body(otherwise), tuple(operands))

    def is_body(self, node: fx.Node) -> bool:
        """Whether a `get_attr` node stands for a control-flow body."""
        return isinstance(self._attribute(node), fx.GraphModule)

    def _attribute(self, node: fx.Node) -> Any:
        """What a `get_attr` node stands for."""
        found: Any = self.module
        for part in str(node.target).split("."):
            found = getattr(found, part)
        return found

    def attribute(self, node: fx.Node) -> Any:
        """What a `get_attr` node stands for, ready to be called: a body may be edited and is recompiled."""
        found = self._attribute(node)
        if isinstance(found, fx.GraphModule):
            found.recompile()
        return found

    def body(self, node: fx.Node) -> FxGraph:
        """The region that a `get_attr` node of this one stands for."""
        name = str(node.target)
        if name not in self._bodies:
            module = self._attribute(node)
            self._bodies[name] = FxGraph(module, {}, self.fake_mode, prefix=f"{self.prefix}{name}.")
        return self._bodies[name]

    def is_pure(self, node: Node) -> bool:
        target = self._targets.get(id(node.target)) or self.target(node.target)
        if target.has_effects is False:
            return True
        if target.has_effects is None and not has_effects(node):
            return all(g.is_pure(n) for g in self.subgraphs(node) for n in g.nodes())
        # An operator that can draw random numbers (attention) draws none if the vocabulary can say it.
        return target.entry is not None and bool(self.call(node))

    def precedes(self, a: Node, b: Node) -> bool:
        return bool(a < b)

    # ---- editing -------------------------------------------------------------------------------------------

    def can_emit(self, op: str, fields: Mapping[str, Any], types: Sequence[TensorType | None]) -> str | None:
        return cannot_emit(op, fields, types)

    def insert(
        self,
        op: str,
        operands: Sequence[Value | None],
        fields: Mapping[str, Any],
        *,
        before: Node,
        types: Sequence[TensorType | None],
    ) -> tuple[list[Value], list[Node], Undo]:
        given = [None if v is None else self.type(v) for v in operands]
        planned = plan(op, operands, fields, given)
        computed = compute(planned, self.fake_mode)
        several = isinstance(computed, (tuple, list))
        if types:
            check_types(op, computed if several else [computed], types)
        node = self.create(planned.target, planned.args, planned.kwargs, computed, before, before)
        if planned.same_type:
            self._types[node] = given[0]
        if not several:
            return [node], [node], partial(self.erase, node)
        pick = operator.getitem
        results = [self.create(pick, (node, i), {}, v, before, before) for i, v in enumerate(computed)]

        def undo() -> None:
            for written in (*reversed(results), node):
                self.erase(written)

        return [*results], [node], undo

    def add_constant(self, data: TensorRef, name: str) -> tuple[Value, Undo]:
        node = add_constant(self, data, name)
        return node, partial(self.erase_weight, node)

    def store(self, value: Value, data: TensorRef) -> Undo:
        from graphopt.ir.fx.resize import store

        return store(self, value, data)

    def retype(self, node: Node, types: Sequence[TensorType | None]) -> Undo:
        from graphopt.ir.fx.resize import retype

        return retype(self, node, types)

    def forget(self, node: fx.Node) -> None:
        """Read `node` and its users anew: what it gives has changed."""
        for cache in (self._types, self._constants, self.calls):
            cache.pop(node, None)
        for user in node.users:
            self.calls.pop(user, None)

    def replace(self, old: Value, new: Value) -> Undo:
        return self.redirect(old, new)[1]

    def redirect(self, old: Value, new: Value) -> tuple[Sequence[Node], Undo]:
        return redirect(self, old, new)

    def remove(self, node: Node) -> None:
        if node.users:
            for user in list(node.users):
                if user.target is operator.getitem:
                    self.erase(user)
        self.erase(node)

    def remove_unread(self, nodes: Iterable[Node]) -> list[Node]:
        removed = []
        for node in nodes:
            if not node.users:
                self.erase(node)
            elif self.is_unread(node):
                self.remove(node)
            else:
                continue
            removed.append(node)
        return removed

    def create(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        value: Any,
        origin: fx.Node,
        before: fx.Node,
    ) -> fx.Node:
        """A new node in front of `before` that computes `value` and comes from where `origin` comes from."""
        # The arguments are set afterwards: `create_node` searches those that it is given for symbolic numbers. They
        # are set as the descriptors do it: fx sorts a node in again, by its target, whatever attribute is assigned.
        known_target = self._targets.get(id(target)) or self.target(target)
        node = self.graph.create_node("call_function", target, name=known_target.short_name)
        _set_attribute(node, "args", args)
        if kwargs:
            _set_attribute(node, "kwargs", kwargs)
        before.prepend(node)
        meta, known = node.meta, origin.meta
        for key in _PROVENANCE:
            if key in known:
                meta[key] = known[key]
        meta["val"] = value
        return node

    def erase(self, node: fx.Node) -> None:
        self.calls.pop(node, None)
        self._types.pop(node, None)
        self.graph.erase_node(node)

    def erase_weight(self, node: fx.Node) -> None:
        self.names.release(self.weights.pop(node).name)
        self._constants.pop(node, None)
        self.erase(node)

    def fake(self, tensor: torch.Tensor) -> Any:
        """`tensor` without its data, in the mode of the graph."""
        return self.fake_mode.from_tensor(tensor, static_shapes=True)

    # ---- fragments -----------------------------------------------------------------------------------------

    def cut(self, nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> FxGraph:
        from graphopt.ir.fx.fragment import cut

        return cut(self, nodes, inputs, outputs)

    def run(self, feeds: Sequence[Array]) -> list[Array]:
        """The outputs for these inputs, computed node by node by torch's own kernels."""
        from graphopt.ir.fx.run import run

        return run(self, feeds)

    def fingerprint(self) -> str:
        from graphopt.ir.fx.fingerprint import graph_fingerprint

        return graph_fingerprint(self)


def _is_given(node: fx.Node) -> bool:
    """Whether a caller provides the value: what is None or a number when traced is part of the graph."""
    return isinstance(node.meta.get("val"), (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))
