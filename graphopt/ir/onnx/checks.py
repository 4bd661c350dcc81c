"""What is refused when a model is taken in, each with the place and the way out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.ir.onnx.external import check_place, note_stamp
from graphopt.ir.onnx.shared import all_graphs, body_graphs, nested_graphs


def check_proto(proto: onnx.ModelProto, where: str) -> None:
    """Refuse a message that decodes but is no whole model: protobuf does not notice a cut between two
    fields."""
    if not proto.HasField("graph"):
        raise ModelError(
            f"{where}: not an ONNX model: it has no graph; expected a serialised onnx.ModelProto; "
            "export the model "
            "to ONNX first"
        )
    if proto.ir_version >= 3 and not proto.opset_import:
        raise ModelError(
            f"{where}: truncated: it imports no operator set; expected at least one opset_import; "
            "download or "
            "export it again"
        )
    for domain in (opset.domain for opsets in (proto, *proto.functions) for opset in opsets.opset_import):
        if not isinstance(domain, str):
            raise ModelError(
                f"{where}: damaged: it imports the operator set {domain!r}; expected a name in UTF-8; "
                "download or export it again"
            )


def check_structure(model: ir.Model, where: str) -> None:
    """Every value that is read has to be defined; nodes that are out of order are put in order."""
    for root in (model.graph, *(function.graph for function in model.functions.values())):
        if not _check_order(root, set(), where):
            try:
                root.sort()
            except ValueError as error:
                raise ModelError(
                    f"{where}: graph {root.name!r} has a cycle; expected nodes that can be ordered; "
                    "check it with "
                    "onnx.checker"
                ) from error


def check_functions(model: ir.Model, where: str) -> None:
    """Refuse local functions that call themselves, be it by way of others: no run of them would end."""
    calls = {
        key: {n.op_identifier() for graph in nested_graphs(function.graph) for n in graph} & model.functions.keys()
        for key, function in model.functions.items()
    }
    try:
        TopologicalSorter(calls).prepare()
    except CycleError as error:
        # What is told is a cycle of dependencies, in which a callee comes before what calls it.
        cycle = " -> ".join(f"{domain}::{name}" for domain, name, _ in reversed(error.args[1]))
        raise ModelError(
            f"{where}: local functions call themselves: {cycle}; expected functions that can be inlined; "
            "check it with onnx.checker"
        ) from error


def _check_order(graph: ir.Graph, around: set[ir.Value], where: str) -> bool:
    """Whether nodes stand after what they read. Raises ModelError if something is read that nothing
    defines."""
    known = around | set(graph.inputs) | set(graph.initializers.values())
    later = {value for node in graph for value in node.outputs}
    ordered = True
    for node in graph:
        _check_node(node, where)
        for value in node.inputs:
            if value is not None and value not in known:
                if value not in later:
                    raise _undefined(where, f"node {node.name or node.op_type!r}", value)
                ordered = False
        for body in body_graphs(node):
            _check_hidden(body, known, where)
            ordered &= _check_order(body, known | later, where)
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in known:
            raise _undefined(where, f"graph {graph.name!r}, as an output,", value)
    return ordered


def _check_hidden(body: ir.Graph, around: Set[ir.Value], where: str) -> None:
    """Refuse an initialiser with the name of another value that `body` can see: which one is read depends on the
    runtime, and in onnxruntime on what the other bodies of the node read."""
    for value in around if body.initializers else ():
        inner = body.initializers.get(value.name or "")
        if inner is not None and not _same_constant(value, inner):
            raise ModelError(
                f"{where}: graph {body.name!r} has an initializer {value.name!r}, which is also the name of another "
                "value outside of it, and runtimes disagree which one is read; expected names of their own; rename one"
            )


def _same_constant(a: ir.Value, b: ir.Value) -> bool:
    first, second = a.const_value, b.const_value
    if first is None or second is None or a.is_graph_input() or b.is_graph_input():
        return False
    return first.dtype == second.dtype and np.array_equal(first.numpy(), second.numpy())


def _check_node(node: ir.Node, where: str) -> None:
    """Refuse what protobuf lets through: names that are no text, attributes of no type."""
    untyped = [a.name for a in node.attributes.values() if a.type == ir.AttributeType.UNDEFINED]
    if untyped:
        raise ModelError(
            f"{where}: damaged: attribute {untyped[0]!r} of node {node.name or node.op_type!r} has no type; "
            "expected one; export it again"
        )
    if not (isinstance(node.op_type, str) and isinstance(node.domain, str)):
        raise ModelError(
            f"{where}: damaged: a node has the op {node.op_type!r}; expected a name in UTF-8; "
            "download or export it again"
        )


def _undefined(where: str, reader: str, value: ir.Value) -> ModelError:
    return ModelError(
        f"{where}: {reader} reads {value.name!r}, which is no input, no initialiser and no output "
        "of an earlier "
        "node; expected every value to be defined; the file may be incomplete"
    )


# ---- external data
# ------------------------------------------------------------------------------------------


def check_external(model: ir.Model, where: str, folder: Path | None, named: bool = False) -> None:
    """Tie external tensors to the model's folder and refuse what is missing, too short or outside of it.

    Without a folder (a model given as an object) the one that a tensor itself names is taken; with `named`
    an empty one is the current folder.
    """
    for tensor in external_tensors(model):
        if folder is not None:
            tensor.base_dir = str(folder)
        elif not os.fspath(tensor.base_dir) and not named:
            raise ModelError(
                f"{where}: tensor {tensor.name!r} lies in the file {str(tensor.location)!r}, whose "
                "folder is not "
                "known; expected the data inside; load it with onnx.load, or give the path instead"
            )
        check_place(tensor, where)
        if folder is not None:  # else the tensor is the caller's own
            note_stamp(tensor)


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """The tensors that lie in files, wherever the model has them: initialisers and attributes, bodies and functions."""
    for graph in all_graphs(model):
        tensors = [value.const_value for value in graph.initializers.values()]
        for node in graph:
            for attribute in node.attributes.values():
                tensors.extend(attribute_tensors(attribute))
        yield from (tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor))


def attribute_tensors(attribute: ir.Attr) -> Sequence[ir.TensorProtocol]:
    """The tensors that `attribute` holds."""
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.TENSOR:
        return (attribute.as_tensor(),)
    return attribute.as_tensors() if attribute.type == ir.AttributeType.TENSORS else ()
