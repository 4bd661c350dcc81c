"""What an approximate pass works with: data to tune on, and a judge with data of its own.

One `Account` a run: approximate passes share one budget, and what one of them spends the next cannot.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.errors import ModelError, PipelineError, VerificationError
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.verify.budget import Budget
from graphopt.verify.calibration import Calibration, inputs_of
from graphopt.verify.execute import CannotRun, arrays_in, model_runner
from graphopt.verify.metrics import Outputs, unmeasurable


@dataclass
class Account:
    """The budget of one run and what is spent of it."""

    budget: Budget
    spent: float = 0.0
    """The metric as last measured, against the model that the run started from."""
    kept: int = 0
    """How many applications of the run were kept when it was measured."""


class Approximation(ABC):
    """What one approximate pass sees while it runs on one model: `context.approximation(pass_)`.

    The pass chooses on `feeds` and by `measure_tuning`, asks `measure` whether a model is still good enough, leaves one
    that is within `limit`, and calls `settle` once at its end. The held-out part is not shown to it.
    """

    def __init__(self, account: Account) -> None:
        self.account = account
        self.before = account.spent
        """What was spent when the pass began."""
        self.settled: float | None = None
        """What the pass said at its end that it leaves."""

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.account.budget.name

    @property
    def limit(self) -> float:
        """The metric may not exceed this when the pass is done, whatever passes before it have spent."""
        return self.account.budget.limit

    @property
    def spent(self) -> float:
        """The metric as last measured in this run; 0.0 at its start."""
        return self.account.spent

    @property
    @abstractmethod
    def feeds(self) -> list[list[Array]]:
        """The tuning batches for the main graph of the pass's model, arrays in the order of its inputs."""

    @property
    @abstractmethod
    def weights(self) -> list[float]:
        """How much each of `feeds` counts: 1, or in a program the weight of the rows that it is for."""

    @abstractmethod
    def measure(self, model: Model) -> float:
        """The metric on the held-out part with `model` in the place of the pass's model, against what the run started
        from. NaN, which passes no comparison with `limit`, where the outputs cannot be compared.

        Raises:
            VerificationError: `model` cannot be run.
        """

    @abstractmethod
    def measure_tuning(self, model: Model) -> float:
        """As `measure`, on the tuning part: to choose between models by the metric without looking at the held-out
        part. The budget is not about it."""

    def settle(self, measured: float) -> None:
        """Record `measured`, the metric of what the pass leaves, as spent. The pipeline measures by itself too."""
        self.account.spent = self.settled = measured

    def begin(self, model: Model, kept: int) -> None:
        """For the pipeline: the pass begins on `model`, after `kept` applications of the run."""
        if self.account.kept != kept:  # what exact passes did since it was measured is rounding, but it counts
            self.account.spent, self.account.kept = self.measure(model), kept
        self.before = self.account.spent

    def finish(self, changed: Model | None, kept: int) -> None:
        """For the pipeline: the pass is done and leaves `changed`, or None if it kept no change."""
        self.account.spent = self.before if changed is None else self.measure(changed)
        self.account.kept = kept


class Reference:
    """The original model on calibration data, run once before any pass; judges every model that comes of it."""

    def __init__(self, original: Model, budget: Budget, calibration: Calibration) -> None:
        """
        Raises:
            ModelError: the data does not fit the model, the model cannot be run on it, or its outputs are no numbers.
            PipelineError: the metric of the original against itself is not within the budget.
        """
        tuning, held_out = calibration.split(inputs_of(original))
        self.budget = budget
        self.tuning = [list(batch.values()) for batch in tuning]
        self._held_out = [list(batch.values()) for batch in held_out]
        try:  # both now: passes edit the original in place
            self._expected = _run(original, self._held_out)
            self._expected_tuning = _run(original, self.tuning)
        except CannotRun as error:
            raise ModelError(f"the original cannot be run on the calibration data: {error}") from error
        require_measurable(budget, self._expected)

    def measure(self, model: Model) -> float:
        """The metric of `model` against the original on the held-out part; see `Approximation.measure`."""
        return self._measure(model, self._expected, self._held_out)

    def measure_tuning(self, model: Model) -> float:
        """The same on the tuning part."""
        return self._measure(model, self._expected_tuning, self.tuning)

    def _measure(self, model: Model, expected: Outputs, batches: Sequence[Sequence[Array]]) -> float:
        try:
            return self.budget.measure(expected, _run(model, batches))
        except CannotRun as error:
            raise VerificationError(f"an approximate candidate cannot be run on calibration data: {error}") from error

    def compare(self, candidate: Model) -> Measured:
        """The end-to-end check of a run in which approximate passes changed something."""
        return Measured(self.budget, self.measure(candidate))


class ModelApproximation(Approximation):
    """Of a model that is run by itself."""

    def __init__(self, account: Account, reference: Reference) -> None:
        super().__init__(account)
        self._reference = reference

    @property
    def feeds(self) -> list[list[Array]]:
        return self._reference.tuning

    @property
    def weights(self) -> list[float]:
        return [1.0] * len(self._reference.tuning)

    def measure(self, model: Model) -> float:
        return self._reference.measure(model)

    def measure_tuning(self, model: Model) -> float:
        return self._reference.measure_tuning(model)


@dataclass(frozen=True)
class Measured:
    """A verdict by budget."""

    budget: Budget
    value: float

    @property
    def ok(self) -> bool:
        return self.budget.allows(self.value)

    def __str__(self) -> str:
        return f"{self.budget.name} {self.value:.2g} on held-out data, allowed {self.budget.limit:.2g}"


def require_measurable(budget: Budget, outputs: Outputs) -> None:
    """Raises ModelError if the original's `outputs` hold nothing that a metric could see a change in, PipelineError if
    even equal outputs are beyond the budget."""
    if (found := unmeasurable(outputs)) is not None:
        raise ModelError(
            f"the budget cannot be measured: on the held-out calibration data {found}; expected real inputs, for which "
            "the original computes numbers"
        )
    itself = budget.measure(outputs, outputs)
    if not budget.allows(itself):
        raise PipelineError(
            f"metric {budget.name!r} of the original's outputs against themselves is {itself:g}, and the limit is "
            f"{budget.limit:g}: a metric is 0 for equal outputs and larger for worse ones"
        )


def _run(model: Model, batches: Sequence[Sequence[Array]]) -> list[list[Array]]:
    run = model_runner(model)
    # The keys of maps never move, and would make any mean over all outputs smaller.
    return [[array for output in run(batch) for array in arrays_in(output, keys=False)] for batch in batches]
