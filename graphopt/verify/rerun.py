"""Running the rule of a change again on a copy of what it matched, where weights stay expressions."""

from __future__ import annotations

from graphopt.errors import RuleError
from graphopt.ir.graph import CannotEmit, Node
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.transcribe import transcribe
from graphopt.rewrite.change import Change
from graphopt.rewrite.driver import sort_nodes, write_match
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.matcher import NoMatch
from graphopt.rewrite.rule import Refused, Rule
from graphopt.verify.fragment import Fragment, cut


def twin(change: Change, fragment: Fragment) -> Fragment | None:
    """The rule of `change` applied to a copy of its fragment; None if there is no rule, or it does not apply there."""
    if change.rule is None or change.match is None:
        return None
    side = fragment.before
    try:
        scratch, nodes = transcribe(fragment.graph, side.nodes, fragment.inputs, side.outputs, declared=side.declared)
    except CannotEmit:
        return None
    return rerun(change, scratch, nodes[next(iter(change.match.calls))])


def rerun(change: Change, scratch: ScratchGraph, root: Node) -> Fragment | None:
    """The rule of `change` applied at `root` of a scratch graph; None if it does not apply there."""
    assert change.rule is not None
    return applied(change.rule, scratch, root)


def applied(rule: Rule, scratch: ScratchGraph, root: Node) -> Fragment | None:
    """What `rule` makes of a scratch graph at `root`; None if it does not apply there."""
    try:
        match = rule.match(scratch, root, costly=True)
        if isinstance(match, NoMatch):
            return None
        journal, ordered = Journal(scratch), sort_nodes(scratch, match)
        # What gives another shape here may give the same where sizes are equal, and has to be seen to be wrong.
        write_match(rule, match, ordered, journal, resized=True)
    except (CannotEmit, Refused, RuleError):
        return None
    made = cut(Change(rule.name, scratch, tuple(ordered), journal, rule.contract, rule, match))
    return Fragment(scratch, tuple(scratch.inputs()), made.before, made.after)
