"""What approximate passes may spend: a metric and the most that it may become."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from graphopt.errors import GraphoptError, PipelineError, did_you_mean
from graphopt.verify.metrics import METRICS, Metric, Outputs, incomparable


@dataclass(frozen=True)
class Budget:
    """A metric and its limit, for all approximate passes of a run together.

    Raises:
        PipelineError: an unknown metric, or a limit that is no number from 0 to infinity.
    """

    metric: str | Metric = "relative-error"
    """Name of a metric ("relative-error", "cosine", "kl", "top-1", "trajectory-mse"), or any callable
    `metric(reference, candidate) -> float` that is 0 for equal outputs and larger for worse ones; see
    `graphopt.verify.metrics`."""
    limit: float = 0.01
    """The metric may not exceed this. Infinity: measured and reported, not limited. 0: nothing may change."""

    def __post_init__(self) -> None:
        if isinstance(self.metric, str):
            if self.metric not in METRICS:
                raise PipelineError(
                    f"unknown metric {self.metric!r}{did_you_mean(self.metric, METRICS)}: expected one of "
                    f"{', '.join(METRICS)}, or a callable(reference, candidate) -> float"
                )
        elif not callable(self.metric) or isinstance(self.metric, type):
            raise PipelineError(
                f"metric={self.metric!r}: expected the name of a metric or a callable(reference, candidate) -> float, "
                "as in Budget('kl', 0.1)"
            )
        if not _is_number(self.limit) or not self.limit >= 0.0:
            raise PipelineError(
                f"a budget's limit is {self.limit!r}: expected a number that is not negative, such as 0.01; "
                "float('inf') measures without a limit"
            )

    @classmethod
    def of(cls, value: Any, metric: str = "relative-error") -> Budget | None:
        """What `optimize` takes as a budget: one of these, a number for the limit of `metric`, or None.

        Raises:
            PipelineError: anything else.
        """
        if value is None or isinstance(value, cls):
            return value
        if not _is_number(value):
            raise PipelineError(
                f"budget={value!r}: expected a number such as 0.01, or graphopt.Budget(metric, limit)"
            )
        return cls(metric, float(value))

    @property
    def name(self) -> str:
        """The metric's name; that of the function or class if the user gave one."""
        if isinstance(self.metric, str):
            return self.metric
        name = getattr(self.metric, "name", None) or getattr(self.metric, "__name__", type(self.metric).__name__)
        return str(name)

    def measure(self, reference: Outputs, candidate: Outputs) -> float:
        """The metric; NaN, which is within no limit, if the outputs cannot be compared: other counts or shapes, NaN or
        infinities at other places.

        Raises:
            PipelineError: the user's metric raises something or returns no number.
        """
        if incomparable(reference, candidate) is not None:
            return math.nan
        metric = METRICS[self.metric] if isinstance(self.metric, str) else self.metric
        try:
            measured = metric(reference, candidate)
        except GraphoptError:
            raise
        except Exception as error:  # it is the user's own
            raise PipelineError(
                f"metric {self.name!r} raised {type(error).__name__}: {error}; it is called as metric(reference, "
                "candidate), both lists of batches, and these lists of arrays"
            ) from error
        try:
            return float(measured)
        except (TypeError, ValueError):
            raise PipelineError(
                f"metric {self.name!r} returned {measured!r}: expected a number, 0 for equal outputs"
            ) from None

    def allows(self, measured: float) -> bool:
        """Whether `measured` is within the limit; NaN never is."""
        return measured <= self.limit


def _is_number(value: Any) -> bool:
    """A number that is neither a flag nor NaN; those of numpy too."""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        return False
    try:
        return not math.isnan(float(value))
    except (TypeError, ValueError):
        return False
