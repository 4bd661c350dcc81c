"""The backend `numpy`: runs an ONNX model by the meanings that the vocabulary gives its ops.

It is slow and precise: floating point is computed in float64 throughout and rounded where the model casts and
at the outputs. That makes it a second opinion on a runtime, which shares no kernel with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from graphopt import Backend, Graph, Model, PipelineError, UnsupportedError
from graphopt.ir.graph import CannotEmit
from graphopt.ir.ops.domain import Float64
from graphopt.ir.scratch import ScratchGraph, float64_leaf
from graphopt.ir.transcribe import transcribe
from graphopt.ir.weights import FLOATS, numpy_dtype


class NumpyBackend(Backend):
    """Takes no options."""

    name: ClassVar[str] = "numpy"

    def lower(self, model: Model, **options: Any) -> Callable[..., list[Any]]:
        """`model` as a callable that takes arrays by position or by input name and returns the outputs."""
        if options:
            raise PipelineError(
                f"backend 'numpy': unknown option {sorted(options)[0]!r}; it takes no options"
            )
        if model.storage == "fx":
            raise UnsupportedError("backend 'numpy' runs ONNX models; export the torch model to ONNX first")
        graph = model.main
        try:
            program, _ = transcribe(graph, list(graph.nodes()), graph.inputs(), graph.outputs())
        except CannotEmit as error:
            raise UnsupportedError(f"backend 'numpy' cannot run the model: {error}") from error
        return _Program(program, graph)


class _Program:
    """A program of vocabulary calls with the names and dtypes of the model's inputs and outputs."""

    def __init__(self, program: ScratchGraph, graph: Graph) -> None:
        self._program = program
        self._inputs = [graph.name(value) for value in graph.inputs()]
        self._dtypes = [_dtype(graph, value) for value in graph.outputs()]

    def __call__(self, *arrays: Any, **named: Any) -> list[Any]:
        feeds = [_widen(array) for array in self._in_order(arrays, named)]
        with np.errstate(all="ignore"):  # IEEE 754 says what infinities and NaN do
            results = self._program.evaluate(feeds, Float64(round_casts=True), float64_leaf)
            return [np.asarray(r).astype(d) for r, d in zip(results, self._dtypes, strict=True)]

    def _in_order(self, arrays: Sequence[Any], named: dict[str, Any]) -> list[Any]:
        given = dict(zip(self._inputs, arrays, strict=False)) | named
        if len(arrays) + len(named) != len(self._inputs) or set(given) != set(self._inputs):
            names = ", ".join(self._inputs)
            raise TypeError(
                f"expected the inputs {names}; got {len(arrays)} by position and {list(named)} by name"
            )
        return [given[name] for name in self._inputs]


def _widen(array: Any) -> Any:
    array = np.asarray(array)
    return array.astype(np.float64) if array.dtype.name in FLOATS else array


def _dtype(graph: Graph, value: Any) -> Any:
    type_ = graph.type(value)
    if type_ is None:
        raise UnsupportedError(f"backend 'numpy' must know the type of the output {graph.name(value)!r}")
    return numpy_dtype(type_.dtype)
