"""One change of a graph as verification sees it, and what applying one means whoever proposes it.

Rules propose changes through patterns, whole-graph passes propose them directly; both go through `Editor.apply`, so
nothing reaches a graph without an id, a verdict and, if need be, an undo.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from traceback import walk_tb
from types import MappingProxyType
from typing import NamedTuple, Protocol

from graphopt.errors import RuleError
from graphopt.ir.graph import CannotEmit, Graph, Node, Value
from graphopt.ir.weights import TensorRef
from graphopt.rewrite.contract import Application, Contract, Evidence, require_contract
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.matcher import Name, NoMatch
from graphopt.rewrite.rule import Match, Refused, Rule

NOTHING: Mapping[Value, TensorRef] = MappingProxyType({})


class Change(NamedTuple):
    """An application that has been written but not decided: both sides are still in the graph."""

    id: str
    graph: Graph
    nodes: tuple[Node, ...]
    """What is replaced, in topological order."""
    journal: Journal
    contract: Contract
    rule: Rule | None = None
    """The rule, if one proposed it: verification runs it again on a float64 twin."""
    match: Match | None = None
    declared: Mapping[Value, TensorRef] = NOTHING
    """For weights that the nodes read: what a pass puts in their place, far from them in an approximate change and
    within rounding otherwise. The side before the change is judged with these, so that everything but the declared
    numbers is held to rounding."""


class Rejected(Exception):
    """Raised by a verifier: the change breaks its contract."""

    def __init__(self, reason: str, evidence: Evidence, repro: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.evidence = evidence
        self.repro = repro


class Verifier(Protocol):
    """Judges changes. Returns the evidence or raises Rejected."""

    def verify(self, change: Change) -> Evidence: ...


WATCHED = 16
"""For how many candidates of each rule the neighbourhood is compared with what the rule says it did."""


class Editor:
    """Applies changes to one graph on behalf of one pass."""

    def __init__(self, graph: Graph, ledger: Ledger, verifier: Verifier) -> None:
        self.graph = graph
        self.ledger = ledger
        self.verifier = verifier
        self._watched: defaultdict[str, int] = defaultdict(int)

    def apply(
        self,
        rule_name: str,
        contract: Contract,
        nodes: Sequence[Node],
        write: Callable[[Journal], None],
        *,
        rule: Rule | None = None,
        match: Match | None = None,
        declared: Mapping[Value, TensorRef] = NOTHING,
    ) -> tuple[Application, Journal]:
        """Write a change, verify it, then commit it or take it back; either way it is recorded.

        An exception raised by `write` counts against this change alone. The journal returned still lists what was
        inserted and replaced if the change was kept.
        """
        require_contract(contract, rule_name)
        record = self.ledger.record
        id_ = self.ledger.next_id(rule_name)
        names = tuple(map(self.graph.node_name, nodes))
        journal = Journal(self.graph)
        if id_ in self.ledger.skip:
            return record(Application(id_, rule_name, names, "skipped", "skipped on request")), journal
        before = None
        if self._watched[rule_name] < WATCHED:
            self._watched[rule_name] += 1
            before = _neighbourhood(self.graph, nodes)
        try:
            write(journal)
            if journal.is_empty:
                self._require_untouched(rule_name, nodes, before)
                raise Refused("the rewrite changed nothing", (), None)
            evidence = self.verifier.verify(
                Change(id_, self.graph, tuple(nodes), journal, contract, rule, match, declared)
            )
        except Exception as error:
            journal.rollback()
            self._require_untouched(rule_name, nodes, before)
            reason, evidence, repro = _why(error, write if rule is None else rule.definition.rewrite)
            return record(Application(id_, rule_name, names, "undone", reason, evidence, repro)), journal
        journal.commit()
        return record(Application(id_, rule_name, names, "kept", "", evidence)), journal

    def _require_untouched(self, rule_name: str, nodes: Sequence[Node], before: object) -> None:
        if before is not None and _neighbourhood(self.graph, nodes) != before:
            raise RuleError(
                f"rule {rule_name} changed the graph behind the journal's back at "
                f"{self.graph.node_name(nodes[0])}; a rewrite may only edit through `build`"
            )


def _neighbourhood(graph: Graph, nodes: Sequence[Node]) -> list[tuple[object, ...]]:
    """What `nodes` say and who reads them: cheap, and equal before and after anything that was undone."""
    parts: list[tuple[object, ...]] = []
    for node in nodes:
        call = graph.raw_call(node)
        operands = [None if o is None else graph.name(o) for o in call.operands]
        fields = {name: str(value) for name, value in call.fields.items()}
        readers = [sorted(map(graph.node_name, graph.users(o))) for o in call.outputs if o is not None]
        parts.append((call.op, operands, fields, readers))
    return parts


def _why(error: Exception, written_by: object) -> tuple[str, Evidence, str | None]:
    """What is said of a change that failed, its evidence and the folder that reproduces it. Where the function
    `written_by` or what stands beside it was executing is said of errors that say nothing else."""
    none = Evidence("none")
    match error:
        case Rejected():
            return error.reason, error.evidence, error.repro
        case Refused():
            return error.no_match.reason, none, None
        case CannotEmit():
            return f"cannot be written: {error}", none, None
        case RuleError():
            return str(error), none, None
    code = getattr(written_by, "__code__", None)
    file = None if code is None else code.co_filename
    lines = [line for frame, line in walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
    place = f" ({Path(file).name}, line {lines[-1]})" if file is not None and lines else ""
    return f"the rewrite raised {type(error).__name__}: {error}{place}", none, None


def escapes(graph: Graph, values: Sequence[Value], inside: Container[Node]) -> NoMatch | None:
    """Why `values` may not disappear: read outside of `inside`, or a graph output."""
    for value in values:
        if graph.is_output(value):
            return NoMatch("{} is an output of the graph", (Name(graph.name(value)),), graph.producer(value), 900)
        for user in graph.users(value):
            if user not in inside:
                names = Name(graph.name(value)), Name(graph.node_name(user))
                return NoMatch("{} has other users ({})", names, graph.producer(value), 900)
    return None
