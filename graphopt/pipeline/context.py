"""What a pass works with: the model, the target, and the only way to change anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from graphopt.errors import PipelineError, RuleError
from graphopt.ir.graph import Graph
from graphopt.ir.model import Model
from graphopt.rewrite.change import Change, Editor, Rejected, Verifier
from graphopt.rewrite.contract import Application, Approximate, Evidence
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import Rule

if TYPE_CHECKING:
    from graphopt.pipeline.pass_ import Pass
    from graphopt.verify.approximation import Approximation
    from graphopt.verify.budget import Budget
    from graphopt.verify.calibration import Calibration

T = TypeVar("T")


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
        budget: Budget | None = None,
        calibration: Calibration | None = None,
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
        self.approximated = 0
        """How many approximate changes the pass that is running has kept."""
        self.notes: list[str] = []
        """Remarks for the report; a pass appends."""

    def apply(
        self,
        rule: str,
        nodes: tuple[str, ...],
        change: Callable[[], tuple[T, Evidence]],
        *,
        what: str = "rewrite",
        approximate: bool = False,
    ) -> T | None:
        """One application of a pass that judges its changes itself: made and recorded.

        Args:
            rule: names it in the ledger.
            nodes: names of the nodes that it concerns.
            change: makes the result and the evidence for it; raises Rejected if it breaks its contract.
            what: what the change is called where it raises anything else.
            approximate: whether it spends of the budget.

        Returns:
            The result, or None if it was skipped or undone; then what was there before stays.
        """
        id_ = self.ledger.next_id(rule)
        record = partial(Application, id_, rule, nodes)
        if id_ in self.ledger.skip:
            self.ledger.record(record("skipped", "skipped on request"))
            return None
        try:
            result, evidence = change()
        except Rejected as rejected:
            self.ledger.record(record("undone", rejected.reason, rejected.evidence))
            return None
        except Exception as error:
            reason = f"the {what} raised {type(error).__name__}: {error}"
            self.ledger.record(record("undone", reason, Evidence("none")))
            return None
        self.ledger.record(record("kept", "", evidence))
        self.approximated += approximate
        return result


class Context(RunContext):
    """One run of a pipeline on one model, which the passes edit."""

    def __init__(
        self,
        model: Model,
        verifier: Verifier,
        ledger: Ledger,
        *,
        approximate: Callable[[], Approximation] | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            approximate: makes what an approximate pass works with; None if there is no budget or no data.
            options: those of RunContext.
        """
        super().__init__(verifier, ledger, **options)
        self.model = model
        self._approximate = approximate
        self._refreshed = ledger.kept
        self.opened: Approximation | None = None
        """What the pass that is running asked for with `approximation`."""

    def open_pass(self, name: str) -> None:
        """Start a pass: nothing noted, nothing asked for."""
        self.ledger.open_pass(name)
        self.notes = []
        self.opened = None
        self.approximated = 0
        self._refreshed = self.ledger.kept

    def approximation(self, pass_: Pass) -> Approximation:
        """What an approximate pass works with: data to tune on, the limit, and the measure that decides.

        An approximate pass calls this before it changes anything: changes under the contract `Approximate` are
        refused otherwise.

        Raises:
            PipelineError: the run has no budget, or no calibration data.
        """
        if self.opened is None:
            self.opened = self._open(pass_.name)
        return self.opened

    def _open(self, name: str) -> Approximation:
        if self.budget is None:
            raise PipelineError(
                f"{name} is approximate and never runs without a budget: give one as in optimize(..., budget=0.01, "
                "calibration=data); float('inf') measures without a limit"
            )
        if self._approximate is None:
            raise PipelineError(
                f"{name} is approximate and needs calibration data to measure {self.budget.name!r} on: give real "
                "inputs as in optimize(..., calibration=[batch, batch, ...]); see graphopt.Calibration"
            )
        opened = self._approximate()
        opened.begin(self.model, self.ledger.kept)
        return opened

    def editor(self, graph: Graph) -> Editor:
        """Applies changes to one region; every one gets an id, a verdict and a line in the report."""
        return Editor(graph, self.ledger, _Budgeted(self))

    def refresh(self) -> None:
        """Bring the types and weights of the model up to date with the changes that were kept. Without any it is left
        alone: what nothing reads was there before, and its removal would be a change that no application shows."""
        if self.ledger.kept != self._refreshed:
            self.model.refresh()
            self._refreshed = self.ledger.kept

    def run_rules(self, rules: Iterable[Rule]) -> int:
        """Apply `rules` to one region after the other, to each until none applies there any more; returns the number of
        changes kept. What a later one frees in an earlier one is left to the next run."""
        if not isinstance(rules, Iterable):
            raise RuleError(f"rules are {rules!r}: expected a list of what @graphopt.rule(contract=...) makes")
        rules = list(rules)
        for rule in rules:
            if not isinstance(rule, Rule):
                raise RuleError(f"{rule!r} is no rule; decorate its class with @graphopt.rule(contract=...)")
        before = self.ledger.kept
        for region in self.model.regions():
            driver = Driver(rules, self.editor(region))
            driver.run()
            self.notes += driver.notes
        return self.ledger.kept - before


class _Budgeted:
    """The verifier of a context, which lets no approximate change through that no budget stands behind."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def verify(self, change: Change) -> Evidence:
        if isinstance(change.contract, Approximate) and self._context.opened is None:
            raise Rejected(
                "an approximate change without a budget: the pass has not asked for context.approximation(self), which "
                "a GraphPass does in its method run",
                Evidence("none"),
            )
        evidence = self._context.verifier.verify(change)
        self._context.approximated += isinstance(change.contract, Approximate)
        return evidence
