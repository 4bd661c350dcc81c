"""What the outputs of a whole model are made of, as hashes: models that are the same expressions need no arithmetic.

This is what large networks are compared by in which a tool only moved constants, dropped identities and merged what
occurs twice.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt.ir.graph import TensorType, Value
from graphopt.ir.weights import Array, TensorRef
from graphopt.verify.algebra import onnx_nodes
from graphopt.verify.algebra.body_text import bodies_said, captured_by

MOVING = frozenset({
    "ConstantOfShape", "Identity", "Reshape", "Flatten", "Unsqueeze", "Squeeze", "Transpose", "Concat", "Gather",
    "Slice", "Expand", "Shape",
})  # fmt: skip
"""Ops of constants whose results the runtime computes without rounding."""


class Terms:
    """Hashes of the values of one model, whose inputs have the given shapes.

    Args:
        sizes: shapes of the inputs by name.
        expired: whether the time is up.
    """

    def __init__(self, graph: Any, sizes: Mapping[str, tuple[int, ...]], expired: Callable[[], bool]) -> None:
        self._graph = graph
        self._expired = expired
        self._hashes: dict[Value, bytes] = {v: hashed("input", graph.name(v)) for v in graph.inputs()}
        self._shapes = {v: sizes[graph.name(v)] for v in graph.inputs()}
        self._numbers: dict[Value, Array] = {}
        self.computed: set[str] = set()
        """Ops of constants that were computed with rounding."""

    def outputs(self) -> dict[str, bytes] | None:
        """The hash of each output by name; None if the model draws random numbers, or time is up."""
        graph = self._graph
        for node in graph.nodes():
            if self._expired() or not graph.is_pure(node):
                return None
            if not any(v is not None and graph.constant(v) is None for v in graph.results(node)):
                continue
            if not graph.subgraphs(node):
                self._note(node)
            elif not self._note_bodies(node):
                return None
        return {graph.name(v): self._of(v) for v in graph.outputs()}

    def _note(self, node: Any) -> None:
        if (found := self._folded(node)) is not None:
            self._numbers.update(found)
            return
        if node.op_type == "Identity" and node.domain == "":
            self._hashes[node.outputs[0]] = self._of(node.inputs[0])
            return
        if (known := self._operation(node)) is not None:
            self._hashes[node.outputs[0]] = known
            return
        operands = [b"" if v is None else self._of(v) for v in node.inputs]
        whole = hashed(onnx_nodes.said(node, self._graph.opsets), *operands)
        for i, value in enumerate(node.outputs):
            self._hashes[value] = hashed(str(i), whole)

    def _note_bodies(self, node: Any) -> bool:
        """Whether a node of control flow can be told by its bodies and by what it and they read."""
        graph = self._graph
        bodies = bodies_said(graph, node, lambda _, inner: onnx_nodes.said(inner, graph.opsets), _numbers_of)
        if bodies is None:
            return False
        read = [*node.inputs, *captured_by(graph, node)]
        whole = hashed(onnx_nodes.said(node, graph.opsets), bodies, *(b"" if v is None else self._of(v) for v in read))
        for i, value in enumerate(node.outputs):
            self._hashes[value] = hashed(str(i), whole)
        return True

    def _operation(self, node: Any) -> bytes | None:
        """The hash of the one result of a node, where more is known of it than what it reads."""
        return None

    def _folded(self, node: Any) -> dict[Value, Array] | None:
        """The results of a node of constants alone, or of one that asks for the shape of an input."""
        if node.op_type == "Shape" and node.domain == "" and node.inputs[0] in self._shapes and not node.attributes:
            return {node.outputs[0]: np.asarray(self._shapes[node.inputs[0]], np.int64)}
        data = [None if v is None else self._number(v) for v in node.inputs]
        if not data or any(d is None and v is not None for d, v in zip(data, node.inputs, strict=True)):
            return None
        types = [None if d is None else TensorType(d.dtype.name, d.shape) for d in data]
        results = onnx_nodes.executed(node, self._graph.opsets, types, data)
        if results is None:
            return None
        if node.op_type not in MOVING and any(r.dtype.kind in "fV" for r in results):
            self.computed.add(self._graph.raw_name(node))
        return dict(zip([v for v in node.outputs if v.name], results, strict=True))

    def _number(self, value: Value) -> Array | None:
        if value not in self._numbers and (data := self._graph.constant(value)) is not None:
            self._numbers[value] = data.numpy()
        return self._numbers.get(value)

    def _of(self, value: Value) -> bytes:
        if value not in self._hashes:
            number = self._number(value)
            if number is None:
                return hashed("unlike anything", secrets.token_hex())
            self._hashes[value] = hashed(
                f"{number.dtype} {number.shape}", np.ascontiguousarray(number).reshape(-1).view(np.uint8)
            )
        return self._hashes[value]


def _numbers_of(data: TensorRef) -> str:
    array = data.numpy()
    if array.dtype.hasobject:  # texts: they are like nothing else
        return secrets.token_hex()
    return hashed(f"{array.dtype} {array.shape}", np.ascontiguousarray(array).reshape(-1).view(np.uint8)).hex()


def hashed(*parts: Any) -> bytes:
    """A hash of some texts, bytes and arrays of bytes in their order."""
    made = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "little"))
        made.update(data)
    return made.digest()


def same_expressions(
    before: Any, after: Any, sizes: Mapping[str, tuple[int, ...]], expired: Callable[[], bool]
) -> set[str] | None:
    """None unless two main graphs are the same expressions; else the ops of constants that were computed for it."""
    sides = [Terms(graph, sizes, expired) for graph in (before, after)]
    found = [side.outputs() for side in sides]
    if None in found or found[0] != found[1]:
        return None
    return sides[0].computed | sides[1].computed
