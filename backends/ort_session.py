"""An onnxruntime session from an `onnx_ir.Model`, whatever its size."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.backends.ort_errors import explain_refusal
from graphopt.backends.ort_settings import Settings, make_session_options
from graphopt.errors import ModelError
from graphopt.ir.model import check_folder
from graphopt.ir.onnx.save import PROTO_LIMIT, Carried, holds_tensors, save_model, to_proto
from graphopt.ir.onnx.shared import all_graphs


def open_session(model: ir.Model, settings: Settings, limit: int = PROTO_LIMIT) -> Any:
    """An `onnxruntime.InferenceSession` that runs `model`, which is not modified.

    A model of more than `limit` bytes, or with tensors in files, is handed over through a temporary folder: a
    protobuf message cannot exceed 2 GiB.

    Raises:
        UnsupportedError: onnxruntime has no kernel for an op; the message names op and node.
        ModelError: onnxruntime rejects the model, or the optimised model cannot be written.
    """
    size, external = _size(model)
    open_ = _open_in_files if size > limit or external else _open_in_memory
    if settings.save_path is None:
        return open_(model, settings, None, limit)
    path = Path(settings.save_path)
    check_folder(path)
    for written in (path, path.with_name(f"{path.name}.data")) if size > limit else (path,):
        if holds_tensors(written, model):
            raise ModelError(f"save_path={str(path)!r}: weights of the model lie in {written}; choose another name")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            saved = Path(folder) / path.name
            if size > limit:
                settings = _with_data_file(settings, path)
            session = open_(model, settings, saved, limit)
            for written in sorted(Path(folder).iterdir(), key=lambda file: file == saved):
                os.replace(written, path.parent / written.name)
            return session
    except OSError as error:
        raise ModelError(
            f"{path}: the optimised model cannot be written: {error.strerror or error}"
        ) from error


def _with_data_file(settings: Settings, path: Path) -> Settings:
    entries = {"session.optimized_model_external_initializers_file_name": f"{path.name}.data"}
    return replace(settings, session_options={**entries, **settings.session_options})


def _open_in_memory(model: ir.Model, settings: Settings, save_to: Path | None, limit: int) -> Any:
    return _make(to_proto(model, Carried()).SerializeToString(), settings, save_to)


def _open_in_files(model: ir.Model, settings: Settings, save_to: Path | None, limit: int) -> Any:
    # The session maps the files: on systems where a mapped file cannot be deleted, the folder stays.
    with tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path, Carried(), limit)
        return _make(str(path), settings, save_to)


def _make(source: bytes | str, settings: Settings, save_to: Path | None) -> Any:
    import onnxruntime

    options = make_session_options(settings, save_to)
    providers = list(settings.providers)
    try:
        return onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # onnxruntime raises a class of its own for each of its status codes
        names = [p if isinstance(p, str) else p[0] for p in providers]
        raise explain_refusal(error, ", ".join(names)) from error


def _size(model: ir.Model) -> tuple[int, bool]:
    """Bytes of the stored tensors, and whether any of them lies in a file of its own."""
    tensors = [v.const_value for graph in all_graphs(model) for v in graph.initializers.values()]
    attributes = [
        attribute.as_tensor()
        for graph in all_graphs(model)
        for node in graph
        for attribute in node.attributes.values()
        if not attribute.is_ref() and attribute.type == ir.AttributeType.TENSOR
    ]
    stored = [t for t in (*tensors, *attributes) if t is not None]
    return sum(t.nbytes for t in stored), any(isinstance(t, ir.ExternalTensor) for t in stored)
