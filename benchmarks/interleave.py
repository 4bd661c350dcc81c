"""Times several candidates in turn, so that whatever else the machine does falls on all of them alike.

One round runs every candidate once, in an order that is reversed every other round. Ratios are taken within
each round, between runs that were next to each other, and their median is reported with its quartiles.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

Job = Callable[[], object]
Prepare = Callable[[], Job]
"""Makes the job of one run; not timed. What a job uses up (a graph that it rewrites) is made here anew."""


@dataclass(frozen=True)
class Timing:
    """The runs of one candidate, in seconds, in the order of the rounds."""

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def best(self) -> float:
        return min(self.samples)


@dataclass(frozen=True)
class Ratio:
    """Median of the ratios of the single rounds, and the quartiles around it."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def interleave(
    candidates: Mapping[str, Prepare],
    *,
    rounds: int,
    warm_up: int = 1,
    lead: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every candidate `warm_up + rounds` times in turn and return the timings of the last `rounds`.

    Args:
        candidates: what makes the job to be timed, by name.
        rounds: timed runs of each candidate.
        warm_up: rounds that are run first and dropped.
        lead: how often a candidate is run right before each timed run, not timed: threads of the candidate before it
            may go on spinning for a while, and its own may have gone to sleep. Garbage is collected before them.
        clock: seconds; `time.process_time` counts this process's work only.
    """
    return in_turn(candidates, lambda name: seconds(candidates[name], lead, clock), rounds, warm_up)


def in_turn(names: Iterable[str], measure: Callable[[str], float], rounds: int, warm_up: int = 1) -> dict[str, Timing]:
    """What `measure` says of each name, asked `warm_up + rounds` times in turn; of the last `rounds`."""
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        for name in reversed(samples) if number % 2 else samples:
            taken = measure(name)
            if number >= warm_up:
                samples[name].append(taken)
    return {name: Timing(tuple(taken)) for name, taken in samples.items()}


def seconds(prepare: Prepare, lead: int = 0, clock: Callable[[], float] = time.perf_counter) -> float:
    """How long a job of `prepare` takes, once `lead` others that it made have been run."""
    if lead:
        gc.collect()
    for _ in range(lead):
        prepare()()
    job = prepare()
    if not lead:  # else the pause would make the job the first one again
        gc.collect()
    start = clock()
    job()
    return clock() - start


def always(job: Job) -> Prepare:
    """The candidate whose job can be run again as it is."""
    return lambda: job


def paired_ratio(a: Timing, b: Timing) -> Ratio:
    """How many times as long `a` takes as `b`, round by round."""
    ratios = sorted(x / y for x, y in zip(a.samples, b.samples, strict=True))
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)
