"""Classifier-free guidance as diffusers computes it."""

import numpy as np
import pytest
import torch

from graphopt.program.guidance import Guidance, combine

rng = np.random.default_rng(0)
WITHOUT, WITH = (rng.standard_normal((2, 3, 4, 4)) for _ in range(2))


def test_rescaled_guidance_equals_that_of_diffusers():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    without, with_ = torch.from_numpy(WITHOUT), torch.from_numpy(WITH)
    guided = without + 7.5 * (with_ - without)
    expected = rescale_noise_cfg(guided, with_, guidance_rescale=0.6).numpy()
    assert np.allclose(combine(without, with_, 7.5, 0.6).numpy(), expected, rtol=1e-13, atol=0)
    assert np.allclose(combine(WITHOUT, WITH, 7.5, 0.6), expected, rtol=1e-13, atol=0)


def test_scale_one_without_rescale_is_the_conditional_prediction():
    assert np.allclose(combine(WITHOUT, WITH, 1.0, 0.0), WITH, rtol=1e-15, atol=1e-15)


def test_single_precision_stays_single():
    assert combine(WITHOUT.astype(np.float32), WITH.astype(np.float32), 7.5, 0.5).dtype == np.float32


@pytest.mark.parametrize(
    "wrong", [{"mode": "both"}, {"rescale": 1.5}, {"rescale": -0.1}, {"rescale": "x"}, {"scale": float("nan")}]
)
def test_impossible_guidance_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Guidance(**wrong)
