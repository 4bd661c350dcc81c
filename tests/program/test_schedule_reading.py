"""Reading a scheduler: it is never changed, what is not affine is seen, and options go where they belong."""

from __future__ import annotations

import threading

import diffusers
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from graphopt.errors import UnsupportedError
from graphopt.program.schedule import Schedule


class Own(SchedulerMixin):
    """A scheduler of the smallest kind, whose update is given."""

    def __init__(self, update, timesteps=3):
        self.update, self.count, self.config = update, timesteps, {}

    @classmethod
    def from_config(cls, config):
        raise NotImplementedError

    def set_timesteps(self, num_inference_steps):
        self.timesteps = torch.arange(num_inference_steps, 0, -1)

    def step(self, model_output, timestep, sample, return_dict=True, strength=1.0):
        return (self.update(sample, model_output, strength),)


def own(update) -> Own:
    class Fresh(Own):
        @classmethod
        def from_config(cls, config):
            return cls(update)

    return Fresh(update)


def read_own(update, **options) -> Schedule:
    return Schedule.from_diffusers(own(update), 3, **options)


def test_an_affine_update_is_read_as_it_is():
    schedule = read_own(lambda x, m, strength: 0.5 * x - strength * m, strength=0.25)
    np.testing.assert_allclose(schedule.transition[:, 0, 0], 0.5, rtol=1e-12)
    np.testing.assert_allclose(schedule.model_gain[:, 0], -0.25, rtol=1e-12)
    np.testing.assert_array_equal(schedule.timesteps, [3, 2, 1])
    assert schedule.timestep_dtype == "int64"
    assert schedule.live_tensors == 1
    assert schedule.state_names == ("x",)


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (lambda x, m, s: x * x.abs() + m, "other coefficients|do not add up"),
        (lambda x, m, s: torch.tanh(x) + m, "other coefficients|do not add up"),
        (lambda x, m, s: x + m + 1.0, "do not add up|other coefficients"),
        (lambda x, m, s: x + x * m, "do not add up"),
        (lambda x, m, s: x / x.norm() + m, "not affine"),
        (lambda x, m, s: x - x.mean() + m, "do not add up"),
        (lambda x, m, s: x.roll(1, -1) + m, "do not add up"),
        (lambda x, m, s: torch.where(x > 10, x, 2 * x) + m, "not affine"),
        (lambda x, m, s: x.clamp(-1, 1) + m.clamp(-2, 2), "clamps more than once"),
        (lambda x, m, s: x.clamp(min=0) + m, "bounds"),
        (lambda x, m, s: x + torch.rand(x.shape), "rand.*not normal noise"),
        (lambda x, m, s: x + torch.randn(x.shape[-1]), "draws noise of shape"),
        (lambda x, m, s: x + torch.randn(2, 3).sum(), r"draws noise of shape \(2, 3\)"),
        (lambda x, m, s: x + m * float("nan"), "not finite"),
        (lambda x, m, s: (x + m)[..., :1], "made shape"),
        (lambda x, m, s: [][0], "itself fails: IndexError"),
    ],
)
def test_what_is_not_affine_is_refused(update, reason):
    with pytest.raises(UnsupportedError, match=reason):
        read_own(update)


def test_a_clamp_is_read_with_its_argument_bounds_and_effect():
    schedule = read_own(lambda x, m, strength: 0.5 * x + 2 * (x - 3 * m).clamp(-1.5, 2.5))
    assert schedule.clip is not None
    np.testing.assert_array_equal(schedule.clip.state[:, 0], 1)
    np.testing.assert_array_equal(schedule.clip.model, -3)
    np.testing.assert_array_equal(schedule.clip.gain[:, 0], 2)
    np.testing.assert_array_equal(schedule.clip.low, -1.5)
    np.testing.assert_array_equal(schedule.clip.high, 2.5)
    np.testing.assert_allclose(schedule.transition[:, 0, 0], 0.5, rtol=1e-12)


def test_the_callers_scheduler_is_not_changed():
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(7)
    before = {key: str(value) for key, value in vars(scheduler).items()}
    Schedule.from_diffusers(scheduler, 20)
    assert {key: str(value) for key, value in vars(scheduler).items()} == before


def test_a_shift_set_by_hand_is_kept():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    unshifted = Schedule.from_diffusers(scheduler, 5).timesteps
    scheduler.set_shift(3.0)
    shifted = Schedule.from_diffusers(scheduler, 5).timesteps
    scheduler.set_timesteps(5)
    np.testing.assert_array_equal(shifted, scheduler.timesteps.double().numpy())
    assert (shifted[1:] > unshifted[1:]).all()


def test_draws_of_other_threads_stay_their_own():
    """Noise is caught in the thread that reads, and nowhere else."""
    drawn, stop = [], threading.Event()

    def draw():
        generator = torch.Generator().manual_seed(0)
        while not stop.is_set() or not drawn:
            drawn.append(torch.randn(4, generator=generator))

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        schedule = Schedule.from_diffusers(diffusers.DDPMScheduler(), 50)
    finally:
        stop.set()
        thread.join()
    assert schedule.total_draws == 49
    generator = torch.Generator().manual_seed(0)
    assert all(torch.equal(noise, torch.randn(4, generator=generator)) for noise in drawn)


def test_reading_leaves_torchs_random_state_alone():
    before = torch.get_rng_state()
    Schedule.from_diffusers(diffusers.DDPMScheduler(), 5)
    assert torch.equal(torch.get_rng_state(), before)


def test_unused_draws_are_counted():
    schedule = Schedule.from_diffusers(diffusers.EulerAncestralDiscreteScheduler(), 5)
    assert schedule.draws.tolist() == [1, 1, 1, 1, 1]
    assert not schedule.noise_gain[-1].any()


def test_a_start_in_the_middle_is_that_part_of_the_schedule():
    scheduler = diffusers.DDIMScheduler()
    whole, part = Schedule.from_diffusers(scheduler, 10), Schedule.from_diffusers(scheduler, 10, begin_index=4)
    np.testing.assert_array_equal(part.timesteps, whole.timesteps[4:])
    np.testing.assert_array_equal(part.model_gain, whole.model_gain[4:])
    assert part.step_index.tolist() == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("begin_index", [-1, 10, 99])
def test_a_start_outside_the_schedule_is_refused(begin_index):
    with pytest.raises(UnsupportedError, match="begin_index"):
        Schedule.from_diffusers(diffusers.DDIMScheduler(), 10, begin_index=begin_index)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"etta": 1.0}, "takes no etta; .*eta"),
        ({"mu": 1.0}, "takes no mu"),
        ({"sigmas": [1.0, 0.5]}, "takes no sigmas"),
        ({"generator": torch.Generator()}, "give it to run"),
        ({"variance_noise": torch.zeros(1)}, "given to run"),
    ],
)
def test_options_that_the_scheduler_does_not_take_are_refused(options, reason):
    with pytest.raises(UnsupportedError, match=reason):
        Schedule.from_diffusers(diffusers.DDIMScheduler(), 10, **options)


@pytest.mark.parametrize("thing", [None, "DDIMScheduler", torch.nn.Linear(1, 1)])
def test_what_is_no_scheduler_is_refused(thing):
    with pytest.raises(UnsupportedError, match="no diffusers scheduler"):
        Schedule.from_diffusers(thing, 10)


def test_no_number_of_steps_is_refused_by_the_scheduler_itself():
    with pytest.raises(UnsupportedError, match="set_timesteps: the scheduler itself fails"):
        Schedule.from_diffusers(diffusers.DDIMScheduler())


def test_float32_draws_are_told():
    sde = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    assert Schedule.from_diffusers(sde, 5).noise_dtype == "float32"
    assert Schedule.from_diffusers(diffusers.DDPMScheduler(), 5).noise_dtype == "sample"
