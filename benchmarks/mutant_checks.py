"""What the executed checks say of a mutant: those that stand beside every proof when a pass is run."""

from __future__ import annotations

from graphopt.rewrite.change import Change, Rejected
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.journal import Journal
from graphopt.verify.fragment import Fragment
from graphopt.verify.verifier import MatchVerifier


def rejection(fragment: Fragment) -> str | None:
    """Why the executed checks reject the after side, judged as rounding of the before side; None if they do not."""
    journal = Journal(fragment.graph)
    journal.inserted += fragment.after.nodes
    journal.replaced += zip(fragment.before.outputs, fragment.after.outputs, strict=True)
    try:
        MatchVerifier().verify(Change("mutant#1", fragment.graph, fragment.before.nodes, journal, Rounding()))
    except Rejected as rejected:
        return rejected.reason
    return None
