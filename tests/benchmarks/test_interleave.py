"""Candidates run in turn, and ratios are taken between neighbours."""

import pytest

from benchmarks.interleave import Timing, always, interleave, paired_ratio


class Clock:
    """A clock that jobs move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_every_round_runs_each_candidate_once_in_alternating_order_and_drops_the_warm_up():
    clock, order = Clock(), []

    def takes(name, seconds):
        def job():
            order.append(name)
            clock.now += seconds

        return always(job)

    timings = interleave({"a": takes("a", 1.0), "b": takes("b", 2.0)}, rounds=2, warm_up=1, clock=clock)

    assert order == ["a", "b", "b", "a", "a", "b"]
    assert timings == {"a": Timing((1.0, 1.0)), "b": Timing((2.0, 2.0))}


def test_a_candidate_may_lead_in_with_runs_that_are_not_timed():
    clock, order = Clock(), []

    def colder_after_another(name):
        def job():
            clock.now += 1.0 if order[-1:] == [name] else 5.0
            order.append(name)

        return always(job)

    jobs = {name: colder_after_another(name) for name in "ab"}
    timings = interleave(jobs, rounds=1, warm_up=0, lead=2, clock=clock)

    assert order == ["a"] * 3 + ["b"] * 3
    assert timings == {"a": Timing((1.0,)), "b": Timing((1.0,))}


def test_making_a_job_is_not_timed():
    clock = Clock()

    def prepare():
        clock.now += 100.0
        return lambda: None

    assert interleave({"a": prepare}, rounds=1, clock=clock)["a"].best == 0.0


def test_ratios_are_taken_within_a_round_so_that_a_slow_round_cancels():
    slow_round = paired_ratio(Timing((2.0, 20.0, 2.0)), Timing((1.0, 10.0, 1.0)))
    assert (slow_round.low, slow_round.median, slow_round.high) == (2.0, 2.0, 2.0)


def test_the_median_of_the_ratios_comes_with_quartiles():
    ratio = paired_ratio(Timing((1.0, 2.0, 3.0, 4.0, 5.0)), Timing((1.0,) * 5))
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 3.0, 4.0)
    assert str(ratio) == "3.00 (2.00 to 4.00)"


def test_timings_of_different_length_are_refused():
    with pytest.raises(ValueError):
        paired_ratio(Timing((1.0,)), Timing((1.0, 2.0)))
