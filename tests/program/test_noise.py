"""Noise in numpy is the noise of torch, draw by draw."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import ModelError, UnsupportedError
from graphopt.program.noise import TorchNormal, draw_noise

SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple) | st.integers(0, 3000).map(lambda n: (n,))
DRAWS = st.lists(st.tuples(SHAPES, st.sampled_from(["float32", "float64"])), min_size=1, max_size=6)
SEEDS = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, 2**32 - 1, 2**32, 2**32 + 1])


def torch_generator(seed):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=150, deadline=None)
@given(SEEDS, DRAWS)
def test_consecutive_draws_equal_those_of_torch(seed, draws):
    ours, generator = TorchNormal(seed), torch_generator(seed)
    for shape, dtype in draws:
        expected = torch.randn(shape, generator=generator, dtype=getattr(torch, dtype)).numpy()
        drawn = ours.randn(shape, dtype)
        assert drawn.dtype == expected.dtype and drawn.shape == expected.shape
        assert np.abs(drawn - expected).max(initial=0.0) <= (1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("size", [15, 16, 17, 31, 32, 4 * 64 * 64, 100_003])
def test_the_state_stays_in_step_over_draws_of_all_paths(size):
    ours, generator = TorchNormal(5), torch_generator(5)
    for count in (1, size, 3, size, 16):
        expected = torch.randn(count, generator=generator).numpy()
        assert np.abs(ours.randn((count,)) - expected).max() <= 1e-6


def test_a_dtype_that_torch_rounds_in_its_own_way_is_refused():
    with pytest.raises(UnsupportedError, match="float16 cannot be drawn as torch draws it"):
        TorchNormal(0).randn((4,), "float16")


def test_no_torch_is_needed():
    code = "import sys; sys.modules['torch'] = None; from graphopt.program.noise import TorchNormal as T; "
    result = subprocess.run(
        [sys.executable, "-c", code + "print(T(3).randn((20,)).sum())"], capture_output=True, text=True, check=True
    )
    assert float(result.stdout) == pytest.approx(float(torch.randn(20, generator=torch_generator(3)).sum()), abs=1e-5)


# Three rows; row 0 draws twice and uses the second, row 1 draws once for nothing, row 2 uses both.
GAINS = np.zeros((3, 2, 2))
GAINS[0, 0, 1] = GAINS[2, 1, 0] = GAINS[2, 0, 1] = 0.5
SCHEDULE = SimpleNamespace(noise_gain=GAINS, draws=np.array([2, 1, 2]), noise_dtype="sample")
SHAPE = (2, 3, 4)


def expected_noise(draw):
    drawn = [draw() for _ in range(5)]
    return np.stack([drawn[1], drawn[3], drawn[4]])


@pytest.mark.parametrize("make", [lambda: 7, lambda: np.int64(7), lambda: TorchNormal(7), lambda: torch_generator(7),
                                  lambda: [torch_generator(7)], lambda: [7]])  # fmt: skip
def test_unused_draws_are_drawn_and_dropped_whatever_the_generator(make):
    generator = torch_generator(7)
    expected = expected_noise(lambda: torch.randn(SHAPE, generator=generator).numpy())
    assert np.abs(draw_noise(SCHEDULE, SHAPE, "float32", make()) - expected).max() <= 1e-6


@pytest.mark.parametrize("make", [torch_generator, TorchNormal, int])
def test_one_generator_for_each_batch_element_draws_as_diffusers_does(make):
    generators = [torch_generator(7), torch_generator(8)]
    expected = expected_noise(lambda: randn_tensor(SHAPE, generator=generators).numpy())
    assert np.abs(draw_noise(SCHEDULE, SHAPE, "float32", [make(7), make(8)]) - expected).max() <= 1e-6


def test_a_numpy_generator_draws_its_own_noise():
    source = np.random.default_rng(3)
    expected = expected_noise(lambda: source.standard_normal(SHAPE).astype(np.float32))
    assert np.array_equal(draw_noise(SCHEDULE, SHAPE, "float32", np.random.default_rng(3)), expected)


def test_without_a_generator_noise_differs_from_call_to_call():
    first, second = (draw_noise(SCHEDULE, SHAPE, "float64") for _ in range(2))
    assert first.shape == (3, *SHAPE) and first.dtype == np.float64 and not np.array_equal(first, second)


def test_noise_of_schedulers_that_draw_in_single_precision_is_cast():
    single = SimpleNamespace(noise_gain=GAINS, draws=SCHEDULE.draws, noise_dtype="float32")
    drawn = draw_noise(single, SHAPE, "float64", 7)
    assert drawn.dtype == np.float64 and np.array_equal(drawn, draw_noise(SCHEDULE, SHAPE, "float32", 7))
    assert draw_noise(single, SHAPE, "float16", 7).dtype == np.float16


@pytest.mark.parametrize(
    ("generator", "message"),
    [([1, 2, 3], "3 generators are given for a batch of 2"), ("seed", "a str is no source of noise"),
     (True, "a bool is no source"), (1.5, "a float is no source"), ([None, "x"], "a str is no source")],
)  # fmt: skip
def test_what_is_no_generator_is_refused(generator, message):
    with pytest.raises(ModelError, match=message):
        draw_noise(SCHEDULE, SHAPE, "float32", generator)


def test_a_schedule_without_noise_draws_nothing():
    silent = SimpleNamespace(noise_gain=np.zeros((4, 2, 0)), draws=np.zeros(4, dtype=np.int64), noise_dtype="sample")
    source = np.random.default_rng(3)
    assert draw_noise(silent, SHAPE, "float32", source).shape == (0, *SHAPE)
    assert source.standard_normal() == np.random.default_rng(3).standard_normal()
