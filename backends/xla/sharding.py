"""How a program is divided over several devices: by the branches of its guidance, its samples, the channels of its
weights, or several of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from graphopt.backends.xla.arrays import devices_of
from graphopt.errors import PipelineError, UnsupportedError
from graphopt.program.interface import NEGATIVE
from graphopt.program.program import Program

BRANCHES, SAMPLES, CHANNELS = "branches", "samples", "channels"
"""The names of the mesh's axes."""


def mesh_of(platform: str, devices: int, tensor: int, branches: int) -> Mesh:
    """The first `devices` devices of a platform: a group for each of `branches`, in which rows of `tensor` have a
    share of each weight.

    Raises:
        UnsupportedError: there are fewer.
    """
    found = devices_of(platform)
    if len(found) < devices:
        hint = (
            f"; XLA makes as many of a CPU with XLA_FLAGS=--xla_force_host_platform_device_count={devices}, set before "
            "JAX starts"
        )
        raise UnsupportedError(
            f"backend 'xla': devices={devices}, and platform {platform!r} has {len(found)}{hint * (platform == 'cpu')}"
        )
    return Mesh(np.asarray(found[:devices]).reshape(branches, -1, tensor), (BRANCHES, SAMPLES, CHANNELS))


def require_divisible(program: Program, devices: int, tensor: int, branches: int) -> None:
    """
    Raises:
        PipelineError: a number that is no positive integer, or `tensor` and `branches` do not divide `devices`.
        UnsupportedError: the samples of a call cannot be divided, or a row has not as many calls as `branches`.
    """
    for name, count in (("devices", devices), ("tensor", tensor), ("branches", branches)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise PipelineError(f"backend 'xla': {name} is {count!r}, expected a positive integer")
    _require_branches(program, branches)
    if devices % (tensor * branches):
        several = f" for each of branches={branches}" if branches > 1 else ""
        raise PipelineError(
            f"backend 'xla': devices={devices} cannot be divided into groups of tensor={tensor}{several}"
        )
    batch, groups = (program.interface.sample.shape or (1,))[0], devices // (tensor * branches)
    if not isinstance(batch, int) or batch % groups:
        raise UnsupportedError(
            f"backend 'xla': the sample is {program.interface.sample}, and its first axis cannot be divided over "
            f"{groups} devices; build the program with a batch that is a multiple of {groups}"
        )


def _require_branches(program: Program, branches: int) -> None:
    calls = 1 if program.guidance is None or program.interface.doubled else 2
    if branches in (1, calls):
        return
    hint = "; build it with guidance=Guidance(scale, mode='calls')" if branches == 2 and program.guidance else ""
    often = "once" if calls == 1 else "twice"
    raise UnsupportedError(
        f"backend 'xla': branches={branches}, and the program calls its denoiser {often} in a row{hint}"
    )


def input_shardings(program: Program, mesh: Mesh) -> dict[str, Any]:
    """Where the inputs of a program lie, by name; inputs that are not named here lie on every device."""
    divided = NamedSharding(mesh, PartitionSpec(SAMPLES))
    shardings: dict[str, Any] = {"noise": divided, "step_noise": NamedSharding(mesh, PartitionSpec(None, SAMPLES))}
    for condition in program.interface.conditions:
        if condition.branched:
            shardings |= {condition.name: divided, NEGATIVE + condition.name: divided}
    return shardings


def weight_shardings(dims: Sequence[int | None], mesh: Mesh) -> list[Any]:
    """Where weights lie that are divided along these dimensions."""
    return [NamedSharding(mesh, PartitionSpec(*[None] * dim, CHANNELS)) if dim is not None else everywhere(mesh)
            for dim in dims]  # fmt: skip


def everywhere(mesh: Mesh) -> Any:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())
