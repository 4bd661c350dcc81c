"""Between torch tensors and JAX arrays, and the setting in which JAX computes what torch would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import torch

from graphopt.errors import UnsupportedError
from graphopt.ir.fx.tensors import to_numpy, to_torch


@contextmanager
def exact_types(precision: str = "highest") -> Iterator[None]:
    """64-bit types are kept, and float32 products are computed as `precision` says."""
    with jax.enable_x64(True), jax.default_matmul_precision(precision):
        yield


def devices_of(platform: str) -> list[Any]:
    """The devices of `platform`.

    Raises:
        UnsupportedError: there is none.
    """
    try:
        return list(jax.devices(platform))
    except RuntimeError as error:
        found = ", ".join(sorted({d.platform for d in jax.devices()}))
        raise UnsupportedError(f"backend 'xla': no device of platform {platform!r} here, only {found}") from error


def device_of(platform: str) -> Any:
    """The first of `devices_of(platform)`."""
    return devices_of(platform)[0]


def to_jax(tensor: torch.Tensor, device: Any = None) -> Any:
    """A copy of `tensor` as a JAX array of the same dtype."""
    return jax.device_put(np.ascontiguousarray(to_numpy(tensor)).reshape(tuple(tensor.shape)), device)


def from_jax(array: Any) -> torch.Tensor:
    """A copy of `array` as a CPU tensor of the same dtype."""
    return to_torch(np.array(array))
