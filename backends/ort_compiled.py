"""A session as a callable for arrays: what an ONNX model becomes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.backends.inputs import InputError, InputType, check_input, name_inputs
from graphopt.backends.ort_values import is_native, run_arrays
from graphopt.errors import GraphoptError
from graphopt.ir.onnx.dtypes import DATA_TYPES
from graphopt.ir.weights import numpy_dtype

_NAMES = {number.name.lower(): name for name, number in DATA_TYPES.items()}
"""Our dtype name by onnxruntime's, which is ONNX's in small letters."""
_TENSOR = re.compile(r"tensor\((?P<element>\w+)\)")


class RunError(GraphoptError, RuntimeError):
    """onnxruntime failed while it ran a model; the message is its own."""


def _input_type(argument: Any, is_scalar: bool) -> InputType:
    """The type of an onnxruntime NodeArg, which has the empty shape both for a scalar and for an open
    rank."""
    found = _TENSOR.fullmatch(argument.type)
    element = found["element"] if found else None
    dtype = None if element in (None, "string") else _NAMES.get(element or "", element)
    shape = tuple(argument.shape) if argument.shape or is_scalar else None
    return InputType(argument.name, argument.type, dtype, shape)


class Compiled:
    """An ONNX model on onnxruntime.

    Called with one array per input by position, by input name, or with one dict; returns the list of outputs
    as arrays. Inputs that have a default value in the model may be given by name.
    """

    def __init__(
        self, session: Any, *, bound: bool, scalars: Sequence[str] = (), notes: Sequence[str] = ()
    ) -> None:
        """
        Args:
            session: an `onnxruntime.InferenceSession`.
            bound: run through an IO binding.
            scalars: inputs that are declared to have rank 0, which the session itself cannot tell.
            notes: what was changed in the model for onnxruntime's sake, and what is not checked of a call.
        """
        self.session = session
        """The `onnxruntime.InferenceSession`."""
        self.notes = tuple(notes)
        """What was changed in the model for onnxruntime's sake, and what is not checked of a call."""
        self.input_types = tuple(_input_type(a, a.name in scalars) for a in session.get_inputs())
        self._optional = {a.name: _input_type(a, False) for a in session.get_overridable_initializers()}
        self._bound = bound
        results = [_input_type(a, False) for a in session.get_outputs()]
        self._output_names = tuple(t.name for t in results)
        # Strings, sequences and optionals cannot be bound.
        self._plain = any(t.dtype is None for t in (*self.input_types, *results))
        self._native = all(
            t.dtype is None or is_native(numpy_dtype(t.dtype)) for t in (*self.input_types, *results)
        )

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.input_types)

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._output_names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            InputError: wrong names, number, dtypes, ranks or sizes of inputs.
            RunError: onnxruntime failed.
        """
        given = name_inputs(self.input_types, self._optional, args, kwargs)
        types = {t.name: t for t in self.input_types} | self._optional
        return self.run({name: _checked(types[name], value) for name, value in given.items()})

    def run(self, feeds: dict[str, Any]) -> list[Any]:
        """The outputs for inputs that have been checked."""
        bound = self._bound and not self._plain
        try:
            return run_arrays(self.session, feeds, self._output_names, bound=bound, native=self._native)
        except Exception as error:  # onnxruntime raises a class of its own for each of its status codes
            raise RunError(f"onnxruntime failed while it ran the model: {error}") from error

    def end_profiling(self) -> str:
        """Stop the profile that the option `profile` started; returns the path of its file."""
        return str(self.session.end_profiling())


def _checked(expected: InputType, value: Any) -> Any:
    if expected.dtype is None:
        return value
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever an object's own conversion raises
        raise InputError(
            f"input {expected.name!r} is {expected}, got {type(value).__name__}: {error}"
        ) from error
    check_input(expected, array.dtype.name, array.shape)
    return array
