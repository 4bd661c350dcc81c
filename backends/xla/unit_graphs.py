"""One graph of a sampling program for XLA, in either storage: its weights, its function, what it is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch

from graphopt.backends.xla.arrays import to_jax
from graphopt.backends.xla.conformance import Conformance
from graphopt.backends.xla.function import decomposed, function_of
from graphopt.backends.xla.onnx_check import CannotCheck, check_calls
from graphopt.backends.xla.onnx_function import OnnxFunction
from graphopt.backends.xla.onnx_sizes import at_sizes, inlined
from graphopt.backends.xla.tensor_parallel import divided_dims
from graphopt.backends.xla.weights import weight_names, weights_of
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.tensors import tensor_identity, to_numpy, to_torch
from graphopt.ir.graph import TensorType
from graphopt.ir.weights import Array, TensorRef
from graphopt.verify.execute import native_runner

Weight: TypeAlias = torch.Tensor | TensorRef


class Checked:
    """The ops of several graphs that were compared with those of the runtime of their storage."""

    def __init__(self) -> None:
        self.torch = Conformance()
        self.onnx: set[Any] = set()

    def __len__(self) -> int:
        """How many were, of distinct sizes."""
        return len(self.torch.seen) + len(self.onnx)


class UnitGraph(Protocol):
    """What a storage says of a graph."""

    weights: Sequence[Weight]
    """What the function takes first, in order."""
    names: Sequence[str]
    """Theirs."""
    function: Callable[[Sequence[Any], Sequence[Any]], list[Any]]
    """Of the weights and the inputs, JAX arrays."""

    def result_types(self) -> list[TensorType | None]:
        """The types of the results."""

    def divided(self, parts: int) -> list[int | None]:
        """The dimension along which each of `weights` may be divided into `parts`."""

    def check(self, checked: Checked, feeds: Sequence[Array]) -> list[Array]:
        """The results for `feeds` on the runtime of the storage; each op of new sizes is noted in `checked`.

        Raises:
            UnsupportedError: an op differs, or cannot be compared.
        """


class TorchGraph:
    """A graph of torch, whose sizes are those that it was exported with."""

    def __init__(self, model: Any) -> None:
        """
        Raises:
            UnsupportedError: ops without a kernel, or a buffer that the graph writes.
        """
        self._model = model
        self._program = decomposed(model.program())
        self.weights: Sequence[Weight] = weights_of(self._program)
        self.names: Sequence[str] = weight_names(self._program)
        self.function = function_of(self._program)

    def result_types(self) -> list[TensorType | None]:
        main = self._model.main
        return [main.type(value) for value in main.outputs()]

    def divided(self, parts: int) -> list[int | None]:
        dims = divided_dims(self._model.main, parts)
        return [dims.get(name) for name in self.names]

    def check(self, checked: Checked, feeds: Sequence[Array]) -> list[Array]:
        return [to_numpy(x) for x in checked.torch.run(self._program, [to_torch(feed) for feed in feeds])]


class OnnxGraph:
    """An ONNX graph at the sizes of its inputs, what depends on them alone computed."""

    def __init__(self, model: Any, feeds: Sequence[Array]) -> None:
        """
        Raises:
            UnsupportedError: ops outside of the vocabulary, or nodes that it cannot say, naming all of them.
        """
        names = [model.main.name(value) for value in model.main.inputs()]
        shapes = dict(zip(names, (feed.shape for feed in feeds), strict=True))
        self._graph = at_sizes(inlined(model), shapes).main
        self._onnx = OnnxFunction(self._graph)
        self.function: Callable[[Sequence[Any], Sequence[Any]], list[Any]] = self._onnx
        self.weights: Sequence[Weight] = list(self._onnx.weights.values())
        self.names: Sequence[str] = [self._graph.name(value) for value in self._onnx.weights]

    def result_types(self) -> list[TensorType | None]:
        return [self._graph.type(value) for value in self._graph.outputs()]

    def divided(self, parts: int) -> list[int | None]:
        dims = divided_dims(self._graph, parts)
        return [dims.get(name) for name in self.names]

    def check(self, checked: Checked, feeds: Sequence[Array]) -> list[Array]:
        graph = self._graph
        try:
            check_calls(self._onnx, feeds, checked.onnx)
            run = native_runner(graph, list(graph.nodes()), list(graph.inputs()), list(graph.outputs()))
            return list(run(feeds))
        except CannotCheck as error:
            raise UnsupportedError(
                f"backend 'xla' compares every op with onnxruntime, which cannot run a graph of the program: {error}; "
                "pass check=False to run it unchecked"
            ) from error


def unit_graph(model: Any, feeds: Sequence[Array]) -> UnitGraph:
    """`model`, of inputs like `feeds`.

    Raises:
        UnsupportedError: it cannot be said on XLA, or its storage is not known.
    """
    if model.storage == "fx":
        return TorchGraph(model)
    if model.storage == "onnx":
        return OnnxGraph(model, feeds)
    raise UnsupportedError(f"backend 'xla' takes programs of torch and ONNX models, not of {model.storage!r}")


def weight_identity(weight: Weight) -> object:
    """Equal for two weights that are the same stored tensor."""
    return tensor_identity(weight) if isinstance(weight, torch.Tensor) else weight.identity


def weight_on(weight: Weight, device: Any) -> Any:
    """A copy of it as a JAX array."""
    if isinstance(weight, torch.Tensor):
        return to_jax(weight, device)
    return to_jax(to_torch(np.array(weight.numpy())), device)
