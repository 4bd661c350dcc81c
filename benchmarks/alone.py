"""Jobs in processes of their own, so that threads of one that spin, sleep or hold memory do not slow down another."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.interleave import Job, Timing, always, in_turn, seconds


class Alone:
    """The job that `make(*given)` gives, made and run in another process.

    `make`, `given` and what the job returns are pickled; so `make` is a function of a module. The process is a daemon:
    it ends with this one, and has no processes of its own by `multiprocessing`.
    """

    def __init__(self, make: Callable[..., Job], *given: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, given), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self) -> Any:
        """What the job returns.

        Raises:
            RuntimeError: the job, or making it, failed; what it said is on stderr.
        """
        return self._asked(None)

    def seconds(self, lead: int) -> float:
        """How long the job takes there, after `lead` runs that are not timed.

        Raises:
            RuntimeError: as `__call__`.
        """
        return float(self._asked(lead))

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def _asked(self, lead: int | None) -> Any:
        try:
            self._pipe.send(lead)
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise RuntimeError(f"the process of a job ended with exit code {self._process.exitcode}") from error


def interleave_alone(jobs: Mapping[str, Alone], *, rounds: int, lead: int) -> dict[str, Timing]:
    """As `benchmarks.interleave.interleave`; each is timed in its own process, while the others wait."""
    return in_turn(jobs, lambda name: jobs[name].seconds(lead), rounds)


def _serve(pipe: Connection, make: Callable[..., Job], given: tuple[Any, ...]) -> None:
    job = make(*given)
    while True:
        try:
            lead = pipe.recv()
        except EOFError:
            return
        pipe.send(job() if lead is None else seconds(always(job), lead))
