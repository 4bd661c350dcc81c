"""Writing a model: to a proto with nothing added, and to files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.ir.model import check_folder
from graphopt.ir.onnx.checks import attribute_tensors, external_tensors
from graphopt.ir.onnx.constants import reopened
from graphopt.ir.onnx.map_types import declare_map_types
from graphopt.ir.onnx.shared import all_graphs, copy_of
from graphopt.ir.onnx.streaming import stream, write_proto

PROTO_LIMIT = 1_900_000_000
"""Bytes of tensors beyond which they go to a file beside the model; a protobuf message cannot exceed 2
GiB."""
_INLINE = 1024
_STREAMED = 1 << 16
"""Bytes from which a tensor is written without being put into a message first."""
_ALIGNMENT = 4096
_FILES = "graphopt.data_files"
"""Key under which a model notes the files of its tensors; it is not written into the file."""


@dataclass(frozen=True)
class Carried:
    """What a proto says that onnx_ir does not keep, to be put back when a proto is written."""

    declared: frozenset[str] = frozenset()
    """Names of initialisers whose type the file declares a second time, as onnx_ir would for all of them."""
    training: tuple[onnx.TrainingInfoProto, ...] = field(default=())


def to_proto(model: ir.Model, carried: Carried) -> onnx.ModelProto:
    """`model` as a proto, without what onnx_ir adds: declarations of initialiser types, and the metadata of a
    tensor a second time."""
    proto = _serialised(model)
    _drop_added_declarations(proto.graph, carried.declared)
    for function in proto.functions:
        _drop_repeated_metadata((), function.node)
    proto.training_info.extend(carried.training)
    declare_map_types(model, proto)
    return proto


def _serialised(model: ir.Model) -> onnx.ModelProto:
    try:
        return ir.to_proto(model)
    except Exception as error:
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        if isinstance(root, ModelError):
            raise root from error
        if isinstance(root, UnicodeError):
            raise ModelError(f"the model holds text that is not UTF-8: {root}; export it again") from error
        raise


def _drop_added_declarations(graph: onnx.GraphProto, declared: frozenset[str]) -> None:
    added = {tensor.name for tensor in graph.initializer} - declared
    if added:
        kept = [info for info in graph.value_info if info.name not in added]
        if len(kept) < len(graph.value_info):
            del graph.value_info[:]
            graph.value_info.extend(kept)
    _drop_repeated_metadata(graph.initializer, graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _drop_added_declarations(attribute.g, declared)
            for body in attribute.graphs:
                _drop_added_declarations(body, declared)


def _drop_repeated_metadata(tensors: Iterable[onnx.TensorProto], nodes: Iterable[onnx.NodeProto]) -> None:
    held = (a.t for node in nodes for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
    for tensor in (*tensors, *held):
        once = {entry.key: entry.value for entry in tensor.metadata_props}
        if len(once) < len(tensor.metadata_props):
            del tensor.metadata_props[:]
            for key, value in once.items():
                tensor.metadata_props.add(key=key, value=value)


def save_model(model: ir.Model, path: Path, carried: Carried, limit: int = PROTO_LIMIT) -> None:
    """Write `model` to `path`, and its tensors to `<name>.data` beside it if they exceed `limit` bytes.

    Both files are written under temporary names in the same folder and then moved into place; on failure
    neither is changed and nothing is left behind. Tensors are streamed one by one. `<name>.data` is replaced only if it
    is of the model at `path`: whoever else reads it would read what is not theirs. Otherwise the new file is
    `<name>.1.data`. Raises ModelError if there is no such folder, if tensors of the model lie in the file at `path`, or
    if the file that one lies in has gone.
    """
    path = Path(path)
    data = data_path(model, path)
    copy = copy_of(model)
    if sum(tensor.nbytes for tensor in _tensors(copy)) <= limit:
        _load_external(copy)
        large = _take_out_large(copy)
        with _temporary(path) as temporary:
            with temporary.open("wb") as file:
                write_proto(_without_references(to_proto(copy, carried), large), large, file)
            os.replace(temporary, path)
        return
    with _temporary(path) as temporary, _temporary(data) as temporary_data:
        _write_data(copy, temporary_data, data)
        temporary.write_bytes(to_proto(copy, carried).SerializeToString())
        _replace_both((temporary_data, data), (temporary, path))


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in all_graphs(model):
        yield from graph.initializers.values()


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in _initializers(model):
        if value.const_value is not None:
            yield value.const_value
    for graph in all_graphs(model):
        for node in graph:
            for attribute in node.attributes.values():
                yield from attribute_tensors(attribute)


def _load_external(model: ir.Model) -> None:
    """Make tensors that lie in other files part of the proto: the new file stands alone."""
    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = _inline(value.const_value)
    _inline_attributes(model)


def _inline(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.LazyTensor(
        lambda: reopened(tensor),
        tensor.dtype,
        ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _inline_attributes(model: ir.Model) -> None:
    for graph in all_graphs(model):
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                held = attribute_tensors(attribute)
                if any(isinstance(tensor, ir.ExternalTensor) for tensor in held):
                    inner = [_inline(t) if isinstance(t, ir.ExternalTensor) else t for t in held]
                    value = inner[0] if attribute.type == ir.AttributeType.TENSOR else inner
                    node.attributes[name] = ir.Attr(name, attribute.type, value, attribute.doc_string)


def _take_out_large(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """The large initialisers of the main graph by name. In `model` they become references to nothing."""
    large = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= _STREAMED:
            large[name] = tensor
            value.const_value = _reference(tensor, "", 0, "")
    return large


def _without_references(proto: onnx.ModelProto, names: Container[str]) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return proto


def _reference(tensor: ir.TensorProtocol, location: str, offset: int, folder: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
        base_dir=folder,
    )


def _write_data(model: ir.Model, temporary: Path, final: Path) -> None:
    """Stream every big initialiser of `model` into `temporary` and let it refer to `final`."""
    _inline_attributes(model)
    with temporary.open("wb") as file:
        for value in _initializers(model):
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            if tensor.nbytes <= _INLINE:
                value.const_value = _inline(tensor) if isinstance(tensor, ir.ExternalTensor) else tensor
                continue
            offset = -(-file.tell() // _ALIGNMENT) * _ALIGNMENT
            file.write(b"\0" * (offset - file.tell()))
            stream(reopened(tensor), file)
            value.const_value = _reference(tensor, final.name, offset, str(final.parent))


def remember_files(model: ir.Model) -> None:
    """Note the files that tensors of `model` lie in: passes compute tensors of what they read there, which is read when
    the model is saved."""
    if files := data_files(model):
        model.meta[_FILES] = files


def data_files(model: ir.Model) -> frozenset[Path]:
    """The files that tensors of `model` lie in or are computed from."""
    known: frozenset[Path] = model.meta.get(_FILES, frozenset())
    return known | {Path(tensor.path).absolute() for tensor in external_tensors(model)}


def data_files_at(path: Path) -> frozenset[Path]:
    """The files that tensors of the model in the file at `path` lie in; none if that is no model."""
    try:
        return frozenset(path.parent.absolute() / tensor.location for tensor in external_tensors(ir.load(path)))
    except Exception:  # Whatever is wrong with the file is said better by whoever loads it.
        return frozenset()


def data_path(model: ir.Model, path: Path) -> Path:
    """Where the data of `model` goes if it is too large for the file at `path`: beside it, and in the place of no file
    but one that is of the model which is replaced at `path`, and of that alone. Raises ModelError if no model can be
    written to `path`, or if it is itself a file that `model` reads.
    """
    check_folder(path)
    sources = data_files(model)
    if _is_one_of(path, sources):
        raise ModelError(f"cannot save to {path}: weights of the model lie in this file; choose another name")
    names = (f"{path.name}.{number}.data" for number in itertools.count(1))
    candidates = (path.with_name(name) for name in itertools.chain([f"{path.name}.data"], names))
    return next(c for c in candidates if not os.path.lexists(c) or _is_spare(c, path, sources))


def _is_spare(data: Path, path: Path, sources: Collection[Path]) -> bool:
    return not _is_one_of(data, sources) and _is_one_of(data, data_files_at(path))


def _is_one_of(path: Path, files: Collection[Path]) -> bool:
    return path.exists() and any(file.exists() and file.samefile(path) for file in files)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A new name beside `path`; whatever is left under it at the end is deleted."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        _copy_mode(path, temporary)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _copy_mode(path: Path, temporary: Path) -> None:
    """mkstemp makes private files: give the permissions of the old file, or those that a new one would
    get."""
    if path.exists():
        temporary.chmod(path.stat().st_mode & 0o777)
        return
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o666 & ~mask)


def _replace_both(data: tuple[Path, Path], model: tuple[Path, Path]) -> None:
    """Move both files into place; if the second move fails the first is taken back."""
    with _temporary(data[1]) as backup:
        existed = data[1].exists()
        if existed:
            os.replace(data[1], backup)
        try:
            os.replace(*data)
            os.replace(*model)
        except BaseException:
            if existed:
                os.replace(backup, data[1])
            else:
                data[1].unlink(missing_ok=True)
            raise
