"""`accelerate`: what it returns, what it leaves alone, and what it notices."""

import copy
import json

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers_pairs import BOUND, Pair, images, pair, relative
from tiny_pipelines import stable_diffusion, unet

from graphopt.diffusers import accelerate
from graphopt.errors import UnsupportedError


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return pair(stable_diffusion(tmp_path_factory.mktemp("tokenizers")))


def test_the_pipeline_that_was_given_is_left_as_it_was(sd):
    pipe = sd.plain
    components, fast = dict(pipe.components), pair(pipe).fast
    torch.manual_seed(5)
    before, drawn = images(pipe, None), torch.get_rng_state()
    torch.manual_seed(5)
    assert relative(before, images(fast, None)) <= BOUND
    assert torch.equal(torch.get_rng_state(), drawn)  # compiling draws nothing
    assert type(pipe) is diffusers.StableDiffusionPipeline and type(pipe.unet) is diffusers.UNet2DConditionModel
    assert all(pipe.components[name] is value for name, value in components.items())
    assert not hasattr(pipe, "graphopt_report")
    torch.manual_seed(5)
    assert torch.equal(images(pipe, None), before)


def test_the_result_is_a_pipeline_of_the_same_class_with_the_same_weights(sd, tmp_path):
    fast, pipe = sd.fast, sd.plain
    assert isinstance(fast, diffusers.StableDiffusionPipeline) and type(fast).__name__ == type(pipe).__name__
    assert fast.vae is pipe.vae and fast.text_encoder is pipe.text_encoder
    assert all(a is b for a, b in zip(fast.unet.parameters(), pipe.unet.parameters(), strict=True))
    folders = {name: tmp_path / name for name in ("plain", "fast")}
    pipe.save_pretrained(folders["plain"])
    fast.save_pretrained(folders["fast"])
    for file in ("model_index.json", "scheduler/scheduler_config.json", "unet/config.json"):
        assert json.loads((folders["fast"] / file).read_text()) == json.loads((folders["plain"] / file).read_text())


def test_other_pipelines_are_made_from_its_components(sd):
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    made, expected = (
        diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        for pipe in (sd.fast, sd.plain)
    )
    results = [images(pipe, image=image, strength=0.8) for pipe in (expected, made)]
    assert relative(*results) <= BOUND
    assert sd.error() <= BOUND


def test_written_weights_are_noticed(sd):
    assert sd.error() <= BOUND
    before, weight = images(sd.fast), sd.plain.unet.down_blocks[0].attentions[0].proj_out.weight
    with torch.no_grad():
        weight.mul_(1.5)
    assert sd.error() <= BOUND and relative(before, images(sd.fast)) > 10 * BOUND
    weight.data = weight.data / 1.5
    assert sd.error() <= BOUND and relative(before, images(sd.fast)) <= BOUND


def test_changed_modules_are_noticed(sd):
    before = images(sd.fast)
    sd.fast.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    assert sd.error() <= BOUND and relative(before, images(sd.fast)) > 10 * BOUND
    sd.fast.disable_freeu()
    assert relative(before, images(sd.fast)) <= BOUND


class Scaled:
    """An attention processor with scales that are written in place, as those of IP adapters and LoRA are."""

    def __init__(self):
        self.inner = AttnProcessor2_0()
        self.scales = {"first": [1.0]}
        self.shares = np.ones(2)

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs) * (self.scales["first"][0] * float(self.shares[0]))


def test_scales_that_processors_hold_are_noticed(sd):
    own = Pair(copy.copy(sd.plain), pair(sd.plain).fast)
    own.plain.unet = own.fast.unet = unet(seed=98)
    own.plain.unet.set_attn_processor(Scaled())
    assert own.error() <= BOUND
    before, processor = images(own.fast), next(iter(own.plain.unet.attn_processors.values()))
    processor.scales["first"][0] = 0.2
    assert own.error() <= BOUND and relative(before, images(own.fast)) > 10 * BOUND
    processor.scales = {"first": [1.0]}
    assert relative(before, images(own.fast)) <= BOUND
    processor.shares[0] = 0.2
    assert own.error() <= BOUND and relative(before, images(own.fast)) > 10 * BOUND


def test_scales_that_a_callback_writes_count_from_the_next_step_on(sd):
    own = Pair(copy.copy(sd.plain), pair(sd.plain).fast)
    own.plain.unet = own.fast.unet = unet(seed=98)
    processor = Scaled()
    own.plain.unet.set_attn_processor(processor)

    def fade(pipe, step, timestep, tensors):
        processor.scales["first"][0] = 1.0 if step == 3 else 0.2
        return tensors

    before = images(own.fast)
    assert own.error(callback_on_step_end=fade) <= BOUND
    assert relative(before, images(own.fast, callback_on_step_end=fade)) > 10 * BOUND
    assert relative(before, images(own.fast)) <= BOUND


def test_processors_that_the_pipeline_sets_before_its_loop_are_noticed(tmp_path):
    options = {"pag_applied_layers": ["down_blocks.0"]}
    both = pair(stable_diffusion(tmp_path, diffusers.StableDiffusionPAGPipeline, **options))
    for request in ({"pag_scale": 0.0}, {"guidance_scale": 0.0, "pag_scale": 3.0}, {"pag_scale": 0.0}):
        assert both.error(**request) <= BOUND and both.reason == ""


class Fading(diffusers.DiffusionPipeline):
    """Writes to its denoiser within its loop."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, text):
        self.scheduler.set_timesteps(3)
        sample = torch.ones(1, 4, 8, 8)
        for t in self.scheduler.timesteps:
            sample = self.scheduler.step(self.unet(sample, t, text).sample, t, sample).prev_sample
            self.unet.conv_in.weight.mul_(0.9)
        return sample


def test_a_pipeline_that_writes_to_its_denoiser_within_its_loop_is_refused(sd):
    both = pair(Fading(unet(), diffusers.DDIMScheduler()))
    with pytest.raises(UnsupportedError, match="changes its unet within its loop"):
        both.fast(torch.ones(1, 9, 16))


def test_hooks_on_a_part_of_the_denoiser_are_noticed(sd):
    before = images(sd.fast)
    hook = sd.plain.unet.conv_in.register_forward_hook(lambda module, inputs, output: output * 0.5)
    assert sd.error() <= BOUND and relative(before, images(sd.fast)) > 10 * BOUND
    hook.remove()
    assert relative(before, images(sd.fast)) <= BOUND


def test_another_denoiser_may_be_set(sd):
    own = Pair(copy.copy(sd.plain), pair(sd.plain).fast)
    own.plain.unet = own.fast.unet = unet(seed=99)
    assert own.error() <= BOUND and own.reason == ""


def test_a_copied_scheduler_is_of_its_own(sd):
    copied = copy.deepcopy(sd.fast.scheduler)
    copied.set_timesteps(3)
    assert len(copied.timesteps) == 3
    assert sd.error() <= BOUND and sd.reason == ""
    made = type(sd.fast.scheduler).from_config(sd.fast.scheduler.config)
    made.set_timesteps(2)
    assert len(sd.fast.scheduler.timesteps) == 4


def test_the_report_counts_requests_and_shows_what_was_compiled(sd):
    fast = pair(sd.plain).fast
    for request in ({}, {"prompt": "dog"}, {"callback_on_step_end": lambda pipe, step, time, tensors: tensors}):
        images(fast, **request)
    report = fast.graphopt_report
    assert dict(report.requests) == {("program", ""): 2, ("steps", "callback_on_step_end is given"): 1}
    assert report.last.mode == "steps" and len(report.compiled) == 1
    assert "2 requests as one program\n1 request step by step, because callback_on_step_end is given" in str(report)


def test_a_deep_copy_does_not_say_that_it_ran_as_a_program(sd):
    copied = copy.deepcopy(sd.fast)
    assert relative(images(sd.plain), images(copied)) <= BOUND
    assert "calls no denoiser" in copied.graphopt_report.last.reason


def test_two_of_one_pipeline_do_not_make_each_other_compile_again(sd):
    both = [pair(sd.plain) for _ in range(2)]
    for _ in range(2):
        assert all(one.error() <= BOUND and one.compiled == 1 for one in both)


def test_what_cannot_be_accelerated_is_refused(sd):
    with pytest.raises(UnsupportedError, match="accelerated already"):
        accelerate(sd.fast)
    without = {**sd.plain.components, "unet": None}
    with pytest.raises(UnsupportedError, match="StableDiffusionPipeline is no pipeline with a scheduler and a deno"):
        accelerate(diffusers.StableDiffusionPipeline(**without, requires_safety_checker=False))
    hooked = unet()
    hooked.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(UnsupportedError, match="hooks around its forward"):
        sd.fast.unet = hooked


def test_a_hook_that_the_denoiser_is_given_later_is_refused(sd):
    assert sd.error() <= BOUND
    hook = sd.plain.unet.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(UnsupportedError, match="unet has hooks around its forward"):
        images(sd.fast)
    hook.remove()
    assert sd.error() <= BOUND


def test_autocast_is_refused(sd):
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(UnsupportedError, match="autocast"):
        images(sd.fast)


def test_a_wrong_argument_is_the_pipelines_error(sd):
    for pipe in (sd.plain, sd.fast):
        with pytest.raises(ValueError, match="`prompt` has to be of type"):
            pipe(prompt=1)
        with pytest.raises(TypeError, match="multiple values"):
            pipe("cat", prompt="dog")
    assert sd.error() <= BOUND
