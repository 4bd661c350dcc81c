"""Taking a model in: a path, a ModelProto, an onnx_ir.Model or an onnx_graphsurgeon.Graph."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.errors import ModelError
from graphopt.ir.onnx import graphsurgeon
from graphopt.ir.onnx.check_tensors import check_tensors
from graphopt.ir.onnx.checks import check_external, check_functions, check_proto, check_structure
from graphopt.ir.onnx.map_types import note_map_types, without_map_types
from graphopt.ir.onnx.model import OnnxModel
from graphopt.ir.onnx.save import Carried, remember_files, to_proto
from graphopt.ir.onnx.shared import copy_of
from graphopt.ir.onnx.sparse import densified

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def load_onnx(source: str | Path | onnx.ModelProto | ir.Model | gs.Graph) -> OnnxModel:
    """The model behind `source`, which is neither modified nor shared.

    `.export()` gives back the kind that came in; a path gives an `onnx_ir.Model`. Raises ModelError for what
    is no model, is damaged, or refers to data that is missing or lies outside the model's folder.
    """
    if isinstance(source, str | Path):
        return _from_path(Path(source))
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source, "the ModelProto", None, lambda m: to_proto(m.ir, m.carried))
    if isinstance(source, ir.Model):
        return _from_ir(source)
    if type(source).__module__.partition(".")[0] == "onnx_graphsurgeon":
        proto = graphsurgeon.proto_of(source)
        return _from_proto(proto, "the onnx_graphsurgeon.Graph", None, graphsurgeon.graph_of)
    raise ModelError(
        f"cannot take a {type(source).__module__}.{type(source).__qualname__} as a model{_advice(source)}; expected "
        "the path of an .onnx file, an onnx.ModelProto, onnx_ir.Model or onnx_graphsurgeon.Graph, or, with the extra "
        "'torch', a torch.nn.Module, torch.export.ExportedProgram or torch.fx.GraphModule"
    )


def _advice(source: Any) -> str:
    """What somebody may have meant by a `source` that is no model."""
    if isinstance(source, type):
        return f": {source.__qualname__} is a class; give an object of it"
    if isinstance(source, bytes) or hasattr(source, "read"):
        return ": make one of the file's content with onnx.load_model_from_string"
    return ""


def _from_path(path: Path) -> OnnxModel:
    try:
        if path.is_char_device() or path.is_block_device():
            raise ModelError(f"{path}: a device, which may have no end; expected an ONNX file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; expected an ONNX file") from error
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is no path: {error}; check it") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise _undecodable(path, data) from None
    return _from_proto(proto, str(path), path.parent.absolute(), None)


def _undecodable(path: Path, data: bytes) -> ModelError:
    # Exporters write ir_version, field 1, first: its key is the byte 8.
    if data[:1] == b"\x08":
        return ModelError(
            f"{path}: truncated or damaged: it starts like an ONNX model but its {len(data)} bytes "
            "cannot be decoded "
            "to the end; expected a complete file; download or export it again"
        )
    return ModelError(
        f"{path}: not an ONNX model: expected a serialised onnx.ModelProto, got {len(data)} bytes "
        "starting with "
        f"{data[:8]!r}; export the model to ONNX first"
    )


def _from_proto(proto: onnx.ModelProto, where: str, folder: Path | None, export: Any) -> OnnxModel:
    check_proto(proto, where)
    check_tensors(proto, where)
    proto, maps = without_map_types(densified(proto, where), where)
    carried = Carried(_declared(proto.graph), tuple(proto.training_info))
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        cause = error.__cause__ or error
        raise ModelError(f"{where}: not a valid ONNX model: {cause}; check it with onnx.checker") from error
    check_external(model, where, folder)
    check_structure(model, where)
    check_functions(model, where)
    remember_files(model)
    note_map_types(model, maps)
    return OnnxModel(model, carried, export)


def _declared(graph: onnx.GraphProto) -> frozenset[str]:
    names = {info.name for info in graph.value_info} & {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                names |= _declared(body)
    return frozenset(names)


def _from_ir(source: ir.Model) -> OnnxModel:
    try:
        model = copy_of(source)
    except Exception as error:
        raise ModelError(
            f"the onnx_ir.Model cannot be copied: {error.__cause__ or error}; expected nodes in "
            "topological order and "
            "every value defined; call model.graph.sort() first"
        ) from error
    check_external(model, "the onnx_ir.Model", None, named=True)
    check_structure(model, "the onnx_ir.Model")
    check_functions(model, "the onnx_ir.Model")
    remember_files(model)
    return OnnxModel(model)
