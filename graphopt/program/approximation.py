"""Approximating a unit of a program: judged by whole trajectories, tuned on what the unit is really fed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from graphopt.errors import ModelError, VerificationError
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.program.program import Program
from graphopt.program.reference import reference_runner, run_unit, runner_with, unit_runners
from graphopt.program.requests import Request, requests_of
from graphopt.program.runner import Runner, Units, to_numpy
from graphopt.program.step_weights import step_weights
from graphopt.verify.approximation import Account, Approximation, Measured, require_measurable
from graphopt.verify.budget import Budget
from graphopt.verify.calibration import Calibration


class Trajectories:
    """The original program on calibration requests; judges every program that comes of it by its final samples from
    the same noise."""

    def __init__(self, original: Program, budget: Budget, calibration: Calibration | None = None) -> None:
        """
        Raises:
            ModelError: the data does not fit the program.
        """
        calibration = calibration or Calibration()
        self.budget = budget
        self.step_weights = calibration.step_weights
        self.tuning, self._held_out = requests_of(original, calibration)
        self._original = original

    @cached_property
    def _expected(self) -> list[list[Array]]:
        expected = self._sampled(self._held_out)
        require_measurable(self.budget, expected)
        return expected

    @cached_property
    def _expected_tuning(self) -> list[list[Array]]:
        return self._sampled(self.tuning)

    def _sampled(self, requests: Sequence[Request]) -> list[list[Array]]:
        try:
            return _samples(reference_runner(self._original), requests)
        except Exception as error:
            raise ModelError(f"the program cannot be sampled on the calibration data: {error}") from error

    def measure(self, program: Program, units: Units | None = None) -> float:
        """The metric of `program` against the original on the held-out requests; `units` run it, by default the
        reference.

        Raises:
            VerificationError: it cannot be run.
        """
        return self._measure(program, units, self._expected, self._held_out)

    def measure_tuning(self, program: Program, units: Units | None = None) -> float:
        """The same on the tuning requests."""
        return self._measure(program, units, self._expected_tuning, self.tuning)

    def _measure(
        self, program: Program, units: Units | None, expected: list[list[Array]], requests: Sequence[Request]
    ) -> float:
        try:
            candidate = _samples(runner_with(program, units or unit_runners(program)), requests)
        except Exception as error:
            raise VerificationError(f"an approximate candidate cannot be sampled: {error}") from error
        return self.budget.measure(expected, candidate)

    def compare(self, candidate: Program) -> Measured:
        """The end-to-end check of a run in which approximate passes changed something."""
        return Measured(self.budget, self.measure(candidate))


class UnitApproximation(Approximation):
    """Of one unit of a program, while a graph pass runs on it."""

    def __init__(self, account: Account, trajectories: Trajectories, program: Program, body: str, unit: str) -> None:
        """`program` is what the passes before have made of it; the pass edits the model of `unit` of `body`."""
        super().__init__(account)
        self._trajectories = trajectories
        self._program = program
        self._place = (body, unit)

    @cached_property
    def _recorded(self) -> list[tuple[list[Array], float]]:
        recorded: list[tuple[list[Array], float]] = []
        weights = step_weights(self._program.schedule, self._trajectories.step_weights)

        def observe(body: str, unit: str, rows: Sequence[int], feeds: Sequence[Array]) -> None:
            if (body, unit) == self._place:
                recorded.append(([to_numpy(feed) for feed in feeds], float(weights[list(rows)].mean())))

        runner = reference_runner(self._program, observe)
        for request in self._trajectories.tuning:
            request.sample(runner)
        return recorded

    @property
    def feeds(self) -> list[list[Array]]:
        """What the unit is fed along the trajectories of the tuning part: in every row and both branches of the
        guidance for a step, once a request for a prologue."""
        return [feeds for feeds, _ in self._recorded]

    @property
    def weights(self) -> list[float]:
        return [weight for _, weight in self._recorded]

    @cached_property
    def _others(self) -> Units:
        """What runs the other units, which stay as they are while the pass runs."""
        return unit_runners(self._program, but=self._place)

    def measure(self, model: Model) -> float:
        return self._trajectories.measure(self._program, self._with(model))

    def measure_tuning(self, model: Model) -> float:
        return self._trajectories.measure_tuning(self._program, self._with(model))

    def _with(self, model: Model) -> Units:
        """What runs the units, with `model` in the unit's place."""
        return {**self._others, self._place: run_unit(model)}


def _samples(runner: Runner, requests: Sequence[Request]) -> list[list[Array]]:
    return [[request.sample(runner)] for request in requests]
