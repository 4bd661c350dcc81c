"""Jobs run, and are timed, in processes of their own."""

import os
import time
from functools import partial

import pytest

from benchmarks.alone import Alone, interleave_alone


def test_a_job_runs_in_another_process_and_returns_to_this_one():
    job = Alone(partial, os.getpid)
    first, second = job(), job()
    job.close()
    assert first == second != os.getpid()


def test_jobs_are_timed_where_they_run():
    jobs = {name: Alone(partial, time.sleep, seconds) for name, seconds in (("a", 0.0), ("b", 0.05))}
    timings = interleave_alone(jobs, rounds=2, lead=1)
    for job in jobs.values():
        job.close()
    assert min(timings["b"].samples) >= 0.05 and len(timings["a"].samples) == 2


def test_a_job_that_fails_ends_with_an_error(capfd):
    job = Alone(partial, int, "seven")
    with pytest.raises(RuntimeError, match="exit code 1"):
        job()
    assert "invalid literal" in capfd.readouterr().err
