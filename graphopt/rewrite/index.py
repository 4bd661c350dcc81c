"""The index of rules: which can match at a node, told by its op and the ops in front of it alone.

Nearly every node of a graph is turned away here, so nothing is read for it. What the index answers depends on keys
and on nothing else; an answer therefore stays right whatever happens to the graph, and is computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from graphopt.ir.graph import Graph, Node
from graphopt.ir.ops import OPS
from graphopt.rewrite.pattern import OpPattern, walk
from graphopt.rewrite.rule import Rule

Rules: TypeAlias = tuple[Rule, ...]
Key: TypeAlias = str | tuple[str, str]
"""The key of a node; with its raw name if a rule looks for one."""


class RuleIndex:
    """Rules by the op of their first root, then by the ops that compute its operands."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._raw_roots = any(r.key not in OPS for r in rules)
        self._rooted: dict[Key, Rooted | None] = {}
        roots = [root for r in rules for root in r.roots]
        inner = (p for root in roots for p in walk(root) if p is not root)
        self._inner = frozenset(p.op for p in inner if isinstance(p, OpPattern))
        """The ops below the roots."""
        self._raw_inner = not self._inner.issubset(OPS)

    def rooted(self, graph: Graph, node: Node) -> Rooted | None:
        """The rules that have the op of `node` at their first root; None if there is none."""
        key = graph.key(node)
        root: Key = (key, graph.raw_name(node)) if self._raw_roots else key
        try:
            return self._rooted[root]
        except KeyError:
            found = [r for r in self._rules if r.key in ((root,) if isinstance(root, str) else root)]
            return self._rooted.setdefault(root, Rooted(found) if found else None)

    def leads_on(self, graph: Graph, node: Node) -> bool:
        """Whether a pattern may match `node` below its root, so that what is in front of it matters behind it."""
        return graph.key(node) in self._inner or (self._raw_inner and graph.raw_name(node) in self._inner)


class Rooted:
    """The rules for one root, and the answers given so far by the keys of its operands."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._all = tuple(rules)
        self._selective = any(r.matcher.needs for r in rules)
        self._answers: dict[tuple[str, ...], Rules] = {}

    def candidates(self, graph: Graph, node: Node) -> Rules:
        """The rules to be tried at `node`, in the order in which they were given."""
        if not self._selective:
            return self._all
        operands = graph.operand_keys(node)
        answer = self._answers.get(operands)
        if answer is None:
            found = frozenset(operands)
            answer = self._answers[operands] = tuple(r for r in self._all if r.matcher.may_match(found))
        return answer
