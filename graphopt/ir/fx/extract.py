"""A part of a program as an ExportedProgram of its own."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.export.exported_program import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from graphopt.errors import UnsupportedError
from graphopt.ir.fx.fragment import copy_bodies, copy_node, weights_of
from graphopt.ir.fx.schema import bodies_of
from graphopt.ir.fx.storage import FxGraph
from graphopt.ir.fx.weight import Weight
from graphopt.ir.graph import Literal, Value

INPUT_KINDS = {
    "parameter": InputKind.PARAMETER,
    "buffer": InputKind.BUFFER,
    "constant": InputKind.CONSTANT_TENSOR,
}


def extract_program(
    source: FxGraph,
    program: ExportedProgram,
    nodes: Iterable[fx.Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
) -> ExportedProgram:
    """A program that computes `outputs` from `inputs`, all tensors, with copies of `nodes` of `source`, which is the
    main graph of `program`. It shares the stored tensors.

    Raises UnsupportedError if the nodes read a value that is no input, no constant and not computed by them, or if
    an input or output is no tensor.
    """
    _refuse_other_than_tensors([*inputs, *outputs])
    part = _Part(source)
    chosen = sorted(set(nodes))
    stored = [part.add_weight(v) for v in weights_of(source, chosen, outputs, frozenset(inputs))]
    given = [part.add_input(v) for v in inputs]
    for body in sorted({b for n in chosen for b in bodies_of(n)}):
        part.keep(body, part.graph.node_copy(body))
    for node in chosen:
        part.add_node(node)
    returned = part.set_outputs(outputs)
    signature = ExportGraphSignature(
        [*stored, *[InputSpec(InputKind.USER_INPUT, TensorArgument(n.name), None) for n in given]],
        [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in returned],
    )
    used = list(part.weights.values())
    return ExportedProgram(
        root=copy_bodies(source, chosen),
        graph=part.graph,
        graph_signature=signature,
        state_dict={w.name: w.tensor for w in used if in_state_dict(w)},
        range_constraints=_constraints(program, part.graph),
        module_call_graph=[_calling(len(given), len(returned))],
        example_inputs=_examples(program, inputs),
        constants={w.name: w.tensor for w in used if not in_state_dict(w)},
        verifiers=program.verifiers,
    )


def in_state_dict(weight: Weight) -> bool:
    return weight.kind == "parameter" or (weight.kind == "buffer" and weight.persistent)


def input_spec(node: fx.Node, weight: Weight) -> InputSpec:
    """What the signature of a program says of the placeholder of a weight."""
    persistent = weight.persistent if weight.kind == "buffer" else None
    return InputSpec(INPUT_KINDS[weight.kind], TensorArgument(name=node.name), weight.name, persistent)


class _Part:
    """The graph under construction: copies of values that keep their names."""

    def __init__(self, source: FxGraph) -> None:
        self.graph = fx.Graph()
        self.weights: dict[fx.Node, Weight] = {}
        self._source = source
        self._copies: dict[fx.Node, fx.Node] = {}

    def keep(self, value: fx.Node, new: fx.Node) -> fx.Node:
        # fx renames what is called like a builtin.
        new.name = value.name
        self._copies[value] = new
        return new

    def add_input(self, value: fx.Node) -> fx.Node:
        if value in self._copies:
            raise UnsupportedError(f"{value.name} cannot be an input twice")
        new = self.keep(value, self.graph.placeholder(value.name))
        new.target = new.name
        new.meta.update(value.meta)
        return new

    def add_weight(self, value: fx.Node) -> InputSpec:
        new = self.add_input(value)
        self.weights[new] = self._source.weights[value]
        return input_spec(new, self.weights[new])

    def add_node(self, node: fx.Node) -> None:
        self.keep(node, copy_node(self._source, self.graph, node, self._operand))
        for user in sorted(node.users):
            if user.target is operator.getitem and user not in self._copies:
                self.keep(user, self.graph.node_copy(user, self._operand))

    def _operand(self, value: fx.Node) -> fx.Node:
        weight = self._source.weights.get(value)
        if value not in self._copies and weight is not None:
            raise UnsupportedError(
                f"the model writes its {weight.kind} {weight.name!r} when it runs and reads it, so no copy or part of "
                "it can be run by itself, as approximate passes do; take the state as an input and return the new one "
                "as an output, call .eval() if a layer is in training mode, or leave out the pass"
            )
        if value not in self._copies:
            raise UnsupportedError(f"the part reads {value.name}, neither an input nor a constant")
        return self._copies[value]

    def set_outputs(self, outputs: Sequence[fx.Node]) -> list[fx.Node]:
        """What is stored or given, or returned twice, is returned as a copy: a caller gets memory of its own."""
        returned: dict[fx.Node, None] = {}
        for value in outputs:
            node = self._operand(value)
            if node.op == "placeholder" or node in returned:
                original, node = node, self.graph.call_function(torch.ops.aten.clone.default, (node,))
                node.meta["val"] = original.meta["val"]
            returned[node] = None
        self.graph.output(tuple(returned))
        return list(returned)


def _refuse_other_than_tensors(values: Sequence[Value]) -> None:
    for value in values:
        if isinstance(value, Literal) or not isinstance(value.meta.get("val"), torch.Tensor):
            raise UnsupportedError(f"{value} is no tensor: only tensors go into and out of a part of a model")


def _constraints(program: ExportedProgram, graph: fx.Graph) -> dict[Any, Any]:
    """The ranges of the symbolic sizes that `graph` still has."""
    shapes = [n.meta["val"].shape for n in graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    free = {s for shape in shapes for size in shape if not isinstance(size, int) for s in size.node.expr.free_symbols}
    ranges: Mapping[Any, Any] = program.range_constraints
    return {symbol: copy.copy(range_) for symbol, range_ in ranges.items() if symbol in free}


def _examples(program: ExportedProgram, inputs: Sequence[fx.Node]) -> Any:
    """The (positional, keyword) inputs with which `program` was traced, as far as they are `inputs`; None if there is
    one for which there is no example."""
    leaves = pytree.tree_leaves(program.example_inputs)
    by_name = dict(zip(program.graph_signature.user_inputs, leaves, strict=False))
    found = [by_name.get(value.name) for value in inputs]
    return (tuple(found), {}) if all(isinstance(f, torch.Tensor) for f in found) else None


def _calling(inputs: int, outputs: int) -> ModuleCallEntry:
    """Called with positional inputs, it returns a tuple."""
    in_spec = pytree.tree_structure(((0,) * inputs, {}))
    out_spec = pytree.tree_structure((0,) * outputs)
    return ModuleCallEntry("", ModuleCallSignature([], [], in_spec, out_spec))
