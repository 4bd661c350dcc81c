"""The driver: rules indexed by their root op, a deterministic worklist, caps, and nothing applied unverified."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from functools import cmp_to_key, partial
from typing import Any

from graphopt.errors import RuleError
from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.ops import OPS
from graphopt.rewrite.builder import Builder, require_result
from graphopt.rewrite.change import Editor, escapes
from graphopt.rewrite.index import Rooted, RuleIndex
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.ledger import RuleStats
from graphopt.rewrite.matcher import Name, NoMatch
from graphopt.rewrite.rule import Match, Refused, Rule

GENERATIONS = 50
"""How often the product of a rewrite may itself be rewritten: a rule set that undoes itself stops here."""
GROWTH = 10
"""How many applications a run may keep for every node that it started with: a rule set that only grows stops here."""


class Driver:
    """Applies a set of rules to one graph until none applies any more."""

    def __init__(self, rules: Sequence[Rule], editor: Editor) -> None:
        names = [r.name for r in rules]
        if twice := {n for n in names if names.count(n) > 1}:
            raise RuleError(f"two rules of one set are named {sorted(twice)[0]!r}; give one of them another name")
        self.rules = tuple(rules)
        self.editor = editor
        self.graph: Graph = editor.graph
        self.ledger = editor.ledger
        self.reach = max((r.depth for r in rules), default=1)
        self.several_roots = any(len(r.roots) > 1 for r in rules)
        """Then a change may concern every reader of a value, not only those that are new to it."""
        self.index = RuleIndex(rules)
        self.visits = 0
        """Nodes taken from the worklist: the work done, for growth tests."""
        self.notes: list[str] = []
        self._rooted: dict[Node, Rooted] = {}
        """Nodes of this region at which a rule may be rooted; readers inside bodies are for drivers of their own."""
        self._queue: deque[Node] = deque()
        self._queued: set[Node] = set()
        self._quarantine: set[tuple[str, Node]] = set()
        self._generation: dict[Node, int] = {}
        self._spent: set[Node] = set()
        """Nodes that are the product of as many rewrites as are allowed."""
        self._waiting: dict[Value, list[Node]] = {}

    def run(self) -> None:
        """Run to the fixed point. Deterministic: the order depends on the graph and the rules alone."""
        self._rooted, self._queue, self._queued = {}, deque(), set()
        nodes = list(self.graph.nodes())
        self._enter(nodes)
        ledger, most = self.ledger, self.ledger.kept + GROWTH * len(nodes)
        stop = most if ledger.limit is None else min(most, ledger.limit)
        while self._visit_queued(stop) and self.several_roots and not self._queue:
            # What one root was refused for may have changed at another, which nothing leads to it from.
            self._push(list(self._rooted))
        if self._queue and ledger.kept >= most:
            self.notes.append(f"stopped after {GROWTH} applications per node: the rules do not come to an end")

    def _visit_queued(self, stop: int) -> bool:
        """Visit nodes until none is queued or the ledger has kept `stop` applications. Whether any of them is new."""
        graph, queue, rooted, ledger = self.graph, self._queue, self._rooted, self.ledger
        before = ledger.kept
        while queue and ledger.kept < stop:
            node = queue.popleft()
            rules = rooted.get(node)
            if rules is None:  # It was removed while it waited.
                continue
            self._queued.discard(node)
            self.visits += 1
            candidates = rules.candidates(graph, node)
            if candidates:
                self._visit(node, candidates)
        return ledger.kept > before

    def _enter(self, nodes: Iterable[Node]) -> None:
        """Make `nodes` known, which are new, and queue them."""
        for node in nodes:
            rules = self.index.rooted(self.graph, node)
            if rules is not None:
                self._rooted[node] = rules
                self._queued.add(node)
                self._queue.append(node)

    def _push(self, nodes: Iterable[Node]) -> None:
        """Queue those of `nodes` that are of this region, may be the root of something and are not queued."""
        rooted, queued = self._rooted, self._queued
        for node in nodes:
            if node in rooted and node not in queued:
                queued.add(node)
                self._queue.append(node)

    def _visit(self, node: Node, rules: Sequence[Rule]) -> None:
        """Apply the first of `rules` that applies at `node`."""
        for rule in rules:
            if self._quarantine and (rule.name, node) in self._quarantine:
                continue
            stats = self.ledger.rule(rule.name)
            started = time.perf_counter()
            done = self._try(rule, node, stats)
            stats.seconds += time.perf_counter() - started
            if done:
                return

    def _try(self, rule: Rule, node: Node, stats: RuleStats) -> bool:
        """Whether `rule` was applied at `node`."""
        stats.tried += 1
        try:
            match = rule.match(self.graph, node)
        except RuleError as error:
            match = NoMatch("{}", (str(error),), node, 1000)
        if isinstance(match, Match):
            stats.matched += 1
            refusal = self.refusal(rule, match, node)
            if refusal is None:
                return self._apply(rule, match, node)
            match = refusal
        if match.score >= max(2, rule.depth):
            stats.refused[match.kind] += 1
        return False

    # ---- guards: what no rule needs to think of ---------------------------------------------------------------

    def refusal(self, rule: Rule, match: Match, node: Node) -> NoMatch | None:
        """Why the engine does not let a match be applied: users outside, outputs, effects, order, termination."""
        graph, inside, replaced = self.graph, match.calls, match.outputs
        if not rule.keep_shared:
            matched = inside.keys()
            for call in inside.values():
                for value in call.outputs:
                    if value is not None and value not in replaced and not graph.confines(value, matched):
                        self._wait_for(call.node, node)
                        return escapes(graph, [value], matched)
        for inner_node, call in inside.items() if rule.is_raw else ():
            if call.op not in OPS and not graph.is_pure(inner_node):
                return NoMatch("{} has effects", (Name(graph.node_name(inner_node)),), inner_node, 900)
        if self._spent and not self._spent.isdisjoint(inside):
            note = f"{rule.name} stopped at {graph.node_name(node)}: {GENERATIONS} rewrites of one place"
            if note not in self.notes:
                self.notes.append(note)
            return NoMatch("rewritten {} times already", (GENERATIONS,), node, 900)
        return self._order(match) if len(replaced) > 1 else None

    def _order(self, match: Match) -> NoMatch | None:
        """With several roots, everything is written before the last: nobody may read an earlier root before that."""
        last = sort_nodes(self.graph, match)[-1]
        for value in match.outputs:
            for user in self.graph.users(value):
                if user not in match.calls and not self.graph.precedes(last, user):
                    name = Name(self.graph.name(value))
                    return NoMatch("{} is read before all roots are computed", (name,), user, 900)
        return None

    def _wait_for(self, inner: Node, node: Node) -> None:
        """Try `node` again when the users of what `inner` gives have become fewer."""
        for output in self.graph.results(inner):
            if output is not None:
                self._waiting.setdefault(output, []).append(node)

    # ---- applying --------------------------------------------------------------------------------------------

    def _apply(self, rule: Rule, match: Match, node: Node) -> bool:
        nodes = sort_nodes(self.graph, match)
        application, journal = self.editor.apply(
            rule.name, rule.contract, nodes, partial(write_match, rule, match, nodes), rule=rule, match=match
        )
        if application.status != "kept":
            self._quarantine.add((rule.name, node))
            return False
        self._follow(match, nodes, journal)
        return True

    def _follow(self, match: Match, nodes: Sequence[Node], journal: Journal) -> None:
        """Queue whatever the application may have made possible."""
        known, generation = self._generation, 1
        for node in nodes:
            if node in known:
                generation = max(generation, 1 + known[node])
        for node in journal.removed:
            self._rooted.pop(node, None)
            known.pop(node, None)
        for node in nodes if self._waiting else ():
            for value in match.calls[node].operands if node in journal.removed else match.outputs:
                self._push(self._waiting.pop(value, ()))
        for node in journal.inserted:
            known[node] = generation
        if generation >= GENERATIONS:
            self._spent.update(journal.inserted)
        self._enter(journal.inserted)
        readers = journal.readers
        if self.several_roots:
            readers = [user for _, new in journal.replaced for user in self.graph.users(new)]
        self._push_downstream(readers)

    def _push_downstream(self, nodes: Collection[Node]) -> None:
        """Queue `nodes` and what they lead to, as far as the deepest pattern can look back through its ops."""
        self._push(nodes)
        for _ in range(1, self.reach):
            found: dict[Node, None] = {}
            for node in nodes:
                if self.index.leads_on(self.graph, node):
                    found.update(dict.fromkeys(self.graph.readers(node)))
            nodes = found
            self._push(nodes)


def write_match(
    rule: Rule, match: Match, nodes: Sequence[Node], journal: Journal, *, resized: bool = False
) -> None:
    """Write what `rule` says at `match`, whose sorted nodes are `nodes`, into `journal`; what gives another dtype or
    shape than it replaces as well, if `resized`."""
    result = rule.rewrite(match, Builder(journal.graph, journal, nodes[-1], match.bindings))
    results: tuple[Any, ...] = result if isinstance(result, tuple) else (result,)
    if result is None:
        if not journal.is_empty:
            raise RuleError("the rewrite wrote nodes and returned nothing")
        return
    if len(results) != len(match.outputs):
        raise RuleError(f"the rewrite returned {len(results)} values for {len(match.outputs)} outputs")
    for old, new in zip(match.outputs, results, strict=True):
        require_result(new)
        if new is old:
            raise Refused("the rewrite returned the value that it replaces", (), None)
        journal.replace(old, new, resized=resized)
    journal.doom(nodes)


def sort_nodes(graph: Graph, match: Match) -> list[Node]:
    """The matched nodes, each after those that it reads; the root that comes last in the graph is last."""
    if len(match.calls) <= 2 and len(match.outputs) == 1:
        # The first call is the root's.
        return [*reversed(match.calls)]
    roots = [graph.producer(value) for value in match.outputs]
    if len(roots) > 1:
        roots.sort(key=cmp_to_key(lambda a, b: -1 if graph.precedes(a, b) else 1))
    order: dict[Node, None] = {}

    def visit(node: Node) -> None:
        for operand in match.calls[node].operands:
            producer = None if operand is None else graph.producer(operand)
            if producer in match.calls and producer not in order:
                visit(producer)
        order[node] = None

    for root in roots:
        visit(root)
    return list(order)
