"""Every scheduler configuration replays what diffusers does, with its noise and its clipping."""

from __future__ import annotations

import pytest

from benchmarks.schedule_cases import READ, REFUSED, Case
from benchmarks.schedules import TOLERANCE, measure
from graphopt.errors import UnsupportedError


@pytest.mark.parametrize("case", READ, ids=lambda case: case.title)
def test_the_trajectory_is_that_of_diffusers(case: Case):
    result = measure(case)
    assert result.reason == ""
    assert result.error <= TOLERANCE
    assert case.live in (None, result.live_tensors)


def test_most_kinds_of_schedulers_are_among_them():
    assert len({case.scheduler for case in READ}) >= 30
    assert len(READ) >= 58


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.title)
def test_what_cannot_be_written_is_refused_by_name(case: Case):
    with pytest.raises(UnsupportedError) as refusal:
        case.read()
    assert case.scheduler in str(refusal.value)
    assert case.refusal in str(refusal.value)


@pytest.mark.parametrize("name", ["DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler"])
def test_brownian_noise_is_refused_whether_torchsde_is_installed_or_not(name):
    from graphopt.program.schedule import Schedule

    scheduler = type(name, (), {})()
    with pytest.raises(UnsupportedError, match="increment of a Brownian path"):
        Schedule.from_diffusers(scheduler, 20)


def test_default_ddim_and_ddpm_clip_and_their_clip_acts():
    """A replay without the clip would be off by more than a half: the tolerance above is no accident."""
    import dataclasses

    import numpy as np

    from benchmarks.schedule_cases import tanh_net

    for name in ("DDIM", "DDPM"):
        schedule = Case(name).read()
        assert schedule.clip is not None
        unclipped = dataclasses.replace(
            schedule,
            clip=dataclasses.replace(schedule.clip, low=np.full(len(schedule), -1e9), high=np.full(len(schedule), 1e9)),
        )
        sample = np.random.default_rng(0).standard_normal((1, 3, 8, 8))
        noise = np.zeros((schedule.total_draws, *sample.shape))
        apart = schedule.run(tanh_net, sample, noise=noise) - unclipped.run(tanh_net, sample, noise=noise)
        assert np.abs(apart).max() > 0.5
