"""The edits of a region and what undoes them, by means of onnx_ir's public API only.

Nodes that an edit makes obsolete are not removed here, so an undo never has to put a node back: it restores
uses, names and types, and removes what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.ir.graph import Literal, TensorType, Undo, Value
from graphopt.ir.onnx import dtypes
from graphopt.ir.onnx.constants import ref_type, stored_tensor
from graphopt.ir.onnx.drafting import Draft, DraftNode, Slot
from graphopt.ir.onnx.shared import QUANTIZATION, Names, Shared, body_graphs, nested_graphs
from graphopt.ir.weights import ArrayRef, TensorRef, as_ref

if TYPE_CHECKING:
    from graphopt.ir.onnx.storage import OnnxGraph


class Journal:
    """The undo steps of one edit, run backwards; the names that it took are given back last."""

    __slots__ = ("_names", "_mark", "_steps")

    def __init__(self, names: Names) -> None:
        self._names = names
        self._mark = names.mark()
        self._steps: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def on_undo(self, step: Callable[..., Any], *arguments: Any) -> None:
        self._steps.append((step, arguments))

    def undo(self) -> None:
        while self._steps:
            step, arguments = self._steps.pop()
            step(*arguments)
        self._names.release_since(self._mark)


# ---- writing nodes
# ------------------------------------------------------------------------------------------


def write_draft(
    region: OnnxGraph,
    draft: Draft,
    results: Sequence[Slot],
    operands: Sequence[Value | None],
    before: ir.Node,
    hint: str,
    types: Sequence[TensorType | None],
) -> tuple[list[ir.Value], list[ir.Node], Undo]:
    """Put a draft's constants and nodes into the region, in front of `before`."""
    journal = Journal(region.shared.names)
    try:
        values = _bind_operands(region, draft, operands, journal, hint)
        for slot, name, array in draft.constants:
            values[slot], undo = add_constant(region, ArrayRef(array), f"{hint}_{name}")
            journal.on_undo(undo)
        nodes = [_write_node(region, node, values, before, hint, journal) for node in draft.nodes]
        outputs = [values[slot] for slot in results]
        for value, type_ in zip(outputs, types, strict=False):
            region.shared.give_type(value, type_)
        for value, slot in list(zip(outputs, results, strict=True))[len(types) :]:
            region.shared.give_type(value, slot.type)
    except BaseException:
        journal.undo()
        raise
    return outputs, nodes, journal.undo


def _bind_operands(
    region: OnnxGraph, draft: Draft, operands: Sequence[Value | None], journal: Journal, hint: str
) -> dict[Slot, ir.Value]:
    values: dict[Slot, ir.Value] = {}
    for slot, operand in zip(draft.operands, operands, strict=True):
        if slot is None:
            continue
        if isinstance(operand, Literal):
            values[slot], undo = add_constant(
                region, as_ref(operand.value, operand.dtype), f"{hint}_constant"
            )
            journal.on_undo(undo)
        elif operand is not None:
            if not isinstance(operand, ir.Value):
                # Found now: a node that fails half-way through its operands would go on counting as their reader.
                raise TypeError(f"a {type(operand).__name__} cannot be an operand")
            values[slot] = operand
    return values


def _write_node(
    region: OnnxGraph,
    draft: DraftNode,
    values: dict[Slot, ir.Value],
    before: ir.Node,
    hint: str,
    journal: Journal,
) -> ir.Node:
    if draft.domain:
        import_domain(region, draft.domain, journal)
    inputs = [None if slot is None else values[slot] for slot in draft.inputs]
    attributes = [_attribute(k, v) for k, v in draft.attributes.items()]
    names = region.shared.names
    name = names.fresh(hint)
    outputs = [ir.Value(name=names.fresh(f"{hint}_output")) for _ in draft.outputs]
    node = ir.Node(draft.domain, draft.op_type, inputs, attributes, outputs=outputs, name=name)
    _put_before(region, before, node)
    journal.on_undo(delete_node, region, node)
    values.update(zip(draft.outputs, outputs, strict=True))
    return node


def write_plain(
    region: OnnxGraph,
    op_type: str,
    operands: Sequence[ir.Value | None],
    before: ir.Node,
    hint: str,
    types: Sequence[TensorType | None],
) -> tuple[list[ir.Value], list[ir.Node], Undo]:
    """Put one node without attributes, of one output, into the region in front of `before`."""
    names = region.shared.names
    mark = names.mark()
    name = names.fresh(hint)
    output = ir.Value(name=names.fresh(f"{hint}_output"))
    node = ir.Node("", op_type, operands, outputs=(output,), name=name)
    _put_before(region, before, node)
    if types:
        region.shared.give_type(output, types[0])
    return [output], [node], partial(_delete_plain, region, node, mark)


def _delete_plain(region: OnnxGraph, node: ir.Node, mark: int) -> None:
    delete_node(region, node)
    region.shared.names.release_since(mark)


def _put_before(region: OnnxGraph, before: ir.Node, node: ir.Node) -> None:
    region.ir.insert_before(before, node)
    region.position_before(before, node)
    region.shared.fresh.update(node.outputs)


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, ir.Attr):
        return value if value.name == name else ir.Attr(name, value.type, value.value)
    if isinstance(value, TensorRef):
        return ir.AttrTensor(name, stored_tensor(value, name))
    return ir.convenience.convert_attribute(name, value)


def import_domain(region: OnnxGraph, domain: str, journal: Journal) -> None:
    """Import a custom `domain` in version 1 if the model does not import it yet."""
    if domain not in region.opsets:
        region.opsets[domain] = 1
        journal.on_undo(region.opsets.pop, domain)


def delete_node(region: OnnxGraph, node: ir.Node) -> None:
    """Take `node` out of the region; nothing may read its outputs."""
    if not delete_unread(region, [node]):
        raise ValueError(f"node {node.name!r} cannot be removed: an output of it is still read")


def delete_unread(region: OnnxGraph, nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Take those of `nodes` (readers first) out of the region of which nothing reads an output; returns them."""
    removed = []
    for node in nodes:
        if region.is_unread(node):
            for body in body_graphs(node) if node.attributes.data else ():
                _empty(region, body)
            _detach(region.shared, node)
            region.forget_position(node)
            removed.append(node)
    region.ir.remove(removed)
    return removed


def _empty(region: OnnxGraph, body: ir.Graph) -> None:
    """Take everything out of `body`: whoever still holds its region finds it empty."""
    for graph in list(nested_graphs(body)):
        inner = list(graph)
        for node in inner:
            _detach(region.shared, node)
        graph.remove(inner)


def _detach(shared: Shared, node: ir.Node) -> None:
    """Let `node` read nothing, and forget it."""
    for index, value in enumerate(node.inputs):
        if value is not None:
            node.replace_input_with(index, None)
    shared.forget_node(node)


# ---- constants
# ----------------------------------------------------------------------------------------------


def add_constant(region: OnnxGraph, data: TensorRef, hint: str) -> tuple[ir.Value, Undo]:
    """Add an initialiser, or a Constant node where the region is the body of a function."""
    shared, graph = region.shared, region.ir
    journal = Journal(shared.names)
    name = shared.names.fresh(hint)
    tensor = stored_tensor(data, name)
    shared.remember_ref(tensor, data)
    value = ir.Value(name=name)
    if region.function is not None and graph is region.function.graph:
        _prepend_constant_node(region, value, tensor, journal)
    else:
        value.const_value = tensor
        dtypes.set_type(value, ref_type(data))
        graph.register_initializer(value)
        journal.on_undo(graph.initializers.pop, name)
        if shared.model.ir_version < 4 and graph is shared.model.graph:
            graph.inputs.append(value)
            journal.on_undo(graph.inputs.pop)
    journal.on_undo(shared.forget_value, value)
    return value, journal.undo


def _prepend_constant_node(
    region: OnnxGraph, value: ir.Value, tensor: ir.TensorProtocol, journal: Journal
) -> None:
    name = region.shared.names.fresh(f"{value.name}_node")
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value], name=name)
    first = next(iter(region.ir), None)
    if first is None:
        region.ir.append(node)
    else:
        region.ir.insert_before(first, node)
    region.position_first(node)
    journal.on_undo(delete_node, region, node)


# ---- replacing
# ----------------------------------------------------------------------------------------------


def replace_value(region: OnnxGraph, old: ir.Value, new: Value) -> Undo:
    """Let users and outputs of `old` read `new`; names of outputs stay, and `new` inherits the name of `old`
    if an edit has just written it."""
    journal = Journal(region.shared.names)
    if old is new:
        return journal.undo
    try:
        if isinstance(new, Literal):
            new, undo = add_constant(region, as_ref(new.value, new.dtype), "constant")
            journal.on_undo(undo)
        _redirect_uses(region.shared, old, new, journal)
        if region.shared.tensor(new) is not None:
            _give_scalars(region, new, journal)
        if old.is_graph_output():
            _redirect_outputs(region, old, new, journal)
        elif new in region.shared.fresh:
            _take_over(region.shared, old, new, journal)
    except BaseException:
        journal.undo()
        raise
    return journal.undo


def _redirect_uses(shared: Shared, old: ir.Value, new: ir.Value, journal: Journal) -> None:
    excluded = _within(new.producer())
    calls = shared.calls
    moved = [
        (user, index, calls.pop(user, None), user.device_configurations)
        for user, index in old.uses()
        if user not in excluded
    ]
    # One step for all uses, so that undoing puts them back in the order in which they were.
    journal.on_undo(_redirect_back, shared, old, new, moved)
    for user, index, _, _ in moved:
        user.replace_input_with(index, new)


def _give_scalars(region: OnnxGraph, constant: ir.Value, journal: Journal) -> None:
    """Let Range read `constant` as a scalar: runtimes take a vector of one element, unless it is constant."""
    readers = [(user, index) for user, index in constant.uses() if (user.domain, user.op_type) == ("", "Range")]
    data = region.constant(constant) if readers else None
    if data is None or data.ndim == 0 or data.size != 1:
        return
    scalar, undo = add_constant(region, ArrayRef(data.numpy().reshape(())), constant.name or "bound")
    journal.on_undo(undo)
    for user, index in readers:
        journal.on_undo(user.replace_input_with, index, constant)
        user.replace_input_with(index, scalar)
        region.shared.calls.pop(user, None)


def _redirect_back(shared: Shared, old: ir.Value, new: ir.Value, moved: Sequence[tuple[Any, ...]]) -> None:
    for user, index, call, placement in moved:
        if user.inputs[index] is new:
            user.replace_input_with(index, old)
        user.device_configurations = placement
        shared.calls.pop(user, None)
        if call is not None:
            shared.calls[user] = call


def _within(node: ir.Node | None) -> Collection[ir.Node]:
    """`node` and the nodes in its bodies: they compute the new value, so they go on reading the old one."""
    if node is None:
        return ()
    if not node.attributes.data:
        return (node,)
    return {node, *(n for body in body_graphs(node) for graph in nested_graphs(body) for n in graph)}


def _redirect_outputs(region: OnnxGraph, old: ir.Value, new: ir.Value, journal: Journal) -> None:
    graph = old.graph
    assert graph is not None
    if _can_be_output(graph, new):
        _take_over(region.shared, old, new, journal)
    else:
        producer = old.producer()
        if producer is not None and producer.op_type == "Identity" and producer.inputs[0] is new:
            return
        new = _append_identity(region.shared_region(graph), old, new, journal)
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
            journal.on_undo(graph.outputs.__setitem__, index, old)


def _can_be_output(graph: ir.Graph, value: ir.Value) -> bool:
    return value.producer() is not None and value.graph is graph and not value.is_graph_output()


def _append_identity(region: OnnxGraph, old: ir.Value, new: ir.Value, journal: Journal) -> ir.Value:
    name = region.shared.names.fresh("identity")
    output = ir.Value(name=region.shared.names.fresh("identity_output"))
    node = ir.Node("", "Identity", [new], outputs=[output], name=name)
    region.ir.append(node)
    region.position_last(node)
    journal.on_undo(delete_node, region, node)
    _take_over(region.shared, old, output, journal)
    return output


def _take_over(shared: Shared, old: ir.Value, new: ir.Value, journal: Journal) -> None:
    """Give `new` the name, the declared type and the documentation of `old`, whose name becomes that of `new`."""
    name, taken = new.name, old.name
    fresh = new in shared.fresh
    said = None if fresh else _said(new)  # A fresh value is named and no more.
    journal.on_undo(_restore, shared, old, new, (taken, name, said, shared.given_type(new)))
    old.name, new.name = name, taken
    if fresh:
        shared.fresh.discard(new)
        _inherit_provenance(old, new, journal)
    _inherit_type(shared, old, new)
    if old.doc_string:
        new.doc_string = old.doc_string
    if properties := old.metadata_props:
        new.metadata_props.update(properties)
    if shared.annotated and QUANTIZATION in (known := old.meta):
        new.meta[QUANTIZATION] = known[QUANTIZATION]


def _said(value: ir.Value) -> tuple[Any, ...]:
    """What the model says of `value` and taking over may change."""
    return value.type, value.shape, value.doc_string, dict(value.metadata_props), value.meta.get(QUANTIZATION)


def _restore(shared: Shared, old: ir.Value, new: ir.Value, state: tuple[Any, ...]) -> None:
    """Give both their names back and make `new` what it was."""
    old.name, new.name, said, given = state
    new.type, new.shape, new.doc_string, properties, annotation = said or (None, None, None, {}, None)
    new.metadata_props.clear()
    new.metadata_props.update(properties)
    new.meta.pop(QUANTIZATION, None)
    if annotation is not None:
        new.meta[QUANTIZATION] = annotation
    shared.give_type(new, given)
    if said is None:
        shared.fresh.add(new)


def _inherit_type(shared: Shared, old: ir.Value, new: ir.Value) -> None:
    given, declared = shared.given_type(new), old.type
    if given is not None and (known := dtypes.declared_type(old)) and not dtypes.agrees(known, given):
        dtypes.set_type(new, given)
    elif declared is not None:
        shape = old.shape
        if shape is not None and (old.uses() or old.producer() is None):  # It stays, so each has its own.
            shape = shape.copy()
        new.type, new.shape = declared, shape
    if given is not None or declared is None:
        # What is only inferred of `old` holds for `new` as well, as far as the rewrite says nothing itself.
        shared.give_type(new, given or shared.type(old))
    else:
        shared.inherit_type(new, old)


def _inherit_provenance(old: ir.Value, new: ir.Value, journal: Journal) -> None:
    """Nodes keep what is known of where they come from (module path, source line)."""
    source, target = old.producer(), new.producer()
    if source is None or target is None or not (known := source.metadata_props) or target.metadata_props:
        return
    target.metadata_props.update(known)
    journal.on_undo(target.metadata_props.clear)
