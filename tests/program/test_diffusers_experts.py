"""Accelerated pipelines of Wan 2.2: both transformers are bodies of one program."""

import copy

import pytest
import torch
from diffusers_pairs import register_backend
from wan_pairs import NEGATIVE, NOISE, SCHEDULERS, TEXT, distance, sampled, transformer, wan

from graphopt.diffusers import accelerate

BOUND = 1e-5
STEPS = 6


class Both:
    """A pipeline and its accelerated copy."""

    def __init__(self, plain, **options):
        register_backend()
        self.plain = plain
        self.fast = accelerate(plain, **{"passes": "", "backend": "as-it-is", "verify": "off", **options})

    def error(self, scale=4.0, scale_2=3.0, steps=STEPS):
        return distance(sampled(self.fast, steps, scale, scale_2), sampled(self.plain, steps, scale, scale_2))

    @property
    def reason(self):
        return self.fast.graphopt_report.last.reason

    @property
    def compiled(self):
        return len(self.fast.graphopt_report.compiled)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_both_transformers_run_as_one_program_and_are_compiled_once(scheduler):
    both = Both(wan(scheduler))
    # Different scales, one for both, none at all, other steps.
    for request in ({}, {"scale": 5.0, "scale_2": None}, {"scale": 2.0, "scale_2": 6.5}, {"steps": 4}):
        assert both.error(**request) <= BOUND and both.reason == ""
    assert both.compiled == 2
    assert both.error(scale=1.0, scale_2=1.0) <= BOUND and both.reason == ""


def test_on_onnxruntime_one_of_them_is_open_at_a_time():
    options = {"backend": "onnxruntime", "low_memory": True, "threads": 1}
    both = Both(wan("UniPC"), passes="hoist", verify="match", **options)
    for scale in (4.0, 6.0):
        assert both.error(scale=scale) <= BOUND and both.reason == ""
    assert both.compiled == 2


def test_a_callback_runs_both_step_by_step():
    both = Both(wan("flow match Euler"))
    request = {
        "prompt_embeds": TEXT, "negative_prompt_embeds": NEGATIVE, "latents": NOISE, "num_inference_steps": STEPS,
        "height": 32, "width": 32, "num_frames": 5, "guidance_scale": 4.0, "guidance_scale_2": 3.0,
        "output_type": "latent", "callback_on_step_end": lambda pipe, step, time, tensors: tensors,
    }  # fmt: skip
    assert distance(both.fast(**request).frames, both.plain(**request).frames) <= BOUND
    assert both.reason == "callback_on_step_end is given" and both.compiled == 2


def test_a_transformer_that_no_step_calls_is_not_compiled():
    both = Both(wan("UniPC", boundary_ratio=0.1))
    assert both.error() <= BOUND and both.reason == "" and both.compiled == 1


def test_written_weights_of_the_second_transformer_are_noticed():
    both = Both(wan("UniPC", transformer_2=copy.deepcopy(transformer(2))))
    assert both.error() <= BOUND
    before = sampled(both.fast, STEPS, 4.0, 3.0)
    with torch.no_grad():
        for weight in both.plain.transformer_2.parameters():
            weight.mul_(1.1)
    assert both.error() <= BOUND and both.reason == ""
    assert distance(sampled(both.fast, STEPS, 4.0, 3.0), before) > 1e-3


def test_a_second_transformer_may_be_exchanged():
    both = Both(wan("UniPC"))
    assert both.error() <= BOUND
    both.plain.transformer_2 = both.fast.transformer_2 = transformer(5, num_layers=2)
    assert both.error() <= BOUND and both.reason == ""
