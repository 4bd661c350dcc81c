"""A model in memory: scratch graphs under the Model protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from graphopt.ir.graph import Graph, Node, TensorType, Value
from graphopt.ir.model import Model
from graphopt.ir.scratch import ScratchGraph


class SketchModel(Model):
    """One scratch graph, and nothing to save."""

    storage = "scratch"

    def __init__(self, graph: ScratchGraph) -> None:
        self._graph = graph

    @property
    def main(self) -> Graph:
        return self._graph

    def regions(self) -> Sequence[Graph]:
        return [self._graph]

    def refresh(self) -> None: ...

    def export(self) -> Any:
        return self._graph

    def save(self, path: Path) -> None: ...

    def weights(self) -> Sequence[tuple[str, int, int]]:
        return []

    def clone(self) -> SketchModel:
        return SketchModel(self._graph.cut(self._graph.nodes(), self._graph.inputs(), self._graph.outputs()))

    def extract(self, nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value]) -> SketchModel:
        return SketchModel(self._graph.cut(nodes, inputs, outputs))


@pytest.fixture
def model() -> SketchModel:
    """relu(neg(x)) for x of shape [2, 3]."""
    graph = ScratchGraph()
    type_ = TensorType("float32", (2, 3))
    x = graph.add_input(type_, "x")
    graph.add_output(graph.append("relu", graph.append("neg", x, types=[type_]), types=[type_]))
    return SketchModel(graph)
