"""A compiled model as one file of StableHLO that any JAX runs, without torch: jax.export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from graphopt.backends.inputs import InputType
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.files import write_bytes
from graphopt.errors import UnsupportedError


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
    with exact_types(precision):
        shapes = fixed_shapes(types)
        exported = export.export(jax.jit(lambda *inputs: run(weights, inputs)), platforms=list(platforms))(*shapes)
        data = exported.serialize()
    write_bytes(path, data)


def fixed_shapes(types: Sequence[InputType]) -> list[Any]:
    """The inputs' shapes and dtypes, to trace a function with; 64-bit types have to be allowed.

    Raises:
        UnsupportedError: an input of no fixed size.
    """
    for type_ in types:
        if type_.shape is None or not all(isinstance(d, int) for d in type_.shape):
            raise UnsupportedError(
                f"backend 'xla': input {type_.name!r} is {type_}; files and executables are for fixed sizes, so lower "
                "the model without dynamic_shapes"
            )
    return [jax.ShapeDtypeStruct(t.shape, jnp.dtype(t.dtype)) for t in types]
