"""The graph of a match as a rule sees it: it can be asked anything and changed by nothing."""

from __future__ import annotations

from typing import Any

from graphopt.errors import RuleError
from graphopt.ir.graph import Graph

EDITS = frozenset({
    "insert", "insert_copy", "add_constant", "replace", "redirect", "store", "retype", "remove", "remove_unread",
})  # fmt: skip
"""The methods of `Graph` that change it."""


class Reading:
    """Answers for `graph`. An edit that no journal knows of would be neither verified nor taken back."""

    __slots__ = ("_graph",)

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def __getattr__(self, name: str) -> Any:
        if name in EDITS:
            raise RuleError(f"m.graph.{name} would change the graph unverified; a rewrite only edits through `build`")
        return getattr(self._graph, name)
