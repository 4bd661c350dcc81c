"""Constants that an ONNX file holds as nodes become initialisers: the same data, one node less to load and
run.
"""

from __future__ import annotations

from collections.abc import Hashable

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.weights import TensorRef
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.journal import Journal

CONSTANT = "ai.onnx::Constant"


def store_constant_nodes(editor: Editor, settled: set[Hashable]) -> bool:
    """Turn every Constant node of the region into an initialiser, as one application; returns whether there
    were any.

    Left alone: the body of a function, which has no initialisers; an output of the graph, which needs a
    node; and a constant that is no dense tensor of numbers. `settled` holds nodes that were refused before;
    it is added to.
    """
    graph = editor.graph
    if getattr(graph, "function", None) is not None or editor.ledger.exhausted:
        return False
    found = [f for f in _constant_nodes(graph) if f[0] not in settled]
    if not found:
        return False

    nodes = [node for node, _, _ in found]

    def write(journal: Journal) -> None:
        for _, value, data in found:
            journal.replace(value, journal.add_constant(data, graph.name(value)))
        journal.doom(nodes)

    application, _ = editor.apply("store-constant-nodes", Exact(), nodes, write)
    if application.status != "kept":
        settled.update(nodes)
    return application.status == "kept"


def _constant_nodes(graph: Graph) -> list[tuple[Node, Value, TensorRef]]:
    found = []
    for node in graph.nodes():
        if graph.raw_name(node) != CONSTANT:
            continue
        value = graph.raw_call(node).outputs[0]
        data = None if value is None else graph.constant(value)
        if data is not None and not graph.is_output(value):
            found.append((node, value, data))
    return found
