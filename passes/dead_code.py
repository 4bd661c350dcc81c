"""Nodes that nobody reads."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from graphopt.ir.graph import Graph, Node
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact


def find_dead(graph: Graph, needed: Collection[Hashable] = ()) -> list[Node]:
    """The nodes of this region that no output and nothing in `needed` depends on and that have no effects, in
    topological order.

    One sweep against the order: time grows with the number of nodes and uses. Readers inside control-flow
    bodies count as readers.
    """
    dead: dict[Node, None] = {}
    for node in reversed(list(graph.nodes())):
        outputs = [o for o in graph.raw_call(node).outputs if o is not None]
        read = any(graph.is_output(o) or any(u not in dead for u in graph.users(o)) for o in outputs)
        if not read and node not in needed and graph.is_pure(node):
            dead[node] = None
    return list(reversed(dead))


def remove_dead_code(editor: Editor, settled: set[Hashable]) -> bool:
    """Remove the dead nodes of the editor's region, as one application; returns whether there were any.

    `settled` holds nodes whose removal was refused before; it is added to.
    """
    dead = find_dead(editor.graph, settled)
    if not dead or editor.ledger.exhausted:
        return False
    application, _ = editor.apply("dead-code", Exact(), dead, lambda journal: journal.doom(dead))
    if application.status != "kept":
        settled.update(dead)
    return application.status == "kept"
