"""A compiled model as one file of StableHLO that any JAX runs, without torch: jax.export."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax
import jax.numpy as jnp
from jax import export

from graphopt.backends.inputs import InputType
from graphopt.backends.xla.arrays import exact_types
from graphopt.errors import UnsupportedError


def require_fixed(types: Sequence[InputType]) -> None:
    """Raises UnsupportedError unless all sizes of the inputs are fixed."""
    for type_ in types:
        if type_.shape is None or not all(isinstance(d, int) for d in type_.shape):
            raise UnsupportedError(
                f"backend 'xla': input {type_.name!r} is {type_}; a file is for fixed sizes, so give the model "
                "none that are open"
            )


def write_portable(
    run: Callable[..., Any],
    weights: Sequence[Any],
    types: Sequence[InputType],
    path: Path,
    platforms: Sequence[str],
    precision: str,
) -> None:
    """Write `run(weights, inputs)` to `path`, weights included, lowered for each of `platforms`.

    It is read with `jax.export.deserialize(path.read_bytes()).call(*inputs)`; that process has to allow 64-bit types
    (`jax.enable_x64`) if inputs have them. Nothing is compiled for a device before it is called there.

    Raises:
        UnsupportedError: an input of no fixed size.
        OSError: the file cannot be written.
    """
    require_fixed(types)
    with exact_types(precision):
        shapes = [jax.ShapeDtypeStruct(t.shape, jnp.dtype(t.dtype)) for t in types]
        exported = export.export(jax.jit(lambda *inputs: run(weights, inputs)), platforms=list(platforms))(*shapes)
        data = exported.serialize()
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
