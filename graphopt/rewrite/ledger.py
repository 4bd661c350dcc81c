"""The ledger of applications: stable ids, limits, skips, and what became of each.

Ids count candidates (matches that every guard let through), not successes, so that skipping or undoing one leaves
all others with the ids they had.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from graphopt.rewrite.contract import Application


@dataclass
class RuleStats:
    """What one rule did in one pass."""

    tried: int = 0
    """Nodes at which the pattern was tried after the index and the early rejection let it through."""
    matched: int = 0
    applied: int = 0
    undone: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Reasons of near misses: the pattern's ops were there, but a guard, a field or a check said no."""
    seconds: float = 0.0


class Ledger:
    """One per pipeline run; passes open their page with `open_pass`."""

    def __init__(self, limit: int | None = None, skip: Iterable[str] = ()) -> None:
        self.limit = limit
        self.skip = frozenset(skip)
        self.kept = 0
        self.applications: list[Application] = []
        self.stats: dict[str, RuleStats] = {}
        self._pass_name = ""
        self._counters: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._candidates = self._counters[""]
        """How many candidates each rule of the pass has had."""

    def open_pass(self, name: str) -> None:
        """Start a pass: fresh statistics and applications; the id counters run on if a pass occurs twice."""
        self._pass_name = name
        self._candidates = self._counters[name]
        self.applications = []
        self.stats = {}

    @property
    def exhausted(self) -> bool:
        """Whether the limit on kept applications is reached."""
        return self.limit is not None and self.kept >= self.limit

    def rule(self, name: str) -> RuleStats:
        found = self.stats.get(name)
        if found is None:
            found = self.stats[name] = RuleStats()
        return found

    def next_id(self, rule: str) -> str:
        count = self._candidates[rule] = self._candidates[rule] + 1
        return f"{self._pass_name}/{rule}#{count}"

    def id_ahead(self, rule: str, ahead: int) -> str:
        """The id that the candidate of `rule` so many ahead of the last one will have."""
        return f"{self._pass_name}/{rule}#{self._candidates[rule] + ahead}"

    def record(self, application: Application) -> Application:
        self.applications.append(application)
        stats = self.rule(application.rule)
        if application.status == "kept":
            stats.applied += 1
            self.kept += 1
        elif application.status == "undone":
            stats.undone += 1
        return application
