"""Writing ONNX graphs by hand: ops and constants with names of their own, and whole models inlined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import TensorType
from graphopt.ir.onnx.dtypes import set_type
from graphopt.ir.onnx.shared import QUANTIZATION, nested_graphs
from graphopt.ir.weights import Array, numpy_dtype

OLDEST = 13
"""The oldest operator set whose ops are written here."""
_IR_VERSION = 8


class Imports:
    """Operator sets, functions and the IR version that the parts of a model need together."""

    def __init__(self) -> None:
        self.opsets: dict[str, int] = {}
        self.functions: dict[tuple[str, str, str], ir.Function] = {}
        self.version = _IR_VERSION

    def add(self, part: str, model: ir.Model) -> None:
        """Take in what `model` imports.

        Raises:
            UnsupportedError: it contradicts another part, or its operator set is too old.
        """
        self.version = max(self.version, model.ir_version or 0)
        for domain, version in model.opset_imports.items():
            domain = "" if domain == "ai.onnx" else domain
            known = self.opsets.setdefault(domain, version)
            if known != version:
                raise UnsupportedError(
                    f"{part} imports opset {version} of {domain or 'ai.onnx'} and another part of the program opset "
                    f"{known}; convert them to one opset with onnx.version_converter"
                )
        if self.opsets.setdefault("", OLDEST) < OLDEST:
            raise UnsupportedError(
                f"{part} imports opset {self.opsets['']}; a program needs opset {OLDEST} or later: convert it with "
                "onnx.version_converter"
            )
        for key, function in model.functions.items():
            other = self.functions.setdefault(key, function)
            if other is not function and _content(other) != _content(function):
                raise UnsupportedError(f"{part} and another part of the program hold different functions {key}")

    def model(self, graph: ir.Graph) -> ir.Model:
        """`graph` with what its parts need."""
        graph.opset_imports.update(self.opsets)
        functions = [f.clone() for f in self.functions.values()]
        return ir.Model(graph, ir_version=self.version, functions=functions, producer_name="graphopt")


def _content(function: ir.Function) -> bytes:
    content: bytes = ir.to_proto(function).SerializeToString(deterministic=True)
    return content


class Builder:
    """Writes into one graph. All names begin with `scope`, which must be the graph's own within its model."""

    def __init__(self, graph: ir.Graph, scope: str) -> None:
        self.graph = graph
        self._scope = scope
        self._count = 0
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def op(self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        """Append a node; returns its first output."""
        return self.node(op_type, inputs, outputs, attributes).outputs[0]

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int, attributes: Mapping[str, Any]
    ) -> ir.Node:
        name = self._fresh(op_type.lower())
        made = ir.node(op_type, inputs=inputs, attributes=dict(attributes), num_outputs=outputs, name=name)
        for number, value in enumerate(made.outputs):
            value.name = name if number == 0 else f"{name}.{number}"
        self.graph.append(made)
        return made

    def constant(self, array: Array, hint: str = "constant") -> ir.Value:
        """An initialiser of the graph; equal ones are one."""
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = initializer(self.graph, self._fresh(hint), array)
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """A constant int64 vector."""
        return self.constant(np.asarray(values, dtype=np.int64))

    def number(self, value: float, dtype: str) -> ir.Value:
        """A constant scalar."""
        return self.constant(np.asarray(value).astype(numpy_dtype(dtype)))

    def count(self, value: int) -> ir.Value:
        """A constant int64 scalar."""
        return self.constant(np.asarray(value, dtype=np.int64))

    def zeros(self, type_: TensorType) -> ir.Value:
        """A tensor of zeros of a static type."""
        sizes = [d for d in type_.shape or () if isinstance(d, int)]
        return self.op("Expand", self.number(0.0, type_.dtype), self.ints(*sizes))

    def result(self, value: ir.Value, name: str, type_: TensorType | None) -> None:
        """Make `value` the next output of the graph, under a name and with a type."""
        output = self.op("Identity", value)
        output.name = name
        if type_ is not None:
            set_type(output, type_)
        self.graph.outputs.append(output)

    def _fresh(self, hint: str) -> str:
        self._count += 1
        return f"{self._scope}/{hint}_{self._count}"


def empty_graph(name: str) -> ir.Graph:
    return ir.Graph([], [], nodes=[], name=name)


def new_input(graph: ir.Graph, name: str, type_: TensorType) -> ir.Value:
    value = ir.Value(name=name)
    set_type(value, type_)
    graph.inputs.append(value)
    return value


def initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    value = ir.Value(name=name)
    set_type(value, TensorType(array.dtype.name, array.shape))
    value.const_value = ir.tensor(array, name=name)
    graph.register_initializer(value)
    return value


def input_with_default(graph: ir.Graph, name: str, default: Array) -> ir.Value:
    """An input that a caller may leave out."""
    value = initializer(graph, name, default)
    graph.inputs.append(value)
    return value


def inline(
    model: ir.Model, feeds: Mapping[int, ir.Value], into: ir.Graph, scope: str, weights: dict[str, ir.Value]
) -> list[ir.Value]:
    """Append a copy of the nodes of `model` to `into`; returns what its outputs have become.

    Args:
        feeds: what the inputs become, by position among the inputs of `model.graph`.
        scope: prefix of all names of the copy.
        weights: initialisers of `into` by their names in `model`; those found there are shared, others are added.
    """
    copy = model.graph.clone()
    results: list[ir.Value] = list(copy.outputs)
    copy.outputs.clear()
    changed: dict[ir.Value, ir.Value] = {copy.inputs[position]: feed for position, feed in feeds.items()}
    initializers = {name: v for name, v in copy.initializers.items() if v not in changed}
    copy.inputs.clear()
    copy.initializers.clear()
    for name, value in initializers.items():
        if name in weights:
            changed[value] = weights[name]
        else:
            weights[name] = value
            value.name = f"{scope}/{name}"
            into.register_initializer(value)
    _rename(copy, scope)
    nodes = list(copy)
    copy.remove(nodes)
    into.extend(nodes)
    for old, new in changed.items():
        ir.convenience.replace_all_uses_with(old, new)
    return [changed.get(value, value) for value in results]


def _rename(graph: ir.Graph, scope: str) -> None:
    """Give every value of `graph` and its bodies a name that no other part has, and drop what refers to old ones."""
    for nested in nested_graphs(graph):
        for value in set(_own_values(nested)):
            if value.name:
                value.name = f"{scope}/{value.name}"
            value.meta.pop(QUANTIZATION, None)
        for node in nested:
            node.name = f"{scope}/{node.name}" if node.name else None
            node.metadata_props.clear()


def _own_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that `graph` itself defines; an input with a default value comes twice."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs
