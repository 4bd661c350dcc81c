"""An ONNX model of fixed sizes as a function of JAX arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.backends.xla.onnx_steps import Branch, Env, Region, read_region
from graphopt.ir.graph import Graph, Literal, Value
from graphopt.ir.weights import TensorRef

KNOWN = 4096
"""Bytes up to which constants of integers are told to XLA as they are: shapes, axes, indices. Larger ones, and real
numbers, are operands of the compiled program."""


class OnnxFunction:
    """f(weights, inputs): the tensors that a graph returns, of arrays in the order of its inputs."""

    def __init__(self, graph: Graph) -> None:
        """
        Raises:
            UnsupportedError: ops outside of the vocabulary, or nodes that it cannot say, naming all of them.
        """
        self.region = read_region(graph)
        self.known: Env = {}
        """The constants that XLA is told."""
        self.weights: dict[Value, TensorRef] = {}
        """The constants that are operands of the compiled program, in the order in which it takes them."""
        self._inputs = list(graph.inputs())
        self._collect(self.region)

    def _collect(self, region: Region) -> None:
        for value in region.reads:
            if value not in self.known and (data := region.graph.constant(value)) is not None:
                self._keep(value, data)
        for step in region.steps:
            for body in step.bodies if isinstance(step, Branch) else ():
                self._collect(body)

    def _keep(self, value: Value, data: TensorRef) -> None:
        is_integer = data.dtype.startswith(("int", "uint", "bool"))
        if isinstance(value, Literal) or data.size == 1 or (is_integer and data.nbytes <= KNOWN):
            self.known[value] = data.numpy()
        else:
            self.weights[value] = data

    def __call__(self, weights: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        constants = {**self.known, **dict(zip(self.weights, weights, strict=True))}
        return self.region.run({**constants, **dict(zip(self._inputs, inputs, strict=True))})
