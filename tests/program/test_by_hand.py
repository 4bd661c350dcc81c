"""Schedulers that somebody changed by hand are told from those that have merely run."""

from __future__ import annotations

import copy
from typing import Any

import diffusers
import pytest
import torch

from graphopt.errors import UnsupportedError
from graphopt.program.by_hand import changed_by_hand
from graphopt.program.schedule import Schedule

RUN = (
    *("CMStochasticIterative", "CogVideoXDDIM", "DDIM", "DDIMInverse", "DDIMParallel", "DDPM", "DDPMParallel"),
    *("DEISMultistep", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep", "EDMEuler"),
    *("EDMDPMSolverMultistep", "EulerAncestralDiscrete", "EulerDiscrete", "FlowMatchEulerDiscrete", "TCD"),
    *("FlowMatchHeunDiscrete", "FlowMatchLCM", "HeunDiscrete", "IPNDM", "KDPM2AncestralDiscrete", "KDPM2Discrete"),
    *("LCM", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep"),
)


@pytest.mark.parametrize("name", RUN)
def test_a_scheduler_that_has_run_is_none_that_was_changed(name: str):
    scheduler = getattr(diffusers, f"{name}Scheduler")()
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 4, 4, generator=generator)
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, timestep)
        x = scheduler.step(0.1 * torch.randn(x.shape, generator=generator), timestep, x).prev_sample
    again, fresh = copy.deepcopy(scheduler), type(scheduler).from_config(scheduler.config)
    for each in (again, fresh):
        each.set_timesteps(10)
    assert changed_by_hand(again, fresh) is None


class Damped(diffusers.DDIMScheduler):
    """As people write them: with a number of its own, which its configuration does not keep."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gain = 1.0

    def step(self, model_output: Any, timestep: Any, sample: Any, return_dict: bool = True) -> Any:
        return super().step(self.gain * model_output, timestep, sample, return_dict=return_dict)


def written(scheduler: Any, name: str, value: Any) -> Any:
    setattr(scheduler, name, value)
    return scheduler


def test_a_schedule_is_not_read_where_numbers_would_be_lost():
    assert len(Schedule.from_diffusers(Damped(clip_sample=False), 4)) == 4
    with pytest.raises(UnsupportedError, match="Damped: its gain is not what its configuration gives"):
        Schedule.from_diffusers(written(Damped(clip_sample=False), "gain", 0.5), 4)
    flatter = written(diffusers.DDIMScheduler(clip_sample=False), "alphas_cumprod", torch.linspace(0.99, 0.01, 1000))
    with pytest.raises(UnsupportedError, match="its alphas_cumprod is not what its configuration gives"):
        Schedule.from_diffusers(flatter, 4)


def test_a_schedule_is_not_read_where_a_method_of_the_scheduler_was_replaced():
    calm = written(diffusers.DDPMScheduler(), "_get_variance", lambda *args, **kwargs: torch.tensor(1e-20))
    with pytest.raises(UnsupportedError, match="its _get_variance is not what its configuration gives"):
        Schedule.from_diffusers(calm, 4)


def test_numbers_that_the_set_up_makes_anew_do_not_count():
    scheduler = diffusers.EulerDiscreteScheduler()
    scheduler.set_timesteps(7)
    scheduler.sigmas = scheduler.sigmas * 2
    expected = Schedule.from_diffusers(diffusers.EulerDiscreteScheduler(), 4)
    assert (Schedule.from_diffusers(scheduler, 4).timesteps == expected.timesteps).all()


def test_an_entry_of_the_configuration_that_was_written_after_the_scheduler_was_made_counts():
    written_later = diffusers.DPMSolverMultistepScheduler()
    written_later.register_to_config(prediction_type="v_prediction")
    expected = Schedule.from_diffusers(diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"), 4)
    found = Schedule.from_diffusers(written_later, 4)
    assert found.prediction_type == "v_prediction"
    assert (found.model_gain == expected.model_gain).all() and (found.transition == expected.transition).all()
