"""What an ONNX model becomes on XLA: a callable for arrays, compiled once for each combination of input sizes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from graphopt.backends.inputs import InputError, InputType, check_input, name_inputs
from graphopt.backends.xla.arrays import device_of, exact_types
from graphopt.backends.xla.onnx_check import CannotCheck, check_calls
from graphopt.backends.xla.onnx_function import OnnxFunction
from graphopt.backends.xla.onnx_sizes import at_sizes, inlined
from graphopt.backends.xla.onnx_steps import require_vocabulary
from graphopt.backends.xla.portable import require_fixed, write_portable
from graphopt.backends.xla.settings import Settings
from graphopt.errors import UnsupportedError
from graphopt.ir.onnx.model import OnnxModel
from graphopt.ir.weights import Array
from graphopt.verify.whole import whole_feeds

Sizes = tuple[tuple[int, ...], ...]


@dataclass
class _AtSizes:
    """The model at one combination of input sizes."""

    function: OnnxFunction
    weights: list[Any]
    run: Any
    checked: int | None
    """How many calls agree with onnxruntime; None if they have not been compared."""


class CompiledOnnx:
    """An ONNX model on XLA.

    Called with one array per input by position, by input name, or with one dict; returns the list of outputs as
    arrays. It is compiled at the first call, and again for inputs of other sizes where the model allows them: each
    time everything that depends on sizes alone is computed beforehand. Inputs that have a default value in the model
    have that value.
    """

    def __init__(self, model: OnnxModel, settings: Settings) -> None:
        """
        Raises:
            UnsupportedError: no device of the platform that is asked for; an input that is no tensor; ops that are not
                in the vocabulary whatever the sizes; and, if all sizes are fixed, what `__call__` says.
        """
        self.settings = settings
        self._device = device_of(settings.platform)
        self._model = inlined(model)
        self._compiled: dict[Sizes, _AtSizes] = {}
        graph = self._model.main
        inputs = [v for v in graph.inputs() if not v.is_initializer()]
        self.input_types = tuple(_input_type(graph.name(v), graph.type(v)) for v in inputs)
        self.output_names = tuple(graph.name(v) for v in graph.outputs())
        shapes = tuple(t.shape for t in self.input_types)
        if all(s is not None and all(isinstance(d, int) for d in s) for s in shapes):
            self._prepare(shapes)
        else:
            require_vocabulary(self._model.main)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.input_types)

    @property
    def compilations(self) -> int:
        """For how many combinations of input sizes the model has been compiled."""
        return sum(int(at.run._cache_size()) for at in self._compiled.values())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done or found on the way, for a reader."""
        return tuple(f"{at.checked} ops of distinct sizes agree with onnxruntime" for at in self._compiled.values()
                     if at.checked is not None)  # fmt: skip

    def __call__(self, *args: Any, **kwargs: Any) -> list[Array]:
        """Run the model.

        Raises:
            InputError: wrong names, number, dtypes, ranks or sizes of inputs.
            UnsupportedError: at these sizes, ops outside of the vocabulary are left, all of which are named; or an op
                differs from onnxruntime, or cannot be compared with it.
        """
        given = name_inputs(self.input_types, (), args, kwargs)
        feeds = [_checked(t, given[t.name]) for t in self.input_types]
        at = self._at(feeds)
        with exact_types(self.settings.precision):
            results = at.run(at.weights, [jax.device_put(feed, self._device) for feed in feeds])
        return [np.asarray(r) for r in results]

    def save(self, path: str | Path, platforms: Sequence[str] = ("cpu", "tpu")) -> None:
        """Write the model, weights included, as a file that JAX runs without graphopt; see `CompiledXla.save`.

        Raises:
            UnsupportedError: the model takes inputs of several sizes.
            OSError: the file cannot be written.
        """
        require_fixed(self.input_types)
        (at,) = self._compiled.values()
        write_portable(at.run, at.weights, self.input_types, Path(path), platforms, self.settings.precision)

    def _prepare(self, shapes: Any) -> None:
        """Find out at once what is to be said of a model of fixed sizes. onnxruntime may reject drawn numbers (indices
        beyond an axis): then those of the first call are compared."""
        model, at = self._add(shapes)
        with suppress(CannotCheck):
            self._check(at, whole_feeds(model))

    def _at(self, feeds: list[Array]) -> _AtSizes:
        shapes = tuple(feed.shape for feed in feeds)
        at = self._compiled.get(shapes) or self._add(shapes)[1]
        try:
            self._check(at, feeds)
        except CannotCheck as error:
            raise UnsupportedError(
                f"backend 'xla' compares every op with onnxruntime, which cannot run the model: {error}; pass "
                "check=False to run it unchecked"
            ) from error
        return at

    def _add(self, shapes: Sizes) -> tuple[OnnxModel, _AtSizes]:
        model = at_sizes(self._model, dict(zip(self.input_names, shapes, strict=True)))
        function = OnnxFunction(model.main)
        with exact_types(self.settings.precision):
            weights = [jax.device_put(ref.numpy(), self._device) for ref in function.weights.values()]
        at = self._compiled[shapes] = _AtSizes(function, weights, jax.jit(function), None)
        return model, at

    def _check(self, at: _AtSizes, feeds: list[Array]) -> None:
        if self.settings.check and at.checked is None:
            at.checked = check_calls(at.function, feeds)


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
