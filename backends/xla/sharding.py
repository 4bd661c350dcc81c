"""How a program is divided over several devices: each has all weights and a share of the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from graphopt.backends.xla.arrays import devices_of
from graphopt.errors import PipelineError, UnsupportedError
from graphopt.program.interface import NEGATIVE
from graphopt.program.program import Program

AXIS = "samples"
"""The name of the mesh's only axis."""


def mesh_of(platform: str, count: int) -> Mesh:
    """The first `count` devices of a platform.

    Raises:
        UnsupportedError: there are fewer.
    """
    found = devices_of(platform)
    if len(found) < count:
        hint = (
            f"; XLA makes as many of a CPU with XLA_FLAGS=--xla_force_host_platform_device_count={count}, set before "
            "JAX starts"
        )
        raise UnsupportedError(
            f"backend 'xla': devices={count}, and platform {platform!r} has {len(found)}{hint * (platform == 'cpu')}"
        )
    return Mesh(np.asarray(found[:count]), (AXIS,))


def require_divisible(program: Program, count: int) -> None:
    """
    Raises:
        PipelineError: `count` is no positive integer.
        UnsupportedError: the samples of a call cannot be divided by it.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise PipelineError(f"backend 'xla': devices is {count!r}, expected a positive integer")
    batch = (program.interface.sample.shape or (1,))[0]
    if not isinstance(batch, int) or batch % count:
        raise UnsupportedError(
            f"backend 'xla': the sample is {program.interface.sample}, and its first axis cannot be divided over "
            f"{count} devices; build the program with a batch that is a multiple of {count}"
        )


def input_shardings(program: Program, mesh: Mesh) -> dict[str, Any]:
    """Where the inputs of a program lie, by name; inputs that are not named here lie on every device."""
    divided = NamedSharding(mesh, PartitionSpec(AXIS))
    shardings: dict[str, Any] = {"noise": divided, "step_noise": NamedSharding(mesh, PartitionSpec(None, AXIS))}
    for condition in program.interface.conditions:
        if condition.branched:
            shardings |= {condition.name: divided, NEGATIVE + condition.name: divided}
    return shardings


def everywhere(mesh: Mesh) -> Any:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
