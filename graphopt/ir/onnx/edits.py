"""The edits of a region and what undoes them, by means of onnx_ir's public API only.

Nodes that an edit makes obsolete are not removed here, so an undo never has to put a node back: it restores
uses, names and types, and removes what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.ir.graph import Literal, TensorType, Undo, Value
from graphopt.ir.onnx import dtypes
from graphopt.ir.onnx.constants import ref_type, stored_tensor
from graphopt.ir.onnx.cut import Copies, captured_values, clone_node
from graphopt.ir.onnx.drafting import Draft, DraftNode, Slot
from graphopt.ir.onnx.shared import Shared, body_graphs, nested_graphs
from graphopt.ir.onnx.takeover import take_over
from graphopt.ir.weights import ArrayRef, TensorRef, as_ref

if TYPE_CHECKING:
    from graphopt.ir.onnx.storage import OnnxGraph


def run_back(undos: list[Undo]) -> None:
    """Take back the steps of one edit, the last first."""
    while undos:
        undos.pop()()


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
    names = region.shared.names
    undos: list[Undo] = [partial(names.release_since, names.mark())]
    try:
        values = _bind_operands(region, draft, operands, undos, hint)
        for slot, name, array in draft.constants:
            values[slot], undo = add_constant(region, ArrayRef(array), f"{hint}_{name}")
            undos.append(undo)
        nodes = [_write_node(region, node, values, before, hint, undos) for node in draft.nodes]
        outputs = [values[slot] for slot in results]
        for value, type_ in zip(outputs, types, strict=False):
            region.shared.give_type(value, type_)
        for value, slot in list(zip(outputs, results, strict=True))[len(types) :]:
            region.shared.give_type(value, slot.type)
    except BaseException:
        run_back(undos)
        raise
    return outputs, nodes, partial(run_back, undos)


def _bind_operands(
    region: OnnxGraph, draft: Draft, operands: Sequence[Value | None], undos: list[Undo], hint: str
) -> dict[Slot, ir.Value]:
    values: dict[Slot, ir.Value] = {}
    for slot, operand in zip(draft.operands, operands, strict=True):
        if slot is None:
            continue
        if isinstance(operand, Literal):
            values[slot], undo = add_constant(
                region, as_ref(operand.value, operand.dtype), f"{hint}_constant"
            )
            undos.append(undo)
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
    undos: list[Undo],
) -> ir.Node:
    if draft.domain:
        _import_domain(region, draft.domain, undos)
    inputs = [None if slot is None else values[slot] for slot in draft.inputs]
    attributes = [_attribute(k, v) for k, v in draft.attributes.items()]
    names = region.shared.names
    name = names.fresh(hint)
    outputs = [ir.Value(name=names.fresh(f"{hint}_output")) for _ in draft.outputs]
    node = ir.Node(draft.domain, draft.op_type, inputs, attributes, outputs=outputs, name=name)
    region.put_before(before, node)
    region.shared.fresh.update(outputs)
    undos.append(partial(delete_node, region, node))
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
    region.put_before(before, node)
    region.shared.fresh.add(output)
    if types:
        region.shared.give_type(output, types[0])
    return [output], [node], partial(_delete_plain, region, node, mark)


def write_copy(
    region: OnnxGraph, node: ir.Node, read: Callable[[ir.Value], Value], before: ir.Node
) -> tuple[list[ir.Value | None], list[ir.Node], Undo]:
    """Put a copy of `node` of a body into the region, in front of `before`. What its own bodies define keeps its names:
    the original and the copy are never both left in the model."""
    shared = region.shared
    undos: list[Undo] = [partial(shared.names.release_since, shared.names.mark())]
    copies: Copies = {}
    for value in captured_values([node]):
        replacement = read(value)
        if isinstance(replacement, Literal):
            replacement, undo = add_constant(region, as_ref(replacement.value, replacement.dtype), "constant")
            undos.append(undo)
        copies[value] = replacement
    outside = set(copies)
    copy = clone_node(node, copies)
    hint = node.op_type.lower()
    copy.name = shared.names.fresh(hint)
    for output in copy.outputs:
        if output.name:
            output.name = shared.names.fresh(f"{hint}_output")
            shared.fresh.add(output)
    region.put_before(before, copy)
    undos.append(partial(delete_node, region, copy))
    for value, copied in copies.items():
        if value not in outside:
            shared.give_type(copied, shared.type(value))
    return [output if output.name else None for output in copy.outputs], [copy], partial(run_back, undos)


def _delete_plain(region: OnnxGraph, node: ir.Node, mark: int) -> None:
    delete_node(region, node)
    region.shared.names.release_since(mark)


def _attribute(name: str, value: Any) -> ir.Attr:
    if isinstance(value, ir.Attr):
        return value if value.name == name else ir.Attr(name, value.type, value.value)
    if isinstance(value, TensorRef):
        return ir.AttrTensor(name, stored_tensor(value, name))
    return ir.convenience.convert_attribute(name, value)


def _import_domain(region: OnnxGraph, domain: str, undos: list[Undo]) -> None:
    """Import a custom `domain` in version 1 if the model does not import it yet."""
    if domain not in region.opsets:
        region.opsets[domain] = 1
        undos.append(partial(region.opsets.__delitem__, domain))


def delete_node(region: OnnxGraph, node: ir.Node) -> None:
    """Take `node` out of the region; nothing may read its outputs."""
    if not delete_unread(region, [node]):
        raise ValueError(f"node {node.name!r} cannot be removed: an output of it is still read")


def delete_unread(region: OnnxGraph, nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Take those of `nodes` (readers first) out of the region of which nothing reads an output; returns them."""
    gone: dict[ir.Node, None] = {}
    for node in nodes:
        if _is_unread(node, gone):
            for body in body_graphs(node) if node.attributes.data else ():
                _empty(region.shared, body)
            gone[node] = None
    _detach(region.shared, gone, gone)  # What the nodes read of each other goes with them.
    region.take_out(gone)
    return list(gone)


def _is_unread(node: ir.Node, gone: Container[ir.Node]) -> bool:
    """Whether only nodes that are `gone` read an output of `node`, and none is an output of the graph."""
    for value in node.outputs:
        if value.is_graph_output():
            return False
        for user, _ in value.uses():
            if user not in gone:
                return False
    return True


def _empty(shared: Shared, body: ir.Graph) -> None:
    """Take everything out of `body`: whoever still holds its region finds it empty."""
    for graph in list(nested_graphs(body)):
        inner = list(graph)
        _detach(shared, inner, ())
        graph.remove(inner)


def _detach(shared: Shared, nodes: Iterable[ir.Node], spared: Container[ir.Node]) -> None:
    """Let `nodes` read nothing but what `spared` ones give, and forget them."""
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if value is not None and value.producer() not in spared:
                node.replace_input_with(index, None)
    shared.forget_nodes(nodes)


# ---- constants
# ----------------------------------------------------------------------------------------------


def add_constant(region: OnnxGraph, data: TensorRef, hint: str) -> tuple[ir.Value, Undo]:
    """Add an initialiser, or a Constant node where the region is the body of a function."""
    shared, graph = region.shared, region.ir
    undos: list[Undo] = [partial(shared.names.release_since, shared.names.mark())]
    name = shared.names.fresh(hint)
    tensor = stored_tensor(data, name)
    shared.remember_ref(tensor, data)
    value = ir.Value(name=name)
    if region.function is not None and graph is region.function.graph:
        _prepend_constant_node(region, value, tensor, undos)
    else:
        value.const_value = tensor
        dtypes.set_type(value, ref_type(data))
        graph.register_initializer(value)
        undos.append(partial(graph.initializers.__delitem__, name))
        if shared.model.ir_version < 4 and graph is shared.model.graph:
            graph.inputs.append(value)
            undos.append(partial(graph.inputs.remove, value))
    undos.append(partial(shared.forget_value, value))
    return value, partial(run_back, undos)


def _prepend_constant_node(
    region: OnnxGraph, value: ir.Value, tensor: ir.TensorProtocol, undos: list[Undo]
) -> None:
    name = region.shared.names.fresh(f"{value.name}_node")
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value], name=name)
    region.put_first(node)
    undos.append(partial(delete_node, region, node))


# ---- replacing
# ----------------------------------------------------------------------------------------------


def replace_value(region: OnnxGraph, old: ir.Value, new: Value) -> Undo:
    """Let users and outputs of `old` read `new`; names of outputs stay, and `new` inherits the name of `old`
    if an edit has just written it."""
    undos: list[Undo] = []
    undo = partial(run_back, undos)
    if old is new:
        return undo
    shared = region.shared
    try:
        if isinstance(new, Literal):
            new, forget = add_constant(region, as_ref(new.value, new.dtype), "constant")
            undos.append(forget)
        _redirect_uses(shared, old, new, undos)
        if shared.tensor(new) is not None:
            _give_scalars(region, new, undos)
        if old.is_graph_output():
            _redirect_outputs(region, old, new, undos)
        elif new in shared.fresh:
            take_over(shared, old, new, undos)
    except BaseException:
        undo()
        raise
    return undo


def _redirect_uses(shared: Shared, old: ir.Value, new: ir.Value, undos: list[Undo]) -> None:
    excluded = _within(new.producer())
    moved: list[tuple[Any, ...]] = []
    # One step for all uses, so that undoing puts them back in the order in which they were.
    undos.append(partial(_redirect_back, shared, old, new, moved))
    for user, index in old.uses():
        if user not in excluded:
            moved.append((user, index, shared.calls.pop(user, None), user.device_configurations))
            user.replace_input_with(index, new)


def _give_scalars(region: OnnxGraph, constant: ir.Value, undos: list[Undo]) -> None:
    """Let Range read `constant` as a scalar: runtimes take a vector of one element, unless it is constant."""
    readers = [(user, index) for user, index in constant.uses() if (user.domain, user.op_type) == ("", "Range")]
    data = region.constant(constant) if readers else None
    if data is None or data.ndim == 0 or data.size != 1:
        return
    scalar, undo = add_constant(region, ArrayRef(data.numpy().reshape(())), constant.name or "bound")
    undos.append(undo)
    for user, index in readers:
        undos.append(partial(user.replace_input_with, index, constant))
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


def _redirect_outputs(region: OnnxGraph, old: ir.Value, new: ir.Value, undos: list[Undo]) -> None:
    graph = old.graph
    assert graph is not None
    if _can_be_output(graph, new):
        take_over(region.shared, old, new, undos)
    else:
        producer = old.producer()
        if producer is not None and producer.op_type == "Identity" and producer.inputs[0] is new:
            return
        new = _append_identity(region.shared_region(graph), old, new, undos)
    for index, value in enumerate(graph.outputs):
        if value is old:
            graph.outputs[index] = new
            undos.append(partial(graph.outputs.__setitem__, index, old))


def _can_be_output(graph: ir.Graph, value: ir.Value) -> bool:
    return value.producer() is not None and value.graph is graph and not value.is_graph_output()


def _append_identity(region: OnnxGraph, old: ir.Value, new: ir.Value, undos: list[Undo]) -> ir.Value:
    names = region.shared.names
    undos.append(partial(names.release_since, names.mark()))
    name = names.fresh("identity")
    output = ir.Value(name=names.fresh("identity_output"))
    node = ir.Node("", "Identity", [new], outputs=[output], name=name)
    region.put_last(node)
    undos.append(partial(delete_node, region, node))
    take_over(region.shared, old, output, undos)
    return output
