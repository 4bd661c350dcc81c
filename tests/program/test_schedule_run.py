"""Running a schedule: torch and numpy, given and drawn noise, generators in lists, callbacks."""

from __future__ import annotations

import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch

from benchmarks.schedule_cases import Case, tanh_net, trajectory
from graphopt.errors import UnsupportedError
from graphopt.program.schedule import Schedule

SHAPE = (2, 3, 4, 4)


@pytest.fixture(scope="module")
def ddpm() -> Schedule:
    return Schedule.from_diffusers(diffusers.DDPMScheduler(), 6)


@pytest.fixture(scope="module")
def dpm() -> Schedule:
    return Schedule.from_diffusers(diffusers.DPMSolverMultistepScheduler(), 6)


def test_numpy_and_torch_agree(dpm):
    sample = np.random.default_rng(0).standard_normal(SHAPE)
    ours, theirs = dpm.run(tanh_net, sample), dpm.run(tanh_net, torch.from_numpy(sample))
    assert isinstance(ours, np.ndarray)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_sample_keeps_its_dtype(ddpm, dtype):
    sample = np.random.default_rng(0).standard_normal(SHAPE).astype(dtype)
    assert ddpm.run(tanh_net, sample, np.random.default_rng(1)).dtype == dtype
    drawn = ddpm.run(tanh_net, torch.from_numpy(sample), torch.Generator().manual_seed(1))
    assert drawn.dtype == getattr(torch, dtype)


def test_given_noise_is_that_of_the_generator_in_its_order(ddpm):
    sample = torch.zeros(SHAPE)
    generator = torch.Generator().manual_seed(3)
    noise = torch.stack([torch.randn(SHAPE, generator=generator) for _ in range(ddpm.total_draws)])
    drawn = ddpm.run(tanh_net, sample, torch.Generator().manual_seed(3))
    assert torch.equal(ddpm.run(tanh_net, sample, noise=noise), drawn)


def test_a_list_of_generators_gives_each_image_what_it_would_get_alone(ddpm):
    sample = torch.zeros(SHAPE)
    together = ddpm.run(tanh_net, sample, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    for image, seed in enumerate((1, 2)):
        alone = ddpm.run(tanh_net, sample[:1], torch.Generator().manual_seed(seed))
        torch.testing.assert_close(together[image : image + 1], alone, rtol=0, atol=1e-6)


def test_a_list_of_generators_draws_as_diffusers_does(ddpm):
    sample = torch.zeros(SHAPE)

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (5, 6)]

    expected = trajectory(Case("DDPM", steps=6), tanh_net, sample, generators())[-1]
    torch.testing.assert_close(ddpm.run(tanh_net, sample, generators()), expected, rtol=1e-5, atol=1e-5)


def test_an_array_takes_a_torch_generator_too(ddpm):
    sample = np.zeros(SHAPE, np.float32)
    array = ddpm.run(tanh_net, sample, torch.Generator().manual_seed(3))
    tensor = ddpm.run(tanh_net, torch.from_numpy(sample), torch.Generator().manual_seed(3))
    np.testing.assert_allclose(array, tensor.numpy(), rtol=1e-5, atol=1e-5)


def test_the_model_gets_the_schedulers_kind_of_timestep(dpm):
    seen = []

    def model(x, t):
        seen.append(t)
        return x

    dpm.run(model, torch.zeros(SHAPE))
    assert all(t.dtype == torch.int64 and t.ndim == 0 for t in seen)
    assert [int(t) for t in seen] == dpm.timesteps.tolist()
    seen.clear()
    flow = Schedule.from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler(), 3)
    flow.run(model, np.zeros(SHAPE))
    assert all(t.dtype == np.float32 for t in seen)


def test_the_model_sees_the_scaled_sample():
    euler = Schedule.from_diffusers(diffusers.EulerDiscreteScheduler(), 3)
    seen = []
    sample = torch.ones(SHAPE) * euler.init_noise_sigma

    def model(x, t):
        seen.append(x)
        return x

    euler.run(model, sample)
    torch.testing.assert_close(seen[0], sample / (euler.sigma[0] ** 2 + 1) ** 0.5)


def test_a_callback_sees_every_row_and_may_change_the_sample(dpm):
    rows, sample = [], torch.ones(SHAPE)
    unchanged = dpm.run(tanh_net, sample, callback=lambda row, t, x: rows.append((row, float(t))))
    assert rows == list(enumerate(dpm.timesteps))
    assert torch.equal(unchanged, dpm.run(tanh_net, sample))
    last = len(dpm) - 1
    changed = dpm.run(tanh_net, sample, callback=lambda row, t, x: x + 1 if row == last else None)
    assert torch.equal(changed, unchanged + 1)


def test_the_given_sample_is_left_alone(ddpm):
    sample = torch.ones(SHAPE)
    ddpm.run(tanh_net, sample, torch.Generator().manual_seed(0))
    assert torch.equal(sample, torch.ones(SHAPE))


def test_noise_of_another_shape_is_refused(ddpm):
    with pytest.raises(UnsupportedError, match=r"shape \(2, 2, 3, 4, 4\) instead of \(5, 2, 3, 4, 4\)"):
        ddpm.run(tanh_net, torch.zeros(SHAPE), noise=torch.zeros(2, *SHAPE))


def test_noise_and_a_generator_together_are_refused(ddpm):
    with pytest.raises(UnsupportedError, match="give one of them"):
        ddpm.run(tanh_net, torch.zeros(SHAPE), torch.Generator(), noise=torch.zeros(5, *SHAPE))


def test_generators_for_another_batch_are_refused(ddpm):
    with pytest.raises(UnsupportedError, match="3 generators are given for a batch of 2"):
        ddpm.run(tanh_net, torch.zeros(SHAPE), [torch.Generator() for _ in range(3)])


def test_a_model_with_doubled_channels_is_refused(ddpm):
    with pytest.raises(UnsupportedError, match="one prediction of the sample's shape"):
        ddpm.run(lambda x, t: torch.cat([x, x], 1), torch.zeros(SHAPE), torch.Generator())


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = sys.modules["diffusers"] = None
import numpy as np
from graphopt.errors import MissingExtraError
from graphopt.program.schedule import Schedule
schedule = Schedule.load(sys.argv[1])
print(schedule.run(lambda x, t: np.tanh(x), np.ones((1, 2)), np.random.default_rng(0)).shape)
try:
    Schedule.from_diffusers(None, 3)
except MissingExtraError as error:
    print(error)
"""


def test_a_saved_schedule_runs_where_there_is_no_torch(ddpm, tmp_path):
    ddpm.save(tmp_path / "schedule.json")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "schedule.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["(1, 2)", "Reading a scheduler needs torch: pip install graphopt[diffusers]"]
