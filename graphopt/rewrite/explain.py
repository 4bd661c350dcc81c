"""Why a rule did not match: the same matcher and the same guards, asked about one node or about the nearest misses."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from graphopt.errors import RuleError
from graphopt.ir.graph import Graph, Node
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.matcher import NoMatch
from graphopt.rewrite.rule import Match, Rule


@dataclass(frozen=True)
class Explanation:
    """The verdict on one rule at one node. `score` orders near misses: how much of the rule was satisfied."""

    rule: str
    node: str
    matched: bool
    reason: str
    stopped_at: str
    score: int

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class _NothingToVerify:
    def verify(self, change: object) -> Evidence:
        return Evidence("none")


def explain(graph: Graph, rule: Rule, node: Node) -> Explanation:
    """Why `rule` does not apply at `node`, or that it does. Changes nothing."""
    name = graph.node_name(node)
    try:
        outcome = rule.match(graph, node)
    except RuleError as error:
        outcome = NoMatch("{}", (str(error),), node, 1000)
    if isinstance(outcome, Match):
        driver = Driver([rule], Editor(graph, Ledger(), _NothingToVerify()))
        refusal = driver.refusal(rule, outcome, node)
        if refusal is None:
            return Explanation(rule.name, name, True, "the rule applies here", name, 1_000_000)
        outcome = refusal
    stopped = name if outcome.node is None else graph.node_name(outcome.node)
    return Explanation(rule.name, name, False, outcome.reason, stopped, outcome.score)


def nearest_misses(graph: Graph, rule: Rule, most: int = 10) -> list[Explanation]:
    """Explanations for every node of the root's op, those that came closest first; ties in graph order."""
    found = [explain(graph, rule, n) for n in graph.nodes() if rule.key in (graph.key(n), graph.raw_name(n))]
    return sorted(found, key=lambda e: -e.score)[:most]
