"""What an accelerated pipeline did: how each request ran, why, and what was compiled."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from graphopt.pipeline.report import Report

Mode: TypeAlias = Literal["program", "steps"]


@dataclass(frozen=True)
class RequestRecord:
    """One call of the pipeline."""

    mode: Mode
    """"program": the whole loop as one program. "steps": the pipeline's own loop and the compiled denoiser."""
    reason: str
    """Why it ran step by step; empty for a program."""
    compiled: int
    """Denoisers that were compiled for this request; 0 from the second request of a size on."""
    seconds: float

    def __str__(self) -> str:
        return f"{_how(self.mode, self.reason)}, {self.seconds:.3g} s" + (
            f", {self.compiled} compiled" if self.compiled else ""
        )


@dataclass
class AccelerationReport:
    """`pipe.graphopt_report`; printable."""

    last: RequestRecord | None = None
    """The last request that was finished."""
    requests: Counter[tuple[Mode, str]] = field(default_factory=Counter)
    """How many requests ran in which mode, for which reason."""
    compiled: list[Report] = field(default_factory=list)
    """What the passes did to each denoiser that was compiled, latest last."""

    def add(self, record: RequestRecord) -> None:
        self.last = record
        self.requests[record.mode, record.reason] += 1

    def __str__(self) -> str:
        lines = [
            f"{count} request{'s' * (count > 1)} {_how(mode, reason)}"
            for (mode, reason), count in self.requests.items()
        ]
        return "\n".join([*lines, *(str(report) for report in self.compiled)])


def _how(mode: Mode, reason: str) -> str:
    return "as one program" if mode == "program" else f"step by step, because {reason}"
