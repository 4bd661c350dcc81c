"""A sampler built from a denoiser of somebody else computes what diffusers' own loop computes."""

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNet2DModel,
)
from tiny_denoisers import tiny

import graphopt
from graphopt.errors import ModelError, UnsupportedError

STEPS = 4


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditions_of(inputs, *names):
    return {name: inputs[name] for name in names}


def diffusers_loop(scheduler, steps, noise, predict, generator=None):
    """The loop of a diffusers pipeline around `predict(scaled sample, timestep)`."""
    scheduler.set_timesteps(steps)
    extra = {} if generator is None else {"generator": generator}
    sample = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            prediction = predict(scaled(sample, timestep), timestep)
            sample = scheduler.step(prediction, timestep, sample, **extra).prev_sample
    return sample


def assert_close(got, expected, relative=1e-5):
    assert got.shape == expected.shape and got.dtype == expected.dtype
    assert float((got - expected).abs().max() / expected.abs().max()) <= relative


SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(clip_sample=False),
    "ddim clipped": lambda: DDIMScheduler(clip_sample=True),
    "dpm++": lambda: DPMSolverMultistepScheduler(),
    "euler ancestral": lambda: EulerAncestralDiscreteScheduler(),
    "ddpm": lambda: DDPMScheduler(clip_sample=False),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_unet_with_guidance_in_one_batch_equals_the_loop_of_diffusers(name):
    # Clipping magnifies rounding: in float32 the loop of diffusers itself moves by 2e-5 with the last bit of the noise.
    dtype = torch.float64 if name == "ddim clipped" else torch.float32
    unet, inputs = tiny("unet")
    unet = unet.to(dtype)
    inputs = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    noise, text, negative = (
        x.to(dtype) for x in (draw(2, 4, 16, 16), inputs["encoder_hidden_states"], draw(2, 6, 24, seed=5))
    )
    program = graphopt.Sampler(unet, SCHEDULERS[name](), STEPS, example_inputs=inputs, guidance=3.0)

    def predict(x, t):
        both = unet(torch.cat([x, x]), t, torch.cat([negative, text]), return_dict=False)[0]
        without, with_ = both.chunk(2)
        return without + 3.0 * (with_ - without)

    expected = diffusers_loop(SCHEDULERS[name](), STEPS, noise, predict, torch.Generator().manual_seed(3)
                              if "ddim" not in name and name != "dpm++" else None)  # fmt: skip
    got = program(
        noise, torch.Generator().manual_seed(3), encoder_hidden_states=text, negative_encoder_hidden_states=negative
    )
    assert_close(got, expected)


@pytest.mark.parametrize("passes", [[], ["share-guidance", "hoist", "batch-tables"]])
def test_one_timestep_for_several_samples_is_one_for_both_branches_of_guidance(passes):
    unet, inputs = tiny("unet")
    text, negative = inputs["encoder_hidden_states"], draw(2, 6, 24, seed=5)
    one = {**inputs, "timestep": torch.tensor([7.0])}
    program = graphopt.Sampler(unet, DDIMScheduler(clip_sample=False), STEPS, example_inputs=one, guidance=3.0)

    def predict(x, t):
        without, with_ = (unet(x, t, words, return_dict=False)[0] for words in (negative, text))
        return without + 3.0 * (with_ - without)

    expected = diffusers_loop(DDIMScheduler(clip_sample=False), STEPS, draw(2, 4, 16, 16), predict)
    result = graphopt.optimize(program, passes)
    got = result(draw(2, 4, 16, 16), encoder_hidden_states=text, negative_encoder_hidden_states=negative)
    assert_close(got, expected)


def flow():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def test_sd3_equals_the_loop_of_diffusers():
    model, inputs = tiny("sd3")
    given = conditions_of(inputs, "encoder_hidden_states", "pooled_projections")
    program = graphopt.Sampler(model, flow(), STEPS, example_inputs=inputs)
    noise = draw(2, 4, 8, 8)
    expected = diffusers_loop(
        flow(), STEPS, noise, lambda x, t: model(x, timestep=t.expand(2), return_dict=False, **given)[0]
    )
    assert_close(program(noise, **given), expected)


def test_flux_gets_its_timesteps_divided_by_1000_and_shares_its_ids():
    model, inputs = tiny("flux")
    given = conditions_of(inputs, "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids", "guidance")
    program = graphopt.Sampler(model, flow(), STEPS, example_inputs=inputs)
    noise = draw(2, 16, 4)
    expected = diffusers_loop(
        flow(), STEPS, noise, lambda x, t: model(x, timestep=t.expand(2) / 1000, return_dict=False, **given)[0]
    )
    assert_close(program(noise, **given), expected)
    assert {c.name for c in program.interface.conditions if not c.branched} == {"img_ids", "txt_ids"}


@pytest.mark.parametrize("family", ["pixart", "dit"])
def test_learned_variance_in_the_output_is_left_out(family):
    model, inputs = tiny(family)
    name = {"pixart": "encoder_hidden_states", "dit": "class_labels"}[family]
    scheduler = DDIMScheduler(clip_sample=False, num_train_timesteps=100)
    program = graphopt.Sampler(model, scheduler, STEPS, example_inputs=inputs)
    noise, given = draw(2, 4, 8, 8), conditions_of(inputs, name)
    expected = diffusers_loop(
        DDIMScheduler(clip_sample=False, num_train_timesteps=100),
        STEPS,
        noise,
        lambda x, t: model(x, timestep=t.expand(2).to(inputs["timestep"].dtype), return_dict=False, **given)[0][:, :4],
    )
    assert program.interface.prediction_channels == 4
    assert_close(program(noise, **given), expected)


def test_example_inputs_of_known_classes_come_from_their_config():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), layers_per_block=1,
    ).eval()  # fmt: skip
    program = graphopt.Sampler(unet, DDIMScheduler(), 3)
    noise = draw(1, 3, 8, 8)
    expected = diffusers_loop(DDIMScheduler(), 3, noise, lambda x, t: unet(x, t).sample)
    assert_close(program(noise), expected)


class Denoiser(torch.nn.Module):
    """A denoiser as a user may write one: other names, a dict of conditions."""

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(4, 4)

    def forward(self, latent, noise_level, extra):
        return self.mix(latent) * torch.cos(noise_level)[:, None] + extra["text"] + extra["style"]["bias"]


def custom(guidance=None, **options):
    torch.manual_seed(0)
    module = Denoiser().eval()
    example = (draw(2, 4), torch.ones(2)), {"extra": {"text": draw(2, 4), "style": {"bias": draw(4)}}}
    roles = {"latent": "sample", "noise_level": "timestep", "extra.style.bias": "shared"}
    return module, graphopt.Sampler(
        module, DDIMScheduler(clip_sample=False), 5, example_inputs=example, roles=roles | options, guidance=guidance
    )


@pytest.mark.parametrize("mode", ["batch", "calls"])
def test_any_module_becomes_a_sampler_by_the_roles_of_its_inputs(mode):
    module, program = custom(graphopt.Guidance(2.0, mode, rescale=0.7))
    noise, text, negative, bias = draw(2, 4, seed=1), draw(2, 4, seed=2), draw(2, 4, seed=3), draw(4, seed=4)

    def predict(x, t):
        level = t.expand(2).to(torch.float32)
        without, with_ = (module(x, level, {"text": c, "style": {"bias": bias}}) for c in (negative, text))
        guided = without + 2.0 * (with_ - without)
        rescaled = guided * (with_.std(dim=1, keepdim=True) / guided.std(dim=1, keepdim=True))
        return 0.7 * rescaled + 0.3 * guided

    expected = diffusers_loop(DDIMScheduler(clip_sample=False), 5, noise, predict)
    got = program(noise, extra={"text": text, "style": {"bias": bias}}, **{"negative_extra.text": negative})
    assert_close(got, expected)


def test_arrays_in_give_arrays_out():
    _, program = custom()
    given = {"extra.text": draw(2, 4), "extra.style.bias": draw(4)}
    as_tensor = program(draw(2, 4), **given)
    as_array = program(draw(2, 4).numpy(), **{k: v.numpy() for k, v in given.items()})
    assert isinstance(as_array, np.ndarray) and np.array_equal(as_array, as_tensor.numpy())


def test_a_callback_sees_every_row_and_may_replace_the_sample():
    _, program = custom()
    given = {"extra.text": draw(2, 4), "extra.style.bias": draw(4)}
    seen = []
    final = program(draw(2, 4), callback=lambda row, x: seen.append((row, x.clone())), **given)
    assert [row for row, _ in seen] == [0, 1, 2, 3, 4] and torch.equal(seen[-1][1], final)
    ended = program(draw(2, 4), callback=lambda row, x: torch.zeros_like(x) if row == 4 else None, **given)
    assert torch.equal(ended, torch.zeros(2, 4))


def test_a_scale_given_to_the_call_replaces_that_of_the_guidance():
    _, program = custom(2.0)
    _, other = custom(5.0)
    given = {"extra.text": draw(2, 4), "extra.style.bias": draw(4), "negative_extra.text": draw(2, 4, seed=9)}
    assert torch.equal(program(draw(2, 4), guidance_scale=5.0, **given), other(draw(2, 4), **given))
    assert not torch.equal(program(draw(2, 4), **given), other(draw(2, 4), **given))


def test_the_denoiser_keeps_its_weights_and_its_mode():
    module, inputs = tiny("unet")
    before = {k: v.clone() for k, v in module.state_dict().items()}
    program = graphopt.Sampler(module, DDIMScheduler(), 2, example_inputs=inputs)
    graphopt.optimize(program, ["clean-up"])
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, sample, timestep):
        self.calls.add_(1)
        return sample * timestep


EXAMPLE = {"sample": draw(1, 4), "timestep": torch.tensor(1.0)}


def test_a_denoiser_that_writes_its_buffers_is_refused():
    with pytest.raises(UnsupportedError, match="writes 1 of its buffers"):
        graphopt.Sampler(Counting().eval(), DDIMScheduler(), 2, example_inputs=EXAMPLE)


def test_a_denoiser_in_training_mode_is_refused():
    with pytest.raises(UnsupportedError, match="training mode"):
        graphopt.Sampler(Counting(), DDIMScheduler(), 2, example_inputs=EXAMPLE)


def test_a_denoiser_of_which_a_layer_drops_at_random_is_refused():
    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = torch.nn.Dropout()

        def forward(self, sample, timestep):
            return self.drop(sample) * timestep

    graphopt.Sampler(Dropping().eval(), DDIMScheduler(), 2, example_inputs=EXAMPLE)
    module = Dropping().eval()
    module.drop.train()
    with pytest.raises(UnsupportedError, match="draws random numbers in aten.native_dropout"):
        graphopt.Sampler(module, DDIMScheduler(), 2, example_inputs=EXAMPLE)


class PerToken(torch.nn.Module):
    def forward(self, sample, timestep):
        return sample * timestep[:, :, None]


def test_timesteps_per_token_are_refused():
    example = {"sample": draw(2, 5, 4), "timestep": torch.ones(2, 5)}
    with pytest.raises(UnsupportedError, match="one value per token"):
        graphopt.Sampler(PerToken().eval(), DDIMScheduler(), 2, example_inputs=example)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"latent": "sample", "noise_level": "timestep", "text": "condition"}, "roles name an input 'text'"),
        ({"latent": "smaple"}, "did you mean 'sample'"),
        ({"latent": "condition", "noise_level": "timestep"}, "exactly one input with the role 'sample'"),
    ],
)
def test_wrong_roles_are_named(roles, message):
    torch.manual_seed(0)
    example = (draw(2, 4), torch.ones(2)), {"extra": {"text": draw(2, 4), "style": {"bias": draw(2, 4)}}}
    with pytest.raises(ModelError, match=message):
        graphopt.Sampler(Denoiser().eval(), DDIMScheduler(), 2, example_inputs=example, roles=roles)


def test_a_condition_without_the_batch_axis_must_be_called_shared():
    with pytest.raises(ModelError, match="'extra.style.bias'.*'shared'"):
        custom(**{"extra.style.bias": "condition"})


def test_an_unknown_module_without_example_inputs_is_refused():
    with pytest.raises(ModelError, match="example_inputs="):
        graphopt.Sampler(Denoiser().eval(), DDIMScheduler(), 2)


def test_fractional_timesteps_need_a_float_example():
    unet, inputs = tiny("unet")
    example = {**inputs, "timestep": torch.tensor(7)}
    with pytest.raises(ModelError, match="fractional timesteps"):
        graphopt.Sampler(unet, flow(), 3, example_inputs=example)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop("extra.text"), "condition 'extra.text' is missing"),
        (lambda g: g.update({"extra.txt": draw(2, 4)}), "did you mean 'extra.text'"),
        (lambda g: g.update({"extra.text": draw(3, 4)}), r"expected float32\[2,4\], got float32\[3,4\]"),
        (lambda g: g.update({"extra.text": draw(2, 4).double()}), "got float64"),
        (lambda g: g.update({"extra.text": [1, 2]}), "got list"),
        (lambda g: g.update({"negative_extra.text": draw(2, 4)}), "unknown condition"),
    ],
)
def test_wrong_conditions_are_named(change, message):
    _, program = custom()
    given = {"extra.text": draw(2, 4), "extra.style.bias": draw(4)}
    change(given)
    with pytest.raises(ModelError, match=message):
        program(draw(2, 4), **given)


def test_a_seed_draws_what_a_torch_generator_draws():
    unet, inputs = tiny("unet")
    program = graphopt.Sampler(unet, EulerAncestralDiscreteScheduler(), 3, example_inputs=inputs)
    noise, text = draw(2, 4, 16, 16), inputs["encoder_hidden_states"]
    expected = program(noise, torch.Generator().manual_seed(11), encoder_hidden_states=text)
    assert_close(program(noise, 11, encoder_hidden_states=text), expected)
    as_array = program(noise.numpy(), 11, encoder_hidden_states=text.numpy())
    assert_close(torch.from_numpy(as_array), expected)


def test_a_guidance_scale_without_guidance_is_refused():
    _, program = custom()
    with pytest.raises(ModelError, match="no guidance"):
        program(draw(2, 4), guidance_scale=2.0, **{"extra.text": draw(2, 4), "extra.style.bias": draw(4)})


def test_noise_of_another_size_is_refused():
    _, program = custom()
    with pytest.raises(ModelError, match=r"expected float32\[2,4\], got float32\[3,4\]"):
        program(draw(3, 4), **{"extra.text": draw(2, 4), "extra.style.bias": draw(4)})


class Two(torch.nn.Module):
    def forward(self, sample, timestep, a, b):
        return torch.tanh(sample) + a - 2 * b


def test_one_tensor_given_for_two_inputs_stays_two_inputs():
    x = draw(2, 4)
    example = {"sample": draw(2, 4), "timestep": torch.tensor(1), "a": x, "b": x}
    program = graphopt.Sampler(Two().eval(), DDIMScheduler(clip_sample=False), 3, example_inputs=example)
    a, b, noise = draw(2, 4, seed=1), draw(2, 4, seed=2), draw(2, 4, seed=3)
    expected = diffusers_loop(DDIMScheduler(clip_sample=False), 3, noise, lambda x, t: Two()(x, t, a, b))
    assert_close(program(noise, a=a, b=b), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.bool])
def test_timesteps_that_a_dtype_does_not_hold_are_refused(dtype):
    example = {"sample": draw(2, 4), "timestep": torch.ones((), dtype=dtype), "a": draw(2, 4), "b": draw(2, 4)}
    with pytest.raises(ModelError, match="does not hold"):
        graphopt.Sampler(Two().eval(), DDIMScheduler(), 3, example_inputs=example)


def test_timesteps_that_scaling_makes_fractional_need_a_float_example():
    example = {"sample": draw(2, 4), "timestep": torch.tensor(1), "a": draw(2, 4), "b": draw(2, 4)}
    with pytest.raises(ModelError, match="fractional timesteps"):
        graphopt.Sampler(Two().eval(), DDIMScheduler(), 3, example_inputs=example, timestep_scale=0.001)


def returning(result):
    """A denoiser that returns `result(sample)`."""

    class Returning(torch.nn.Module):
        def forward(self, sample, timestep):
            return result(sample * timestep)

    return Returning().eval()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: {"aux": x * 2, "sample": x}, "returns a dict of aux, sample"),
        (lambda x: x[:1], "expected the same type"),
        (lambda x: x.double(), "expected the same type"),
    ],
)
def test_what_is_no_prediction_is_refused(result, message):
    example = {"sample": draw(2, 4), "timestep": torch.tensor(1)}
    with pytest.raises(ModelError, match=message):
        graphopt.Sampler(returning(result), DDIMScheduler(), 2, example_inputs=example)


class Named(torch.nn.Module):
    def forward(self, sample, timestep, prompt, negative_prompt=None, generator=None):
        return sample * 0.5 + prompt + sum(x for x in (negative_prompt, generator) if x is not None)


@pytest.mark.parametrize("name", ["negative_prompt", "generator"])
def test_a_condition_with_the_name_of_another_argument_is_refused(name):
    example = {"sample": draw(2, 4), "timestep": torch.tensor(1), "prompt": draw(2, 4), name: draw(2, 4)}
    with pytest.raises(ModelError, match=f"named '{name}'"):
        graphopt.Sampler(Named().eval(), DDIMScheduler(), 2, example_inputs=example, guidance=2.0)


def test_guidance_without_an_unconditional_branch_is_refused():
    _, program = custom(2.0)
    with pytest.raises(ModelError, match="give negative_extra.text"):
        program(draw(2, 4), **{"extra.text": draw(2, 4), "extra.style.bias": draw(4)})


def test_a_callback_gets_a_copy_and_its_result_is_checked():
    _, program = custom()
    given = {"extra.text": draw(2, 4), "extra.style.bias": draw(4)}
    expected = program(draw(2, 4), **given)
    seen = []
    got = program(draw(2, 4), callback=lambda row, x: seen.append(x.mul_(0.0)), **given)
    assert torch.equal(got, expected) and len(seen) == 5
    with pytest.raises(ModelError, match=r"the sample that `callback` returned: .* got float32\[3,4\]"):
        program(draw(2, 4), callback=lambda row, x: draw(3, 4), **given)
    with pytest.raises(ModelError, match="callback=3: expected a function"):
        program(draw(2, 4), callback=3, **given)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "4", True])
def test_what_is_no_number_of_steps_is_refused_before_the_scheduler_is_asked(steps):
    with pytest.raises(ModelError, match=f"steps={steps!r}: expected how many"):
        graphopt.Sampler(torch.nn.Identity(), DDIMScheduler(), steps, example_inputs=EXAMPLE)
    assert len(graphopt.Schedule.from_diffusers(DDIMScheduler(), np.int64(3))) == 3


def test_the_class_of_a_scheduler_and_a_scale_of_text_are_refused():
    with pytest.raises(UnsupportedError, match="DDIMScheduler is a class and no scheduler: give an object"):
        graphopt.Sampler(torch.nn.Identity(), DDIMScheduler, 4, example_inputs=EXAMPLE)
    with pytest.raises(ModelError, match="timestep_scale='x': expected a finite number"):
        graphopt.Sampler(torch.nn.Identity(), DDIMScheduler(), 4, example_inputs=EXAMPLE, timestep_scale="x")


@pytest.mark.parametrize("guidance", ["7", True])
def test_guidance_that_is_no_scale_is_refused(guidance):
    with pytest.raises(ModelError, match="expected a scale"):
        custom(guidance)


@pytest.mark.parametrize("scale", [float("nan"), "a", True])
def test_a_scale_that_is_no_number_is_refused(scale):
    _, program = custom(2.0)
    given = {"extra.text": draw(2, 4), "extra.style.bias": draw(4), "negative_extra.text": draw(2, 4)}
    with pytest.raises(ModelError, match="finite number"):
        program(draw(2, 4), guidance_scale=scale, **given)


@pytest.mark.parametrize("kind", [np.int64(11), [11, 12], (torch.Generator(), torch.Generator())])
def test_all_kinds_of_generators_are_taken(kind):
    unet, inputs = tiny("unet")
    program = graphopt.Sampler(unet, EulerAncestralDiscreteScheduler(), 2, example_inputs=inputs)
    assert program(draw(2, 4, 16, 16), kind, encoder_hidden_states=inputs["encoder_hidden_states"]).isfinite().all()
    with pytest.raises(ModelError, match="no source of noise"):
        program(draw(2, 4, 16, 16), "abc", encoder_hidden_states=inputs["encoder_hidden_states"])
