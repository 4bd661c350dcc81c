"""Taking a model in, whatever it is: files and ONNX objects to the ONNX storage, torch objects to the FX storage."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from graphopt.errors import GraphoptError, MissingExtraError, ModelError
from graphopt.ir.model import Model


def load_model(source: Any, *, example_inputs: Any = None, dynamic_shapes: Any = None) -> Model:
    """`source` as a Model; neither the object nor the file is ever modified.

    Args:
        source: path of an .onnx file, onnx.ModelProto, onnx_ir.Model,
            onnx_graphsurgeon.Graph, torch.nn.Module, torch.export.ExportedProgram or torch.fx.GraphModule.
        example_inputs: what a torch module is traced with: a tuple of positional inputs, a dict of keyword
            inputs, or a pair of both. ONNX models need none.
        dynamic_shapes: as torch.export takes them.

    Raises:
        ModelError: not a model, a truncated file, external data missing or outside of the model's folder, no
            example inputs.
        UnsupportedError: operators of a torch model write to their arguments and cannot be made functional, or torch
            cannot convert a ScriptModule.
        MissingExtraError: the package that this kind of model needs is not installed.
    """
    if is_torch(source):
        from graphopt.ir.fx.load import load_torch

        return load_torch(source, example_inputs, dynamic_shapes)
    if dynamic_shapes is not None:
        raise ModelError(
            f"dynamic_shapes={dynamic_shapes!r}: they say how a torch module is traced, and this "
            f"{type(source).__name__} has its sizes already; leave them out"
        )
    if isinstance(source, Model):
        return source
    if isinstance(source, str | os.PathLike):
        return _load_path(source)
    from graphopt.ir.onnx.load import load_onnx

    return load_onnx(source)


def _load_path(given: str | os.PathLike[str]) -> Model:
    path = Path(given)
    suffix = path.suffix.lower()
    if suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt"):
        raise ModelError(
            f"{path}: a pickled torch file is not opened, since opening it runs code from it; expected an .onnx file; "
            "load the weights with torch.load(..., weights_only=True) into your module and pass the module"
        )
    if suffix == ".pt2":
        raise _exported_program(path)
    from graphopt.ir.onnx.load import load_onnx

    return load_onnx(path)


def _exported_program(path: Path) -> GraphoptError:
    """Why the file of an exported program is not opened: torch unpickles parts of it."""
    if importlib.util.find_spec("torch") is None:
        return MissingExtraError(f"{path}: an exported program needs torch: pip install graphopt[torch]")
    return ModelError(
        f"{path}: the file of an exported program is not opened, since torch may unpickle what it holds; expected an "
        ".onnx file or an object; if you trust the file, pass torch.export.load(path)"
    )


def is_torch(source: Any) -> bool:
    """Whether `source` is a module or an exported program of torch; imports nothing."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    exported = getattr(getattr(torch, "export", None), "ExportedProgram", torch.nn.Module)
    return isinstance(source, torch.nn.Module | exported)
