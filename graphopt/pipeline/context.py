"""What a pass works with: the model, the target, and the only way to change anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphopt.ir.graph import Graph
from graphopt.ir.model import Model
from graphopt.rewrite.change import Editor, Verifier
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import Rule


class RunContext:
    """What every pass of one run shares, whatever it works on."""

    def __init__(
        self,
        verifier: Verifier,
        ledger: Ledger,
        *,
        verify: str = "match",
        target: str | None = None,
        features: frozenset[str] = frozenset(),
        budget: Any = None,
        calibration: Any = None,
    ) -> None:
        """
        Args:
            verifier: judges every change of a graph.
            ledger: gives ids and keeps what became of every application.
            verify: the level: "off", "structure", "match" or "model".
            target: name of the backend that the result is for, if any.
            features: raw ops that the target has beyond the storage's standard ("com.microsoft::FusedConv").
            budget: what approximate passes may spend.
            calibration: real inputs, for passes that measure.
        """
        self.verifier = verifier
        self.ledger = ledger
        self.verify = verify
        self.target = target
        self.features = features
        self.budget = budget
        self.calibration = calibration
        self.notes: list[str] = []
        """Remarks for the report; a pass appends."""


class Context(RunContext):
    """One run of a pipeline on one model, which the passes edit."""

    def __init__(self, model: Model, verifier: Verifier, ledger: Ledger, **options: Any) -> None:
        """`options` are those of RunContext."""
        super().__init__(verifier, ledger, **options)
        self.model = model

    def editor(self, graph: Graph) -> Editor:
        """Applies changes to one region; every one gets an id, a verdict and a line in the report."""
        return Editor(graph, self.ledger, self.verifier)

    def run_rules(self, rules: Sequence[Rule]) -> int:
        """Apply `rules` to every region until none applies any more; returns the number of changes kept."""
        before = self.ledger.kept
        for region in self.model.regions():
            driver = Driver(rules, self.editor(region))
            driver.run()
            self.notes += driver.notes
        return self.ledger.kept - before
