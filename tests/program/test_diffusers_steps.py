"""What no program can say is run step by step, with the same results, and the report says why."""

import diffusers
import pytest
import torch
from diffusers.configuration_utils import register_to_config
from diffusers_pairs import BOUND, pair, relative
from tiny_pipelines import quiet, randomised, stable_diffusion, stable_diffusion_3, unet

from graphopt.errors import UnsupportedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def sd(folder):
    return pair(stable_diffusion(folder))


def test_a_callback_sees_the_latents_of_every_step(sd):
    seen = []

    def note(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].clone()))
        return tensors

    assert sd.error(callback_on_step_end=note) <= BOUND
    assert sd.reason == "callback_on_step_end is given"
    plain, fast = seen[:4], seen[4:]
    assert [s[:2] for s in plain] == [s[:2] for s in fast]
    assert all(relative(a[2], b[2]) <= BOUND for a, b in zip(plain, fast, strict=True))


def test_a_callback_may_change_latents_and_prompts(sd):
    def change(pipe, step, timestep, tensors):
        text = tensors["prompt_embeds"]
        return {"latents": tensors["latents"] * 0.9, "prompt_embeds": text.flip(1) if step == 1 else text}

    names = ["latents", "prompt_embeds"]
    assert sd.error(callback_on_step_end=change, callback_on_step_end_tensor_inputs=names) <= BOUND


def test_a_callback_may_stop_the_loop(sd):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step == 1
        return tensors

    assert sd.error(callback_on_step_end=stop) <= BOUND
    assert sd.error() <= BOUND and sd.reason == ""


def test_a_scheduler_that_is_no_table_names_its_reason(sd):
    before = sd.plain.scheduler
    sd.use(diffusers.DDIMScheduler.from_config(before.config, thresholding=True, clip_sample=False))
    assert sd.error(seed=2) <= BOUND
    assert "thresholding" in sd.reason
    assert sd.error(seed=3) <= BOUND
    sd.use(before)


def test_numbers_of_a_scheduler_that_its_configuration_does_not_give_are_used(sd):
    before = sd.plain.scheduler
    changed = diffusers.DDIMScheduler.from_config(before.config, clip_sample=False)
    sd.use(changed)
    assert sd.error() <= BOUND and sd.reason == ""
    changed.alphas_cumprod = changed.alphas_cumprod**1.5
    sd.use(changed)
    assert sd.error() <= BOUND
    assert "alphas_cumprod" in sd.reason
    sd.use(before)


def test_settings_of_a_scheduler_that_its_configuration_does_not_give_are_used(sd):
    before = sd.plain.scheduler
    changed = diffusers.UniPCMultistepScheduler.from_config(before.config)
    sd.use(changed)
    assert sd.error() <= BOUND and sd.reason == ""
    assert sd.error() <= BOUND and sd.reason == ""  # What a run leaves behind is no setting.
    changed.disable_corrector = [1, 2]
    sd.use(changed)
    assert sd.error() <= BOUND
    assert "disable_corrector" in sd.reason
    sd.use(before)


def test_a_method_of_a_scheduler_that_was_replaced_is_used(sd):
    before = sd.plain.scheduler
    changed = diffusers.DDIMScheduler.from_config(before.config, clip_sample=False)
    sd.use(changed)
    assert sd.error(eta=0.7) <= BOUND and sd.reason == ""
    own = changed._get_variance
    changed._get_variance = lambda *args: 0.5 * own(*args)
    sd.use(changed)
    assert sd.error(eta=0.7) <= BOUND
    assert "_get_variance" in sd.reason
    sd.use(before)


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(folder, channels):
    both = pair(stable_diffusion(folder, diffusers.StableDiffusionInpaintPipeline, channels))
    generator = torch.Generator().manual_seed(1)
    image, mask = torch.rand(1, 3, 16, 16, generator=generator), torch.zeros(1, 1, 16, 16)
    mask[..., :8] = 1
    assert both.error(image=image, mask_image=mask, height=16, width=16) <= BOUND
    assert "not the scheduler's sample" in both.reason


def test_more_calls_of_the_denoiser_than_guidance_makes(folder):
    both = pair(stable_diffusion_3(folder))
    assert both.error(skip_guidance_layers=[0], skip_layer_guidance_stop=0.9) <= BOUND
    assert "several times" in both.reason


class Lists(diffusers.DiffusionPipeline):
    """Gives its denoiser a list with a tensor for each sample."""

    def __init__(self, transformer, scheduler):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self):
        self.scheduler.set_timesteps(2)
        t, sample = self.scheduler.timesteps[0], torch.ones(2, 3)
        return self.scheduler.step(torch.stack(self.transformer(list(sample), t)), t, sample).prev_sample


class OfLists(torch.nn.Module):
    def forward(self, x, t):
        return [sample * t.cos() for sample in x]


def test_samples_in_a_list_are_refused_with_the_name_of_the_argument():
    both = pair(quiet(Lists(OfLists().eval(), diffusers.DDIMScheduler())))
    both.plain()
    with pytest.raises(UnsupportedError, match="gives its denoiser 'x' as a list: expected one tensor"):
        both.fast()


class Loop(diffusers.DiffusionPipeline):
    """A pipeline with a habit that a program cannot say."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, habit, text, generator, steps=4):
        self.scheduler.set_timesteps(steps)
        sample = torch.randn(1, 4, 8, 8, generator=generator)
        times = self.scheduler.timesteps
        for i, t in enumerate(times[:-1] if habit == "ends early" else times):
            seen = torch.cat([sample] * 2)
            if habit == "scales by itself":
                seen = seen * 0.99
            if habit == "sets timesteps again" and i == 2:
                self.scheduler.set_timesteps(steps)
            words = text * (1 + 0.1 * i) if habit == "other conditions" else text
            time = torch.stack([t, t + 1]) if habit == "two timesteps" else t
            if habit == "no call" and i == 1:
                prediction = sample
            else:
                if habit == "two calls" or (habit == "two calls later" and i == 2):
                    first, second = (self.unet(sample, t, encoder_hidden_states=w).sample for w in words.split(1))
                else:
                    first, second = self.unet(seen, time, encoder_hidden_states=words).sample.chunk(2)
                scale = 3.0 + (i if habit == "guidance changes" else 0)
                prediction = first + scale * (second - first)
            if habit == "clips the prediction":
                prediction = prediction.clamp(-1, 1)
            if habit == "unpacks the step":
                sample, _ = self.scheduler.step(prediction, t, sample, generator=generator, return_dict=False)
                continue
            step = self.scheduler.step(prediction, t, sample, generator=generator)
            sample = step.prev_sample
            if habit == "reads more":
                sample = sample + 0.1 * step.pred_original_sample
            if habit == "writes to the sample":
                sample.mul_(0.9)
            if habit == "draws":
                torch.randn(1, generator=generator)
        return sample


HABITS = {
    "two calls later": "'encoder_hidden_states'",
    "ends early": "ends before",
    "scales by itself": "not the scheduler's sample",
    "sets timesteps again": "sets its timesteps again",
    "other conditions": "'encoder_hidden_states'",
    "two timesteps": "several timesteps",
    "no call": "without calling its denoiser",
    "guidance changes": "guidance changes",
    "clips the prediction": "within bounds (clamp)",
    "reads more": "'pred_original_sample'",
    "unpacks the step": "more of its scheduler's step",
    "writes to the sample": "not the scheduler's sample",
    "draws": "draws random numbers",
}


@pytest.fixture(scope="module")
def loops():
    return pair(quiet(Loop(unet(), diffusers.DDPMScheduler(clip_sample=False))))


def sample_of(pipe, habit):
    text = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(4))
    return pipe(habit, text, torch.Generator().manual_seed(5))


@pytest.mark.parametrize("habit", ["none", "two calls"])
def test_a_loop_with_guidance_in_one_batch_or_two_calls_is_one_program(loops, habit):
    assert relative(sample_of(loops.plain, habit), sample_of(loops.fast, habit)) <= BOUND
    assert loops.reason == ""


@pytest.mark.parametrize("habit", HABITS)
def test_a_habit_of_the_loop_is_noticed(loops, habit):
    assert relative(sample_of(loops.plain, habit), sample_of(loops.fast, habit)) <= BOUND
    assert HABITS[habit] in loops.reason


class LoopOverSteps(diffusers.DiffusionPipeline):
    """A pipeline that does with the samples and predictions of several steps what a program cannot say."""

    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, habit, text, generator):
        self.scheduler.set_timesteps(4)
        sample = torch.randn(1, 4, 8, 8, generator=generator)
        samples, buffer, before = [], torch.zeros(4, 4, 8, 8), None
        for i, t in enumerate(self.scheduler.timesteps):
            prediction = own = self.unet(sample, t, encoder_hidden_states=text[:1]).sample
            if habit == "extrapolates" and i:
                prediction = own + 0.5 * (own - before)
            if habit == "weighs":
                with torch.inference_mode():
                    weight = torch.ones(1)
                prediction = own * weight
            if habit == "negates":
                prediction = -own
            if habit == "keeps predictions in wide bounds":
                prediction = own.clip(-4.5, 4.5)
            if habit == "keeps samples in wide bounds":
                sample = torch.where(sample > 4.5, 4.5, sample)
            if habit == "replaces NaN":
                sample = sample.nan_to_num_(0.0)
            if habit == "decides by numbers" and i and (sample * 2).std() > 1.9:
                prediction = prediction * 0.5
            if habit == "decides by a count" and len(sample.round().unique()) > 8:
                prediction = prediction * 0.5
            sample, before = self.scheduler.step(prediction, t, sample, generator=generator).prev_sample, own
            samples.append(sample.clone())
            if habit == "fills a buffer":
                buffer[i] = sample[0]
        return {"fills a buffer": buffer, "returns all samples": torch.stack(samples)}.get(habit, sample)


@pytest.mark.parametrize(
    ("habit", "reason"),
    {
        "negates": "something else of its denoiser's output",
        "extrapolates": "guidance changes",
        "decides by numbers": "looks at numbers",
        "decides by a count": "looks at numbers",
        "keeps predictions in wide bounds": "within bounds (clip)",
        "keeps samples in wide bounds": "looks at numbers",
        "replaces NaN": "within bounds (nan_to_num)",
        "returns all samples": "returns samples",
        "fills a buffer": "tensor of its own",
    }.items(),
)
def test_made_up_numbers_of_the_steps_become_no_result_and_decide_nothing(habit, reason):
    both = pair(quiet(LoopOverSteps(unet(), diffusers.DDPMScheduler(clip_sample=False))))
    assert relative(sample_of(both.plain, habit), sample_of(both.fast, habit)) <= BOUND
    assert reason in both.reason


class Plain(torch.nn.Module):
    """A denoiser that is no model of diffusers."""

    def __init__(self, returns):
        super().__init__()
        self.config = {}
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.returns = returns

    def forward(self, sample, timestep):
        return self.returns(self.conv(sample) * torch.cos(timestep * 0.01))


class OwnDenoiser(diffusers.DiffusionPipeline):
    def __init__(self, unet, scheduler):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, read):
        self.scheduler.set_timesteps(3)
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        for t in self.scheduler.timesteps:
            sample = self.scheduler.step(read(self.unet(sample, t)), t, sample).prev_sample
        return sample


def own_denoiser(returns):
    return pair(quiet(OwnDenoiser(randomised(Plain(returns), 1), diffusers.DDIMScheduler(clip_sample=False))))


@pytest.mark.parametrize(
    ("returns", "read"),
    [
        (lambda x: x, lambda result: result),
        (lambda x: (x,), lambda result: result[0]),
        (lambda x: {"noise": x}, lambda result: result["noise"]),
        (lambda x: (x, 2 * x), lambda result: result[0]),
    ],
)
def test_a_denoiser_returns_what_it_ever_returned(returns, read):
    both = own_denoiser(returns)
    assert relative(both.plain(read), both.fast(read)) <= BOUND
    assert both.reason == ""


def test_reading_more_of_a_denoiser_than_its_prediction_is_refused():
    with pytest.raises(UnsupportedError, match="Plain returns more than its prediction"):
        own_denoiser(lambda x: (x, 2 * x)).fast(lambda result: result[1])


class Bare(diffusers.SchedulerMixin, diffusers.ConfigMixin):
    """A scheduler as people write them: with names and habits of its own."""

    config_name = "scheduler_config.json"

    @register_to_config
    def __init__(self):
        self.timesteps = torch.tensor([9, 5, 1])

    def set_timesteps(self, steps):
        pass

    def step(self, noise, t, x):
        return (x - 0.1 * noise,)


class Usual(Bare):
    def step(self, model_output, timestep, sample):
        return super().step(model_output, timestep, sample)


class NotMadeAnew(Usual):
    @classmethod
    def from_config(cls, config, **options):
        raise OSError("no such file")


class OwnLoop(LoopOverSteps):
    @torch.no_grad()
    def __call__(self, text, expanded):
        sample = torch.ones(2, 4, 8, 8)
        for t in getattr(self.scheduler, "timesteps", [9, 5, 1]):
            time = t.expand(2) if expanded else t
            sample = self.scheduler.step(self.unet(sample, t, encoder_hidden_states=text).sample, time, sample)[0]
        return sample


@pytest.mark.parametrize(
    ("kind", "expanded", "reason"),
    [
        (Bare, False, "step is not given 'model_output' but noise, t, x"),
        (NotMadeAnew, False, "NotMadeAnew cannot be made anew from its configuration: OSError: no such file"),
        (Usual, True, "something else than one timestep"),
    ],
)
def test_a_scheduler_with_habits_of_its_own_runs_step_by_step(kind, expanded, reason):
    both = pair(quiet(OwnLoop(unet(), kind())))
    text = torch.ones(2, 9, 16)
    assert relative(*(pipe(text, expanded) for pipe in (both.plain, both.fast))) <= BOUND
    assert reason in both.reason


def test_a_scheduler_without_timesteps_is_refused():
    without = Bare()
    del without.timesteps
    with pytest.raises(UnsupportedError, match="Bare has no tensor of timesteps"):
        pair(quiet(OwnLoop(unet(), without))).fast(torch.ones(2, 9, 16), False)


class WritesItsLatents(LoopOverSteps):
    @torch.no_grad()
    def __call__(self, text, latents):
        self.scheduler.set_timesteps(4)
        latents.mul_(0.5)
        for t in self.scheduler.timesteps:
            prediction = self.unet(latents, t, encoder_hidden_states=text).sample
            latents = self.scheduler.step(-prediction, t, latents).prev_sample
        return latents


def test_a_request_that_starts_again_starts_with_what_it_was_given():
    both = pair(quiet(WritesItsLatents(unet(), diffusers.DDIMScheduler(clip_sample=False))))
    text = torch.ones(1, 9, 16)
    results = [pipe(text, torch.ones(1, 4, 8, 8)) for pipe in (both.plain, both.fast)]
    assert relative(*results) <= BOUND
    assert both.reason


def test_tensors_without_versions_may_meet_made_up_numbers():
    both = pair(quiet(LoopOverSteps(unet(), diffusers.DDPMScheduler(clip_sample=False))))
    assert relative(sample_of(both.plain, "weighs"), sample_of(both.fast, "weighs")) <= BOUND
    assert both.reason == ""
