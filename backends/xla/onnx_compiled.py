"""What an ONNX model becomes on XLA: a callable for arrays, compiled once for each combination of input sizes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from graphopt.backends.inputs import InputError, InputType, check_input, name_inputs
from graphopt.backends.xla.arrays import device_of, exact_types
from graphopt.backends.xla.buckets import Buckets, Sizes
from graphopt.backends.xla.jitted import Jitted
from graphopt.backends.xla.onnx_check import CannotCheck, check_calls
from graphopt.backends.xla.onnx_function import OnnxFunction
from graphopt.backends.xla.onnx_sizes import at_sizes, inlined
from graphopt.backends.xla.onnx_steps import require_vocabulary
from graphopt.backends.xla.portable import write_portable
from graphopt.backends.xla.settings import Settings
from graphopt.errors import UnsupportedError
from graphopt.ir.onnx.model import OnnxModel
from graphopt.ir.weights import Array
from graphopt.verify.whole import whole_feeds


@dataclass
class _AtSizes:
    """The model at one combination of input sizes."""

    model: OnnxModel
    function: OnnxFunction
    weights: list[Any] | None = None
    """On the device; None as long as nobody has asked for them."""
    checked: int | None = None
    """How many calls agree with onnxruntime; None if they have not been compared."""


class CompiledOnnx(Jitted):
    """An ONNX model on XLA.

    Called with one array per input by position, by input name, or with one dict; returns the list of outputs as
    arrays. It is compiled at the first call, and again for inputs of other sizes where the model allows them (with
    buckets, for each of these): each time everything that depends on sizes alone is computed beforehand. Inputs that
    have a default value in the model have that value.
    """

    def __init__(self, model: OnnxModel, settings: Settings) -> None:
        """
        Raises:
            UnsupportedError: no device of the platform that is asked for; an input that is no tensor; ops that are not
                in the vocabulary whatever the sizes; and, if all sizes are fixed, what `__call__` says.
        """
        super().__init__(self._traced, settings)
        self._device = device_of(settings.platform)
        self._model = inlined(model)
        self._prepared: dict[Sizes, _AtSizes] = {}
        graph = self._model.main
        inputs = [v for v in graph.inputs() if not v.is_initializer()]
        self.input_types = tuple(_input_type(graph.name(v), graph.type(v)) for v in inputs)
        if settings.buckets is not None:
            self._buckets = Buckets(self.input_types, settings.buckets, self._program, self._device)
        self.output_names = tuple(graph.name(v) for v in graph.outputs())
        if (sizes := self._fixed_sizes()) is None:
            require_vocabulary(graph)
        else:
            self._check_drawn(self._at(sizes))

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.input_types)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done or found on the way, for a reader."""
        counts = [at.checked for at in self._prepared.values() if at.checked is not None]
        checked = tuple(f"{count} ops of distinct sizes agree with onnxruntime" for count in counts)
        return checked if self._buckets is None else (*checked, *self._buckets.notes.values())

    def __call__(self, *args: Any, **kwargs: Any) -> list[Array]:
        """Run the model.

        Raises:
            InputError: wrong names, number, dtypes, ranks or sizes of inputs.
            UnsupportedError: at these sizes, ops outside of the vocabulary are left, all of which are named; or an op
                differs from onnxruntime, or cannot be compared with it.
        """
        given = name_inputs(self.input_types, (), args, kwargs)
        feeds = [_checked(t, given[t.name]) for t in self.input_types]
        with exact_types(self.settings.precision):
            if self._buckets is not None:
                return self._buckets.run(feeds, self._at_given_sizes, self._check, self.settings.check)
            self._check(feeds)
            return self._at_given_sizes(feeds)

    def _at_given_sizes(self, feeds: Sequence[Array]) -> list[Array]:
        at = self._at(tuple(feed.shape for feed in feeds))
        results = self._run(self._weights(at), [jax.device_put(feed, self._device) for feed in feeds])
        return [np.asarray(r) for r in results]

    def _program(self, sizes: Sizes) -> ClosedJaxpr:
        """With the weights as constants: which there are may depend on the sizes."""
        at = self._at(sizes)
        weights, dtypes = self._weights(at), [jnp.dtype(t.dtype) for t in self.input_types]
        inputs = [jax.ShapeDtypeStruct(s, d) for s, d in zip(sizes, dtypes, strict=True)]
        return jax.make_jaxpr(lambda given: at.function(weights, given))(inputs)

    def arguments(self) -> tuple[list[Any], list[Any]]:
        """The weights, and the inputs in order.

        Raises:
            UnsupportedError: the model takes inputs of several sizes.
        """
        sizes = self._fixed_sizes()
        if sizes is None:
            types = ", ".join(f"{t.name!r} {t}" for t in self.input_types)
            raise UnsupportedError(f"backend 'xla': the inputs are {types}, and fixed sizes are needed; fix them first")
        with exact_types(self.settings.precision):
            weights = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in self._weights(self._at(sizes))]
            dtypes = [jnp.dtype(t.dtype) for t in self.input_types]
            return weights, [jax.ShapeDtypeStruct(s, d) for s, d in zip(sizes, dtypes, strict=True)]

    def weights(self) -> dict[str, Any]:
        at = self._at(tuple(x.shape for x in self.arguments()[1]))
        names = [at.model.main.name(value) for value in at.function.weights]
        return dict(zip(names, self._weights(at), strict=True))

    def save(self, path: str | Path, platforms: Sequence[str] = ("cpu", "tpu")) -> None:
        """Write the model, weights included, as a file that JAX runs without graphopt; see `CompiledXla.save`.

        Raises:
            UnsupportedError: the model takes inputs of several sizes.
            ModelError: there is no such folder, or no file can take this place.
            OSError: the file cannot be written.
        """
        inputs = self.arguments()[1]
        weights = self._weights(self._at(tuple(x.shape for x in inputs)))
        write_portable(
            lambda *inputs: self._function(weights, inputs), inputs, Path(path), platforms, self.settings.precision
        )

    def _traced(self, weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        """What is compiled: which function it is, the sizes of the inputs say."""
        return self._at(tuple(x.shape for x in inputs)).function(weights, inputs)

    def _fixed_sizes(self) -> Sizes | None:
        """Those of the inputs, if none is open."""
        shapes: list[tuple[int, ...]] = []
        for type_ in self.input_types:
            sizes = tuple(d for d in type_.shape or () if isinstance(d, int))
            if type_.shape is None or len(sizes) < len(type_.shape):
                return None
            shapes.append(sizes)
        return tuple(shapes)

    def _at(self, sizes: Sizes) -> _AtSizes:
        if sizes not in self._prepared:
            model = at_sizes(self._model, dict(zip(self.input_names, sizes, strict=True)))
            self._prepared[sizes] = _AtSizes(model, OnnxFunction(model.main))
        return self._prepared[sizes]

    def _weights(self, at: _AtSizes) -> list[Any]:
        if at.weights is None:
            with exact_types(self.settings.precision):
                at.weights = [jax.device_put(ref.numpy(), self._device) for ref in at.function.weights.values()]
        return at.weights

    def _check_drawn(self, at: _AtSizes) -> None:
        """Compare on drawn numbers. onnxruntime may reject them (indices beyond an axis): then those of the first call
        are compared."""
        if self.settings.check:
            with suppress(CannotCheck):
                at.checked = check_calls(at.function, whole_feeds(at.model))

    def _check(self, feeds: Sequence[Array]) -> None:
        at = self._at(tuple(feed.shape for feed in feeds))
        if not self.settings.check or at.checked is not None:
            return
        try:
            at.checked = check_calls(at.function, feeds)
        except CannotCheck as error:
            raise UnsupportedError(
                f"backend 'xla' compares every op with onnxruntime, which cannot run the model: {error}; pass "
                "check=False to run it unchecked"
            ) from error


def _input_type(name: str, type_: Any) -> InputType:
    if type_ is None:
        raise UnsupportedError(f"backend 'xla' takes tensors, and input {name!r} is none or of unknown type")
    return InputType(name, type_.dtype, type_.dtype, type_.shape)


def _checked(expected: InputType, value: Any) -> Array:
    """`value` as an array of the type that the model expects."""
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever an object's own conversion raises
        raise InputError(f"input {expected.name!r} is {expected}, got {type(value).__name__}: {error}") from error
    check_input(expected, array.dtype.name, array.shape)
    return array
