"""Accelerated pipelines whose requests run as one program give what the pipelines give."""

import copy

import diffusers
import pytest
import torch
from diffusers_pairs import BOUND, images, pair, relative
from tiny_pipelines import flux, pixart, quiet, stable_diffusion, stable_diffusion_3, unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def sd(folder):
    return pair(stable_diffusion(folder))


@pytest.fixture(scope="module")
def sd3(folder):
    return pair(stable_diffusion_3(folder))


def scheduler(name, **changes):
    beta = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, name).from_config({**beta, "steps_offset": 1, "clip_sample": False, **changes})


def check(both, **request):
    assert both.error(**request) <= BOUND
    assert both.reason == ""


def test_prompts_and_seeds_in_a_row_are_never_those_of_a_request_before(sd):
    requests = [(1, "red cat", ""), (1, "blue dog", ""), (2, "blue dog", ""), (2, "blue dog", "blurry")]
    for seed, prompt, negative in requests:
        check(sd, seed=seed, prompt=prompt, negative_prompt=negative)
    first, second = (images(sd.fast, prompt=prompt) for prompt in ("red cat", "blue dog"))
    assert relative(first, second) > 100 * BOUND


def test_a_denoiser_is_compiled_once_for_its_sizes(sd):
    check(sd)
    before = sd.compiled
    for request in ({"prompt": "dog"}, {"num_inference_steps": 7}, {"guidance_scale": 2.0}, {"guidance_rescale": 0.5}):
        check(sd, **request)
    assert sd.compiled == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_with_guidance_is_as_near_to_float32_as_the_pipeline(folder, dtype):
    exact = stable_diffusion(folder)
    both = pair(copy.deepcopy(exact).to(dtype))
    for request in ({}, {"guidance_scale": 3.0, "guidance_rescale": 0.5}):
        expected = images(exact, **request)
        plain, fast = (relative(expected, images(pipe, **request).float()) for pipe in (both.plain, both.fast))
        assert both.reason == "" and fast <= 2 * plain


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "PNDM", "UniPCMultistep", "DEISMultistep", "LCM"])
def test_a_scheduler_that_is_set_afterwards_is_used(sd, name):
    sd.use(scheduler(f"{name}Scheduler"))
    assert type(sd.fast.scheduler).__name__ == f"{name}Scheduler"
    check(sd)
    check(sd, num_inference_steps=6, seed=3)


@pytest.mark.parametrize("offset", [0, 1])
def test_what_a_pipeline_writes_into_the_configuration_of_its_scheduler_counts(sd, offset):
    made = diffusers.DDIMScheduler(steps_offset=offset)  # clips samples, which the pipeline turns off
    own = pair(quiet(type(sd.plain)(**{**sd.plain.components, "scheduler": made}, requires_safety_checker=False)))
    assert not own.plain.scheduler.config.clip_sample and own.plain.scheduler.config.steps_offset == 1
    check(own)


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"])
def test_schedulers_with_fractional_timesteps_and_scaled_inputs(sd, name):
    sd.use(scheduler(name))
    check(sd)
    check(sd, num_inference_steps=5)


def test_random_numbers_are_drawn_as_the_pipeline_draws_them(sd):
    sd.use(scheduler("DDIMScheduler"))
    check(sd, eta=0.7)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    for pipe, generator in zip((sd.plain, sd.fast), generators, strict=True):
        images(pipe, generator=generator, eta=0.7)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    results = []
    for pipe in (sd.plain, sd.fast):
        torch.manual_seed(5)
        results.append(images(pipe, None, eta=0.7))
    assert relative(*results) <= BOUND


def test_guidance_may_be_strong_weak_rescaled_or_off(sd):
    sd.use(scheduler("DPMSolverMultistepScheduler"))
    for request in ({"guidance_scale": 12.5}, {"guidance_scale": 1.3}, {"guidance_rescale": 0.7}):
        check(sd, **request)
    check(sd, guidance_scale=1.0)


def test_sizes_may_change(sd):
    for request in ({"prompt": ["red cat", "dog"]}, {"num_images_per_prompt": 2}, {"prompt": "cat"}):
        check(sd, **request)


def test_one_generator_for_each_image(sd):
    sd.use(scheduler("EulerAncestralDiscreteScheduler", timestep_spacing="linspace"))
    results = [
        images(pipe, generator=[torch.Generator().manual_seed(s) for s in (1, 2)], prompt=["cat", "dog"])
        for pipe in (sd.plain, sd.fast)
    ]
    assert relative(*results) <= BOUND and sd.reason == ""


def test_embeddings_latents_and_decoded_images(sd):
    sd.use(scheduler("DPMSolverMultistepScheduler"))
    text = torch.randn(2, 1, 9, 16, generator=torch.Generator().manual_seed(1))
    check(sd, prompt=None, prompt_embeds=text[0], negative_prompt_embeds=text[1])
    check(sd, latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2)), seed=None)
    assert sd.error(output_type="pt") <= BOUND


def test_custom_timesteps(sd):
    sd.use(scheduler("DPMSolverMultistepScheduler"))
    check(sd, timesteps=[900, 500, 100])


def test_image_to_image_starts_at_any_strength(folder):
    both = pair(stable_diffusion(folder, diffusers.StableDiffusionImg2ImgPipeline))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for name in ("DPMSolverMultistepScheduler", "DDIMScheduler", "PNDMScheduler"):
        both.use(scheduler(name))
        for strength in (0.3, 0.8, 1.0):
            check(both, image=image, strength=strength, num_inference_steps=5)


def test_a_learned_variance_is_left_out():
    both = pair(pixart())
    for request in ({}, {"prompt": "blue dog", "negative_prompt": "blurry"}, {"guidance_scale": 2.0}):
        check(both, use_resolution_binning=False, **request)


def test_flow_matching(sd3):
    for request in ({}, {"prompt": "blue dog", "negative_prompt": "blurry"}, {"sigmas": [1.0, 0.6, 0.2]}):
        check(sd3, **request)


def test_flow_matching_with_a_shift_of_the_request(sd3):
    sd3.use(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    check(sd3)
    check(sd3, mu=0.4)
    sd3.use(diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0))
    check(sd3)


def test_guidance_by_two_calls_and_timesteps_that_the_pipeline_scales():
    both = pair(flux())
    draw = torch.Generator().manual_seed(1)
    text = {
        name: torch.randn(shape, generator=draw)
        for name, shape in {
            "prompt_embeds": (1, 5, 24), "pooled_prompt_embeds": (1, 20),
            "negative_prompt_embeds": (1, 5, 24), "negative_pooled_prompt_embeds": (1, 20),
        }.items()
    }  # fmt: skip
    for request in ({"true_cfg_scale": 2.5}, {"true_cfg_scale": 4.0, "guidance_scale": 2.0}, {"true_cfg_scale": 1.0}):
        check(both, prompt=None, height=16, width=16, **text, **request)
    assert both.compiled == 1


class OneTimestep(diffusers.DiffusionPipeline):
    """Gives its denoiser the timestep in a tensor of one number, whatever the batch."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, text, scale):
        self.scheduler.set_timesteps(3)
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for t in self.scheduler.timesteps:
            first, second = self.unet(torch.cat([sample] * 2), t[None], text).sample.chunk(2)
            sample = self.scheduler.step(first + scale * (second - first), t, sample).prev_sample
        return sample


def test_one_timestep_may_be_for_both_branches_of_guidance():
    both = pair(quiet(OneTimestep(unet(), diffusers.DDIMScheduler(clip_sample=False))))
    text = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(2))
    assert relative(both.plain(text, 3.0), both.fast(text, 3.0)) <= BOUND
    assert both.reason == ""


class Between(diffusers.DiffusionPipeline):
    """Gives its denoiser timesteps as numbers between those of the scheduler."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, text):
        self.scheduler.set_timesteps(3)
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for t in self.scheduler.timesteps:
            sample = self.scheduler.step(self.unet(sample, float(t) + 0.5, text).sample, t, sample).prev_sample
        return sample


def test_a_fractional_timestep_given_as_a_number_is_not_cut_to_the_whole_ones_of_the_scheduler():
    both = pair(quiet(Between(unet(), diffusers.DDIMScheduler(clip_sample=False))))
    text = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(2))
    assert relative(both.plain(text), both.fast(text)) <= BOUND
    assert both.reason == ""
