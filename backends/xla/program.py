"""What a sampling program becomes on XLA: a callable that is called as the program was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from graphopt.backends.program_inputs import input_types, read_call, require_names
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.jitted import Jitted
from graphopt.backends.xla.loop import SamplingLoop
from graphopt.backends.xla.portable import write_portable
from graphopt.backends.xla.row import wide_dtype
from graphopt.backends.xla.settings import Settings
from graphopt.backends.xla.sharding import (
    CHANNELS,
    everywhere,
    input_shardings,
    mesh_of,
    require_divisible,
    weight_shardings,
)
from graphopt.backends.xla.tensor_parallel import division
from graphopt.backends.xla.unit_graphs import weight_on
from graphopt.backends.xla.units import Units
from graphopt.errors import UnsupportedError
from graphopt.program.guidance import Scale
from graphopt.program.program import Program
from graphopt.program.runner import like

REFERENCES = {"fx": "torch", "onnx": "onnxruntime"}
"""What runs the graphs of a storage otherwise."""


class CompiledXlaProgram(Jitted):
    """A program on XLA, with the signature of `Program.__call__`: arrays or tensors in, the same kind out.

    It is compiled once, at the first call: conditions, noise and scales are inputs. Holds nothing of a request, so a
    result can never be stale.
    """

    def __init__(
        self, program: Program, settings: Settings, devices: int = 1, tensor: int = 1, branches: int = 1
    ) -> None:
        """
        Args:
            program: one whose graphs are torch's or ONNX graphs.
            settings: how it is compiled.
            devices: over how many devices of the platform a call is divided. With Guidance(mode="batch") samples go to
                another device and back in every row, as the two halves of the denoiser's batch are divided too; with
                mode="calls" they stay.
            tensor: how many of these devices have a share each of the weights that can be divided, and compute a share
                of the same samples.
            branches: 2 gives both branches of Guidance(mode="calls") devices of their own, which exchange predictions
                once a row. Samples are divided over devices / (tensor · branches).

        Raises:
            PipelineError: numbers of devices that are no positive integers or do not divide each other.
            UnsupportedError: fewer devices of the platform; samples, weights or branches that cannot be divided; an op
                has no kernel, or one that differs from torch or onnxruntime; a condition has the name of another input.
        """
        require_names(program)
        require_divisible(program, devices, tensor, branches)
        self.program = program
        self._numbers = wide_dtype(program.interface.sample.dtype)
        mesh = mesh_of(settings.platform, devices, tensor, branches)
        self._units = units = Units(program)
        self.notes: tuple[str, ...] = ()
        """What was done or found on the way, for a reader."""
        if settings.check:
            self.notes += (f"{units.check()} ops of distinct sizes agree with {REFERENCES[program.storage]}",)
        if tensor > 1:
            self.notes += (division(units.weights, units.divided(tensor), tensor),)
        given, result = self.shardings(mesh)
        weights, _ = given
        with exact_types(settings.precision):
            self._weights = [weight_on(*pair) for pair in zip(units.weights, weights, strict=True)]
        loop = SamplingLoop(program, units.functions)
        divided = loop.divided(mesh) if branches > 1 else None
        super().__init__(loop, settings, divided, devices, in_shardings=given, out_shardings=result)

    def arguments(self) -> tuple[list[Any], dict[str, Any]]:
        """The weights, and the inputs by name: `noise`, `initial_scale`, the conditions, and where the program has them
        `negative_<condition>`, `guidance_scale` and `step_noise`."""
        with exact_types(self.settings.precision):
            weights = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self._weights]
            types = input_types(self.program, self._numbers)
            return weights, {name: jax.ShapeDtypeStruct(t.shape, jnp.dtype(t.dtype)) for name, t in types.items()}

    def weights(self) -> dict[str, Any]:
        return dict(zip(self._units.names, self._weights, strict=True))

    def shardings(self, mesh: Mesh) -> tuple[tuple[list[Any], dict[str, Any]], Any]:
        """How `function()` is divided over a mesh with the axes "samples" and "channels", of whatever devices: what
        `jax.jit` takes as in_shardings and as out_shardings."""
        whole, divided = everywhere(mesh), input_shardings(self.program, mesh)
        weights = weight_shardings(self._units.divided(mesh.shape[CHANNELS]), mesh)
        inputs = {name: divided.get(name, whole) for name in input_types(self.program, self._numbers)}
        return (weights, inputs), divided["noise"]

    def __call__(
        self,
        noise: Any,
        generator: Any = None,
        *,
        guidance_scale: Scale | None = None,
        callback: Any = None,
        **conditions: Any,
    ) -> Any:
        """Sample; see `Program.__call__`. The generator may also be a seed, as torch's CPU generator takes it.

        Raises:
            ModelError: a condition is missing, unknown or of another type.
            UnsupportedError: a callback is given: between rows nothing leaves the compiled loop. Or, when it is
                compiled, an op that XLA computes in other types than torch.
        """
        return self._sample(noise, None, generator, guidance_scale, callback, conditions)

    def run(
        self,
        sample: Any,
        generator: Any = None,
        *,
        guidance_scale: Scale | None = None,
        callback: Any = None,
        **conditions: Any,
    ) -> Any:
        """As calling it, from a `sample` that has the scale of the first row already (image to image)."""
        return self._sample(sample, 1.0, generator, guidance_scale, callback, conditions)

    def _sample(
        self,
        start: Any,
        initial_scale: float | None,
        generator: Any,
        guidance_scale: Scale | None,
        callback: Any,
        conditions: Mapping[str, Any],
    ) -> Any:
        if callback is not None:
            raise UnsupportedError(
                "backend 'xla': a callback is told of every row, and the compiled loop hands out none of them; call "
                "the program itself, or lower it to 'onnxruntime'"
            )
        inputs = read_call(
            self.program, start, initial_scale, generator, guidance_scale, conditions, self._numbers
        )
        with exact_types(self.settings.precision):
            return like(start, np.array(self._run(self._weights, inputs.by_name())))

    def save(self, path: str | Path, platforms: Sequence[str] = ("cpu", "tpu")) -> None:
        """Write the whole loop, weights included, as a file that JAX runs without torch and graphopt:
        `jax.export.deserialize(bytearray(path.read_bytes())).call(feeds)` gives the final sample for a dict of the
        inputs of `arguments` but `initial_scale`. For "tpu" it is lowered here and compiled there.

        Raises:
            ModelError: there is no such folder, or no file can take this place.
            OSError: the file cannot be written.
        """
        _, feeds = self.arguments()
        del feeds["initial_scale"]
        scale = np.asarray(self.program.schedule.init_noise_sigma).astype(self._numbers)

        def sample(given: Mapping[str, Any]) -> Any:
            return self._function(self._weights, {**given, "initial_scale": scale})

        write_portable(sample, [feeds], Path(path), platforms, self.settings.precision)
