"""A compiled model as one file of StableHLO that any JAX runs, without torch: jax.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export

from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.files import write_bytes


def write_portable(
    function: Callable[..., Any], arguments: Sequence[Any], path: Path, platforms: Sequence[str], precision: str
) -> None:
    """Write `function`, with the weights that it holds, to `path`, lowered for each of `platforms`.

    It is read with `jax.export.deserialize(path.read_bytes()).call(...)`; that process has to allow 64-bit types
    (`jax.enable_x64`) if inputs have them. Nothing is compiled for a device before it is called there.

    Args:
        function: of JAX arrays.
        arguments: what it is called with, as pytrees of `jax.ShapeDtypeStruct`.
        path: of the file.
        platforms: "cpu", "tpu", "cuda" ...
        precision: of float32 products.

    Raises:
        ModelError: there is no such folder, or no file can take this place.
        OSError: the file cannot be written.
    """
    with exact_types(precision):
        data = export.export(jax.jit(function), platforms=list(platforms))(*arguments).serialize()
    write_bytes(path, data)
