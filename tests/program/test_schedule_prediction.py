"""A schedule for one prediction type, converted, is that of a model of another type."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from benchmarks.schedule_cases import FLOW, ZERO_SNR, Case, tanh_net
from graphopt.errors import UnsupportedError
from graphopt.program.prediction import PREDICTION_TYPES, clean_and_noise

CASES = [
    Case("DDIM", steps=8),
    Case("DDIM", steps=8, config={"clip_sample": False, "prediction_type": "v_prediction"}),
    Case("DDPM", steps=8),
    Case("DPMSolverMultistep", steps=8),
    Case("DPMSolverMultistep", steps=8, config=FLOW),
    Case("UniPCMultistep", steps=8),
    Case("EulerDiscrete", steps=8),
    Case("EulerAncestralDiscrete", steps=8),
    Case("KDPM2Discrete", steps=8),
    Case("HeunDiscrete", steps=8),
    Case("LCM", steps=4),
    Case("FlowMatchEulerDiscrete", options={"begin_index": 3}),
    Case("FlowMatchHeunDiscrete", options={"begin_index": 4}),
]


def predicting(schedule, wanted, given):
    """`given`, a model of the schedule's type, as a model of `wanted`: written from the definitions, not the code."""
    row = iter(range(len(schedule)))

    def model(x, t):
        j = next(row)
        a, s, x_unscaled = schedule.signal[j], schedule.sigma[j], x / schedule.input_scale[j]
        m, r = given(x, t), np.hypot(schedule.signal[j], schedule.sigma[j])
        image = {
            "epsilon": lambda: (x_unscaled - s * m) / a,
            "sample": lambda: m,
            "v_prediction": lambda: (a * x_unscaled - s * r * m) / r**2,
            "flow_prediction": lambda: (x_unscaled - s * m) / (a + s),
        }[schedule.prediction_type]()
        noise = (x_unscaled - a * image) / s
        return {
            "epsilon": noise,
            "sample": image,
            "v_prediction": (a * noise - s * image) / r,
            "flow_prediction": noise - image,
        }[wanted]

    return model


@pytest.mark.parametrize("wanted", PREDICTION_TYPES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_converted_schedule_with_converted_model_is_the_original(case, wanted):
    schedule = case.read()
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((1, 2, 4, 4)) * schedule.init_noise_sigma
    noise = rng.standard_normal((schedule.total_draws, *sample.shape))
    expected = schedule.run(tanh_net, sample, noise=noise)
    converted = schedule.convert(wanted)
    found = converted.run(predicting(schedule, wanted, tanh_net), sample, noise=noise)
    assert converted.prediction_type == wanted
    assert converted.live_tensors == schedule.live_tensors
    assert np.abs(found - expected).max() <= 1e-9 * max(1, np.abs(expected).max())


@pytest.mark.parametrize(
    ("case", "wanted"),
    [
        (Case("DDIM"), "v_prediction"),
        (Case("DDIM"), "sample"),
        (Case("DDPM"), "sample"),
        (Case("DPMSolverMultistep"), "v_prediction"),
        (Case("UniPCMultistep"), "sample"),
        (Case("SASolver"), "v_prediction"),
        (Case("EulerDiscrete"), "v_prediction"),
        (Case("EulerAncestralDiscrete"), "v_prediction"),
        (Case("KDPM2AncestralDiscrete"), "v_prediction"),
        (Case("HeunDiscrete", config={"clip_sample": True}), "sample"),
        (Case("LMSDiscrete"), "v_prediction"),
        (Case("TCD", steps=4), "sample"),
    ],
    ids=lambda value: value.title if isinstance(value, Case) else value,
)
def test_converted_schedule_is_what_the_scheduler_does_with_that_type(case, wanted):
    """The scheduler's own implementation of the other type, to the float32 that it tabulates in."""
    converted = case.read().convert(wanted)
    native = dataclasses.replace(case, config={**case.config, "prediction_type": wanted}).read()
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((1, 2, 4, 4)) * native.init_noise_sigma
    noise = rng.standard_normal((native.total_draws, *sample.shape))
    expected = native.run(tanh_net, sample, noise=noise)
    found = converted.run(tanh_net, sample, noise=noise)
    assert np.abs(found - expected).max() <= 2e-6 * max(1, np.abs(expected).max())


def test_there_and_back_is_the_same():
    schedule = Case("DPMSolverMultistep").read()
    back = schedule.convert("v_prediction").convert("epsilon")
    np.testing.assert_allclose(back.model_gain, schedule.model_gain, rtol=1e-12)
    np.testing.assert_allclose(back.transition, schedule.transition, rtol=1e-9, atol=1e-12)


def test_state_that_holds_old_predictions_says_so():
    schedule = Case("DEISMultistep").read()
    assert schedule.state_names == ("x", "m[-1]")
    assert schedule.convert("sample").state_names == ("x", "epsilon[-1]")


def test_pure_noise_does_not_say_what_the_image_is():
    with pytest.raises(UnsupportedError, match="row 0: .* signal 0 .* epsilon prediction does not determine"):
        Case("DDIM", config={"clip_sample": False, **ZERO_SNR}).read().convert("epsilon")


@pytest.mark.parametrize("case", [Case("IPNDM"), Case("EDMEuler"), Case("DDIMInverse")], ids=lambda case: case.title)
def test_schedulers_of_their_own_parameterisation_are_not_converted(case):
    schedule = case.read()
    assert schedule.signal is None
    with pytest.raises(UnsupportedError, match="convert"):
        schedule.convert("sample")


def test_unknown_types_are_refused():
    with pytest.raises(UnsupportedError, match="'noise' cannot be converted; known are epsilon"):
        Case("DDIM").read().convert("noise")


@pytest.mark.parametrize("kind", PREDICTION_TYPES)
def test_image_and_noise_come_back_from_sample_and_prediction(kind):
    rng = np.random.default_rng(0)
    signal, sigma = rng.uniform(0.1, 1, 50), rng.uniform(0.1, 1, 50)
    image, noise = rng.normal(size=(2, 50))
    prediction = {
        "epsilon": noise,
        "sample": image,
        "v_prediction": (signal * noise - sigma * image) / np.sqrt(signal**2 + sigma**2),
        "flow_prediction": noise - image,
    }[kind]
    both = clean_and_noise(kind, signal, sigma) @ np.stack([signal * image + sigma * noise, prediction], -1)[..., None]
    np.testing.assert_allclose(both[..., 0], np.stack([image, noise], -1), rtol=1e-9, atol=1e-12)
