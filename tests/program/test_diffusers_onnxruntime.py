"""Accelerated pipelines on onnxruntime with all passes."""

import diffusers
import pytest
from diffusers_pairs import BOUND, pair
from tiny_pipelines import pixart, stable_diffusion, stable_diffusion_3

PASSES = ("hoist", "fuse-attention", "clean-up")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


def accelerated(pipe, **options):
    return pair(pipe, passes=PASSES, backend="onnxruntime", **options)


def test_stable_diffusion(folder):
    both = accelerated(stable_diffusion(folder), verify="match")
    for request in ({}, {"prompt": "blue dog", "negative_prompt": "blurry"}, {"num_inference_steps": 3, "seed": 1}):
        assert both.error(**request) <= BOUND
        assert both.reason == ""
    both.use(diffusers.DDIMScheduler.from_config(both.plain.scheduler.config, clip_sample=False))
    assert both.error(eta=0.5, guidance_rescale=0.5) <= BOUND and both.reason == ""
    for prompt in ("red cat", "blue dog"):
        assert both.error(prompt=prompt, callback_on_step_end=lambda pipe, step, time, tensors: tensors) <= BOUND
        assert both.reason == "callback_on_step_end is given"
    assert both.compiled == 1


def test_pixart():
    both = accelerated(pixart())
    for prompt in ("red cat", "blue dog"):
        assert both.error(prompt=prompt, use_resolution_binning=False) <= BOUND and both.reason == ""
    callback = {"callback": lambda step, time, latents: None}
    assert both.error(use_resolution_binning=False, **callback) <= BOUND and both.reason == "callback is given"


def test_stable_diffusion_3(folder):
    both = accelerated(stable_diffusion_3(folder), form="sessions")
    for prompt in ("red cat", "blue dog"):
        assert both.error(prompt=prompt) <= BOUND and both.reason == ""
