"""Data that lies in other files: what is refused of how a tensor names it, and of what is found there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import ModelError


def entry_fault(entries: Mapping[str, str]) -> str | None:
    """What is wrong with how a tensor says where its data lies."""
    location = entries.get("location", "")
    if not location or "\0" in location:
        return f"has external data at {location!r}; expected the name of a file beside the model as its location"
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        try:
            is_count = int(text) >= 0
        except ValueError:
            is_count = False
        if not is_count:
            return f"has external data of {key} {text!r}; expected a number of bytes, 0 or more"
    return None


_STAMP = "graphopt.stamp"
"""Key under which a tensor notes the size and the time of the last change of its file."""


def note_stamp(tensor: ir.ExternalTensor) -> None:
    """Let `check_present` refuse the file of `tensor` from now on if it is written anew."""
    tensor.meta[_STAMP] = _stamp(tensor)


def _stamp(tensor: ir.ExternalTensor) -> tuple[int, int]:
    status = os.stat(tensor.path)
    return status.st_size, status.st_mtime_ns


def check_place(tensor: ir.ExternalTensor, where: str) -> None:
    """Refuse a location that is no file inside the model's folder."""
    named = {"location": str(tensor.location), "offset": tensor.offset, "length": tensor.length}
    reason = entry_fault({key: str(value) for key, value in named.items() if value is not None})
    if reason is not None:
        raise ModelError(f"{where}: damaged: tensor {tensor.name!r} {reason}; export it again")
    location, folder = Path(tensor.location), Path(tensor.base_dir or ".")
    if location.is_absolute() or ".." in location.parts:
        raise _outside(tensor, where, "an absolute path or one with '..'")
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise _outside(tensor, where, f"a link to {path.resolve()}")
    check_present(tensor, where)
    if (links := path.stat().st_nlink) > 1:
        raise _outside(tensor, where, f"a file with {links} hard links, which may lie anywhere")


def check_present(tensor: ir.ExternalTensor, where: str) -> None:
    """Refuse a file that is not there, that has less than `tensor` needs, or that is another than was noted."""
    path = Path(tensor.base_dir or ".") / tensor.location
    if not os.path.isfile(path):  # which is false, where pathlib raises, of a name that no file can have
        raise ModelError(
            f"{where}: external data of tensor {tensor.name!r} is missing: expected the file {path}; "
            "put it beside the model"
        )
    size, length = path.stat().st_size, tensor.length or tensor.nbytes
    if length < tensor.nbytes or size < (tensor.offset or 0) + length:
        raise ModelError(
            f"{where}: external data of tensor {tensor.name!r} is truncated: expected {tensor.nbytes} bytes at offset "
            f"{tensor.offset or 0} of {path}, which has {size}; download it again"
        )
    if tensor.meta.get(_STAMP, stamp := _stamp(tensor)) != stamp:
        raise ModelError(
            f"{where}: the file {path}, in which the data of tensor {tensor.name!r} lies, has been written since; "
            "expected what was there when the model was loaded; load it again"
        )


def _outside(tensor: ir.ExternalTensor, where: str, what: str) -> ModelError:
    return ModelError(
        f"{where}: external data of tensor {tensor.name!r} at {str(tensor.location)!r} is refused: expected a file "
        f"inside the model's folder, got {what}; copy the data beside the model"
    )
