"""What a torch model becomes on XLA: a callable that is called as the module was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from torch.export.exported_program import ExportedProgram

from graphopt.backends.calling import Calling
from graphopt.backends.xla.arrays import device_of, exact_types, from_jax, to_jax
from graphopt.backends.xla.buckets import Buckets, Sizes
from graphopt.backends.xla.function import function_of
from graphopt.backends.xla.jitted import Jitted
from graphopt.backends.xla.portable import write_portable
from graphopt.backends.xla.settings import Settings
from graphopt.backends.xla.weights import weight_names, weights_of
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.tensors import to_numpy
from graphopt.ir.weights import Array


class CompiledXla(Jitted):
    """A torch model on XLA: called like the module, tensors on the CPU in and out, without gradients.

    It is compiled at the first call, and again for inputs of other sizes where the model allows them; with buckets, for
    each of these.
    """

    def __init__(self, program: ExportedProgram, settings: Settings, notes: Sequence[str] = ()) -> None:
        """`program`: one whose ops all have kernels (`function.decomposed`).

        Raises:
            UnsupportedError: no device of the platform that is asked for.
        """
        self._calling = Calling(program)
        self._notes = (*notes, *self._calling.notes)
        self._device = device_of(settings.platform)
        with exact_types(settings.precision):
            self._weights = [to_jax(tensor, self._device) for tensor in weights_of(program)]
        self._names = weight_names(program)
        super().__init__(function_of(program), settings)
        sizes = settings.buckets
        if sizes is not None:
            self._buckets = Buckets(self._calling.types, sizes, self._traced, self._device)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done or found on the way, for a reader."""
        return self._notes if self._buckets is None else (*self._notes, *self._buckets.notes.values())

    def arguments(self) -> tuple[list[Any], list[Any]]:
        """The weights, and the tensors of the inputs in order.

        Raises:
            UnsupportedError: the model takes inputs of several sizes.
        """
        for type_ in self._calling.types:
            if type_.shape is None or not all(isinstance(d, int) for d in type_.shape):
                raise UnsupportedError(
                    f"backend 'xla': input {type_.name!r} is {type_}, and fixed sizes are needed; lower the model "
                    "without dynamic_shapes"
                )
        with exact_types(self.settings.precision):
            weights = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self._weights]
            return weights, [jax.ShapeDtypeStruct(t.shape, jnp.dtype(t.dtype)) for t in self._calling.types]

    def weights(self) -> dict[str, Any]:
        return dict(zip(self._names, self._weights, strict=True))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: other arguments than the model was exported with, or wrong dtypes, ranks or sizes.
            UnsupportedError: an op that XLA computes in other types than torch, found when it is compiled.
        """
        tensors = self._calling.tensors(args, kwargs)
        with exact_types(self.settings.precision):
            arrays = [to_numpy(tensor) for tensor in tensors]
            run, check = self._on_device, self.settings.check
            results = run(arrays) if self._buckets is None else self._buckets.run(arrays, run, lambda _: None, check)
        return self._calling.result(from_jax(r) for r in results if r is not None)

    def _on_device(self, arrays: Sequence[Array]) -> list[Any]:
        inputs = [jax.device_put(np.ascontiguousarray(a).reshape(a.shape), self._device) for a in arrays]
        return list(self._run(self._weights, inputs))

    def _traced(self, sizes: Sizes) -> ClosedJaxpr:
        dtypes = [jnp.dtype(t.dtype) for t in self._calling.types]
        inputs = [jax.ShapeDtypeStruct(s, d) for s, d in zip(sizes, dtypes, strict=True)]
        return jax.make_jaxpr(lambda given: self._function(self._weights, given))(inputs)

    def save(self, path: str | Path, platforms: Sequence[str] = ("cpu", "tpu")) -> None:
        """Write the model, weights included, as a file that JAX runs without torch and graphopt:
        `jax.export.deserialize(path.read_bytes()).call(*inputs)`, the tensors of the inputs in order, gives the list of
        the tensors of the outputs. For "tpu" it is lowered here and compiled there.

        Raises:
            UnsupportedError: the model takes inputs of several sizes.
            ModelError: there is no such folder, or no file can take this place.
            OSError: the file cannot be written.
        """

        def run(*inputs: Any) -> Any:
            return self._function(self._weights, inputs)

        write_portable(run, self.arguments()[1], Path(path), platforms, self.settings.precision)
