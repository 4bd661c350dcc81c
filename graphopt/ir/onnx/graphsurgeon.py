"""The bridge from and to onnx_graphsurgeon, which cannot hold everything that a model says.

Its Graph drops inputs that have a default value when it is imported; they are put back by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from graphopt.errors import MissingExtraError
from graphopt.ir.onnx.save import to_proto

if TYPE_CHECKING:
    from graphopt.ir.onnx.model import OnnxModel


def graphsurgeon() -> Any:
    """The package. Raises MissingExtraError if it is not installed."""
    try:
        import onnx_graphsurgeon
    except ImportError:
        raise MissingExtraError(
            "an onnx_graphsurgeon.Graph needs onnx_graphsurgeon, which is not installed; pip "
            "install 'graphopt[gs]'"
        ) from None
    return onnx_graphsurgeon


def proto_of(graph: Any) -> onnx.ModelProto:
    """`graph` as a ModelProto. Exporting completes the graph's imports; they are set back."""
    domains = graph.import_domains
    graph.import_domains = None if domains is None else list(domains)
    try:
        return graphsurgeon().export_onnx(graph, do_type_check=False)
    finally:
        graph.import_domains = domains


def graph_of(model: OnnxModel) -> Any:
    """`model` as an onnx_graphsurgeon.Graph, its overridable inputs included."""
    proto = to_proto(model.ir, model.carried)
    graph = graphsurgeon().import_onnx(proto)
    if model.ir.ir_version >= 4:
        _reattach_inputs(graph, model.ir.graph)
    return graph


def _reattach_inputs(graph: Any, source: ir.Graph) -> None:
    tensors = graph.tensors()
    for position, value in enumerate(source.inputs):
        if value.is_initializer() and value.name in tensors:
            graph.inputs.insert(position, tensors[value.name])
