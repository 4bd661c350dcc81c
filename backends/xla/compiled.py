"""What a torch model becomes on XLA: a callable that is called as the module was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.extend.core import ClosedJaxpr
from torch.export.exported_program import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree as pytree

from graphopt.backends.inputs import InputError, InputType
from graphopt.backends.signature import Signature, require_constant, result_of, tensor_of
from graphopt.backends.xla.arrays import device_of, exact_types, from_jax, to_jax
from graphopt.backends.xla.buckets import Buckets, Sizes
from graphopt.backends.xla.function import function_of, weight_names, weights_of
from graphopt.backends.xla.jitted import Jitted
from graphopt.backends.xla.portable import write_portable
from graphopt.backends.xla.settings import Settings
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.tensors import DTYPE_NAMES, to_numpy
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
        self.signature = Signature(program)
        self.notes = tuple(notes)
        """What was done or found on the way, for a reader."""
        self._device = device_of(settings.platform)
        self._types = _input_types(program)
        with exact_types(settings.precision):
            self._weights = [to_jax(tensor, self._device) for tensor in weights_of(program)]
        self._names = weight_names(program)
        super().__init__(function_of(program), settings)
        self._buckets = None if settings.buckets is None else Buckets(self._types, settings.buckets, self._traced)

    def arguments(self) -> tuple[list[Any], list[Any]]:
        """The weights, and the tensors of the inputs in order.

        Raises:
            UnsupportedError: the model takes inputs of several sizes.
        """
        for type_ in self._types:
            if type_.shape is None or not all(isinstance(d, int) for d in type_.shape):
                raise UnsupportedError(
                    f"backend 'xla': input {type_.name!r} is {type_}, and fixed sizes are needed; lower the model "
                    "without dynamic_shapes"
                )
        with exact_types(self.settings.precision):
            weights = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self._weights]
            return weights, [jax.ShapeDtypeStruct(t.shape, jnp.dtype(t.dtype)) for t in self._types]

    def weights(self) -> dict[str, Any]:
        return dict(zip(self._names, self._weights, strict=True))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: other arguments than the model was exported with, or wrong dtypes, ranks or sizes.
            UnsupportedError: an op that XLA computes in other types than torch, found when it is compiled.
        """
        tensors: list[torch.Tensor] = []
        sizes: dict[str, int] = {}
        types = iter(self._types)
        for argument, value in zip(self.signature.inputs, self.signature.leaves(args, kwargs), strict=True):
            if isinstance(argument, ConstantArgument):
                require_constant(argument, value)
            else:
                tensors.append(_checked(argument, value, next(types), sizes))
        with exact_types(self.settings.precision):
            arrays = [to_numpy(tensor) for tensor in tensors]
            run, check = self._on_device, self.settings.check
            results = run(arrays) if self._buckets is None else self._buckets.run(arrays, run, check)
        remaining = iter([from_jax(r) for r in results if r is not None])
        leaves = [result_of(argument, remaining) for argument in self.signature.outputs]
        return pytree.tree_unflatten(leaves, self.signature.result)

    def _on_device(self, arrays: Sequence[Array]) -> list[Any]:
        inputs = [jax.device_put(np.ascontiguousarray(a).reshape(a.shape), self._device) for a in arrays]
        return list(self._run(self._weights, inputs))

    def _traced(self, sizes: Sizes) -> ClosedJaxpr:
        weights = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self._weights]
        dtypes = [jnp.dtype(t.dtype) for t in self._types]
        return jax.make_jaxpr(self._function)(
            weights, [jax.ShapeDtypeStruct(s, d) for s, d in zip(sizes, dtypes, strict=True)]
        )

    def save(self, path: str | Path, platforms: Sequence[str] = ("cpu", "tpu")) -> None:
        """Write the model, weights included, as a file that JAX runs without torch and graphopt:
        `jax.export.deserialize(path.read_bytes()).call(*inputs)`, the tensors of the inputs in order, gives the list of
        the tensors of the outputs. For "tpu" it is lowered here and compiled there.

        Raises:
            UnsupportedError: the model takes inputs of several sizes.
            OSError: the file cannot be written.
        """

        def run(*inputs: Any) -> Any:
            return self._function(self._weights, inputs)

        write_portable(run, self.arguments()[1], Path(path), platforms, self.settings.precision)


def _input_types(program: ExportedProgram) -> list[InputType]:
    names = set(program.graph_signature.user_inputs)
    found = []
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name in names and isinstance(value, torch.Tensor):
            dtype = DTYPE_NAMES[value.dtype]
            shape = tuple(d if isinstance(d, int) else str(d) for d in value.shape)
            found.append(InputType(node.name, dtype, dtype, shape))
        elif node.name in names and isinstance(value, torch.SymInt):
            found.append(InputType(node.name, "int64", "int64", ()))
    return found


def _checked(argument: Any, value: Any, expected: InputType, sizes: dict[str, int]) -> torch.Tensor:
    """`value` as a tensor of the type that the program expects; `sizes` are those of the symbols seen so far."""
    tensor = tensor_of(argument, value, expected)
    for symbol, size in zip(expected.shape or (), tensor.shape, strict=True):
        if isinstance(symbol, str) and sizes.setdefault(symbol, size) != size:
            raise InputError(
                f"input {expected.name!r} is {expected}, and {symbol} is {sizes[symbol]} elsewhere, {size} here"
            )
    return tensor
