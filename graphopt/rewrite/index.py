"""The index of rules: which can match at a node, told by its op and the ops in front of it alone.

Nearly every node of a graph is turned away here, so nothing is read for it. What the index answers depends on keys
and on nothing else; an answer therefore stays right whatever happens to the graph, and is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.ir.graph import Graph, Node
from graphopt.ir.ops import OPS
from graphopt.rewrite.rule import Rule

Rules = tuple[Rule, ...]


class RuleIndex:
    """Rules by the op of their first root, then by the ops that compute its operands."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._raw_roots = any(r.key not in OPS for r in rules)
        self._roots: dict[str, Rules] = {}
        self._selective: dict[str, bool] = {}
        self._answers: dict[tuple[str, tuple[str, ...]], Rules] = {}

    def candidates(self, graph: Graph, node: Node) -> Rules:
        """The rules to be tried at `node`, in the order in which they were given."""
        key = graph.key(node)
        if self._raw_roots and (raw := graph.raw_name(node)) != key:
            rules = self._rooted_in(f"{key} {raw}", key, raw)
            key = f"{key} {raw}"
        else:
            rules = self._rooted_in(key, key)
        if not self._selective[key]:
            return rules
        question = key, graph.operand_keys(node)
        answer = self._answers.get(question)
        if answer is None:
            present = frozenset(question[1])
            answer = self._answers[question] = tuple(r for r in rules if r.matcher.may_match(present))
        return answer

    def _rooted_in(self, name: str, *roots: str) -> Rules:
        found = self._roots.get(name)
        if found is None:
            found = self._roots[name] = tuple(r for r in self._rules if r.key in roots)
            self._selective[name] = any(r.matcher.needs for r in found)
        return found
