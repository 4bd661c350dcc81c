"""A sampling program on onnxruntime computes what diffusers computes, as one Loop and as sessions."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel
from sampling_programs import (
    GIVEN,
    GUIDED,
    NEGATIVE,
    NOISE,
    SCHEDULERS,
    SENSITIVE,
    STEPS,
    TEXT,
    diffusers_loop,
    distance,
    lower,
    onnx_program,
    predict_with,
    small_unet,
    torch_program,
    with_scheduler,
)

import graphopt
from graphopt.backends.ort_compiled import RunError
from graphopt.backends.ort_program import CompiledProgram
from graphopt.errors import ModelError, PipelineError
from graphopt.program.guidance import Guidance
from graphopt.program.interface import Interface
from graphopt.program.noise import TorchNormal

FORMS = ("loop", "sessions")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_both_forms_equal_diffusers(name):
    program = with_scheduler(onnx_program(), SCHEDULERS[name]())
    expected = diffusers_loop(SCHEDULERS[name](), predict_with(small_unet()), NOISE, seed=7)
    results = [lower(program, form=form)(NOISE, 7, **GIVEN) for form in FORMS]
    assert distance(results[0], expected) <= 1e-6
    assert torch.equal(*results)


@pytest.mark.parametrize("name", SENSITIVE)
def test_where_rounding_alone_moves_the_result_it_is_as_near_to_the_exact_one_as_that_of_diffusers(name):
    program = with_scheduler(onnx_program(), SENSITIVE[name]())
    net, generator = predict_with(copy.deepcopy(small_unet()).double()), torch.Generator().manual_seed(7)
    draws = [torch.randn(NOISE.shape, generator=generator).double() for _ in range(program.schedule.total_draws)]
    noise = torch.stack(draws) if draws else torch.empty(0, *NOISE.shape)
    with torch.no_grad():
        exact = program.schedule.run(net, NOISE.double(), noise=noise)
    single = diffusers_loop(SENSITIVE[name](), predict_with(small_unet()), NOISE, seed=7)
    results = [lower(program, form=form)(NOISE, 7, **GIVEN) for form in FORMS]
    assert torch.equal(*results)
    assert distance(results[0], exact) <= 2 * distance(single, exact) <= 1e-3


GUIDANCE = [Guidance(3.0), Guidance(3.0, "calls"), Guidance(3.0, rescale=0.7), Guidance(3.0, "calls", rescale=0.7)]


@pytest.mark.parametrize("guidance", GUIDANCE, ids=str)
def test_guided_programs_equal_diffusers_and_the_reference(guidance):
    program = with_scheduler(onnx_program(guidance), SCHEDULERS["DPM++ 2M"]())
    predict = predict_with(small_unet(), guidance)
    expected = diffusers_loop(SCHEDULERS["DPM++ 2M"](), predict, NOISE)
    results = [lower(program, form=form)(NOISE, **GUIDED) for form in FORMS]
    assert distance(results[0], expected) <= 1e-6
    assert distance(results[0], program(NOISE, **GUIDED)) <= 1e-6
    assert torch.equal(*results)


class Pointwise(torch.nn.Module):
    """A denoiser that is cheap at any size."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.eye(4) + 0.3)

    def forward(self, sample, timestep, condition):
        mixed = torch.einsum("bchw,cd->bdhw", sample, self.weight) + condition
        return 1.5 * torch.tanh(mixed * (1 + 0.001 * timestep).to(sample.dtype))


@pytest.mark.parametrize("form", FORMS)
def test_rescaled_guidance_in_half_precision_does_not_overflow(form):
    noise = torch.randn(1, 4, 128, 128, generator=torch.Generator().manual_seed(0))  # elements: 2 ** 16

    def program(dtype):
        condition = torch.ones(1, 4, 1, 1, dtype=dtype)
        example = {"sample": noise.to(dtype), "timestep": torch.tensor(1.0), "condition": condition}
        net, scheduler = Pointwise().eval().to(dtype), DDIMScheduler(clip_sample=False)
        return graphopt.Sampler(net, scheduler, 4, example_inputs=example, guidance=Guidance(5.0, rescale=0.7))

    def given(dtype):
        condition = torch.ones(1, 4, 1, 1, dtype=dtype)
        return {"condition": condition, "negative_condition": 0 * condition}

    exact = program(torch.float64)(noise.double(), **given(torch.float64))
    half, rough = program(torch.float16), given(torch.float16)
    allowed = 4 * distance(half(noise.half(), **rough), exact)
    assert distance(lower(half, form=form)(noise.half(), **rough), exact) <= allowed <= 0.1


def test_pixart_with_its_learned_variance_equals_diffusers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
            cross_attention_dim=16, sample_size=8, caption_channels=12, use_additional_conditions=False,
        ).eval()  # fmt: skip
    example = {"hidden_states": NOISE, "timestep": torch.ones(2), "encoder_hidden_states": TEXT}
    program = graphopt.Sampler(module, SCHEDULERS["DPM++ 2M"](), STEPS, example_inputs=example)

    def predict(x, t):
        return module(x, TEXT, timestep=t.expand(2).float()).sample[:, :4]

    expected = diffusers_loop(SCHEDULERS["DPM++ 2M"](), predict, NOISE)
    results = [lower(program, form=form)(NOISE, **GIVEN) for form in FORMS]
    assert program.interface.prediction_channels == 4
    assert distance(results[0], expected) <= 1e-6
    assert torch.equal(*results)


def test_a_torch_program_is_converted():
    lowered = torch_program().lower("onnxruntime")
    assert isinstance(lowered, CompiledProgram) and lowered.program.storage == "onnx" and lowered.form == "loop"
    assert distance(lowered(NOISE, **GIVEN), torch_program()(NOISE, **GIVEN)) <= 1e-6


@cache
def guided(form, name="Euler ancestral"):
    return lower(with_scheduler(onnx_program(GUIDANCE[0]), SCHEDULERS[name]()), form=form)


@pytest.mark.parametrize("form", FORMS)
class TestCalls:
    """What a compiled program does with what it is called with."""

    def test_the_scale_of_a_call_replaces_that_of_the_guidance(self, form):
        run = guided(form, "DDIM")
        other = lower(onnx_program(Guidance(5.0)), form=form)
        assert torch.equal(run(NOISE, guidance_scale=5.0, **GUIDED), other(NOISE, **GUIDED))
        assert not torch.equal(run(NOISE, **GUIDED), other(NOISE, **GUIDED))

    def test_guidance_without_an_unconditional_branch_is_refused(self, form):
        with pytest.raises(ModelError, match="give negative_encoder_hidden_states"):
            guided(form)(NOISE, 1, **GIVEN)

    def test_run_starts_from_a_scaled_sample(self, form):
        run = guided(form)
        scaled = NOISE * run.program.schedule.init_noise_sigma
        assert run.program.schedule.init_noise_sigma > 10
        assert torch.equal(run.run(scaled, 1, **GUIDED), run(NOISE, 1, **GUIDED))

    def test_arrays_in_give_arrays_out(self, form):
        run = guided(form)
        got = run(NOISE.numpy(), 1, **{name: value.numpy() for name, value in GUIDED.items()})
        assert isinstance(got, np.ndarray) and np.array_equal(got, run(NOISE, 1, **GUIDED).numpy())

    def test_seeds_are_those_of_torch(self, form):
        run = guided(form)
        by_seed = run(NOISE, 11, **GUIDED)
        assert torch.equal(by_seed, run(NOISE, TorchNormal(11), **GUIDED))
        assert distance(by_seed, run(NOISE, torch.Generator().manual_seed(11), **GUIDED)) <= 1e-6
        assert not torch.equal(by_seed, run(NOISE, 12, **GUIDED))

    def test_without_a_generator_tensors_draw_from_that_of_torch(self, form):
        run = guided(form)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            first = run(NOISE, **GUIDED)
        assert torch.equal(first, run(NOISE, torch.Generator().manual_seed(5), **GUIDED))

    def test_a_generator_for_each_image_gives_what_each_image_gets_alone(self, form):
        run = guided(form)
        pair = run(NOISE, [3, 4], **GUIDED)
        assert torch.equal(pair[1], run(NOISE, [9, 4], **GUIDED)[1])
        assert not torch.equal(pair[0], run(NOISE, [9, 4], **GUIDED)[0])

    def test_a_new_prompt_in_the_same_memory_is_not_served_stale(self, form):
        run = guided(form)
        text, other = TEXT.clone(), TEXT.flip(0) * 0.5

        def sample(prompt):
            return run(NOISE, 1, encoder_hidden_states=prompt, negative_encoder_hidden_states=NEGATIVE)

        before = sample(text)
        text.copy_(other)
        assert torch.equal(sample(text), sample(other)) and not torch.equal(sample(text), before)
        text.copy_(TEXT)
        assert torch.equal(sample(text), before)

    def test_a_result_is_the_callers_own(self, form):
        run = guided(form)
        first = run(NOISE, 1, **GUIDED)
        kept, given = first.clone(), NOISE.clone()
        second = run(given, 2, **GUIDED)
        assert torch.equal(first, kept) and torch.equal(given, NOISE)
        second.zero_()
        assert torch.equal(run(NOISE, 1, **GUIDED), kept)

    def test_a_callback_sees_the_sample_of_every_row_and_may_replace_it(self, form):
        run = guided(form)
        seen = []
        final = run(NOISE, 1, callback=lambda row, x: seen.append((row, x)), **GUIDED)
        assert [row for row, _ in seen] == list(range(8)) and torch.equal(seen[-1][1], final)
        assert torch.equal(final, run(NOISE, 1, **GUIDED))
        reference = []
        run.program(NOISE, torch.Generator().manual_seed(1), callback=lambda r, x: reference.append(x), **GUIDED)
        assert max(distance(a, b) for (_, a), b in zip(seen, reference, strict=True)) <= 1e-6

        def halve(row, x):
            return x / 2 if row == 3 else None

        halved = run(NOISE, 1, callback=halve, **GUIDED)
        expected = run.program(NOISE, torch.Generator().manual_seed(1), callback=halve, **GUIDED)
        assert distance(halved, expected) <= 1e-6 and distance(halved, final) > 1e-2

    def test_strided_and_gradient_tracking_tensors_are_taken(self, form):
        run = guided(form)
        strided = NOISE.permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2).requires_grad_()
        assert not strided.is_contiguous()
        assert torch.equal(run(strided, 1, **GUIDED), run(NOISE, 1, **GUIDED))


HOSTILE = {
    "another shape": ((NOISE[:1], GUIDED), {}, ModelError, r"the initial sample: expected float32\[2,4,8,8\]"),
    "another dtype": ((NOISE.double(), GUIDED), {}, ModelError, "the initial sample: .* got float64"),
    "no array": (("noise", GUIDED), {}, ModelError, "the initial sample: .* got str"),
    "no condition": ((NOISE, {}), {}, ModelError, "condition 'encoder_hidden_states' is missing"),
    "another condition": ((NOISE, {**GUIDED, "prompt": TEXT}), {}, ModelError, "unknown condition 'prompt'"),
    "a short condition": ((NOISE, {"encoder_hidden_states": TEXT[:, :3]}), {}, ModelError, "expected float32"),
    "no tensor": ((NOISE, {"encoder_hidden_states": [1.0]}), {}, ModelError, "expected an array or a tensor"),
    "a bad seed": ((NOISE, GUIDED), {"generator": "seed"}, ModelError, "no source of noise"),
    "too many seeds": ((NOISE, GUIDED), {"generator": [1, 2, 3]}, ModelError, "3 generators"),
    "a bad result": ((NOISE, GUIDED), {"callback": lambda row, x: x[:1]}, ModelError, "expected float32"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_calls_are_refused(case, form):
    (noise, conditions), extra, error, message = HOSTILE[case]
    with pytest.raises(error, match=message):
        guided(form)(noise, **extra, **conditions)


def test_a_scale_for_a_program_without_guidance_is_refused():
    with pytest.raises(ModelError, match="this program has no guidance"):
        lower(onnx_program())(NOISE, guidance_scale=2.0, **GIVEN)


def test_unknown_forms_and_options_are_refused():
    with pytest.raises(PipelineError, match="form='scan': expected one of auto, loop, sessions"):
        lower(onnx_program(), form="scan")
    with pytest.raises(PipelineError, match="unknown option 'thread'"):
        lower(onnx_program(), thread=1)


def test_a_failure_inside_of_onnxruntime_is_named(monkeypatch):
    run = lower(onnx_program(), form="sessions")
    wrong = [{"encoder_hidden_states": TEXT[:1].numpy()}]
    monkeypatch.setattr(Interface, "branches", lambda self, given, join, *, guided: wrong)
    with pytest.raises(RunError, match="onnxruntime failed while it ran the program"):
        run(NOISE, **GIVEN)
