"""Sampling programs on XLA: what diffusers computes, as one compiled loop."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import jax
import numpy as np
import pytest

pytest.importorskip("diffusers")
from sampling_programs import (
    GIVEN,
    GUIDED,
    NOISE,
    SCHEDULERS,
    SENSITIVE,
    diffusers_loop,
    distance,
)
from xla_programs import denoiser, expected_with, lowered, program_of, tiny_unet

import graphopt
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.kernels import OWN
from graphopt.errors import ModelError, PipelineError, UnsupportedError
from graphopt.program.guidance import Guidance
from graphopt.program.noise import TorchNormal

GUIDANCE = Guidance(3.0)


@pytest.mark.parametrize("make", [*SCHEDULERS.values(), *SENSITIVE.values()], ids=[*SCHEDULERS, *SENSITIVE])
def test_every_kind_of_schedule_equals_diffusers(make):
    run = lowered(denoiser(), make())
    expected = diffusers_loop(make(), expected_with(denoiser()), NOISE, seed=7)
    assert distance(run(NOISE, 7, **GIVEN), expected) <= 5e-6


@pytest.mark.parametrize("name", ["DDIM", "DPM++ 2M", "UniPC", "Euler ancestral"])
def test_a_guided_unet_equals_diffusers(name):
    run = lowered(tiny_unet(), SCHEDULERS[name](), GUIDANCE)
    expected = diffusers_loop(SCHEDULERS[name](), expected_with(tiny_unet(), GUIDANCE), NOISE, seed=7)
    assert distance(run(NOISE, 7, **GUIDED), expected) <= 3e-6


GUIDANCES = [GUIDANCE, Guidance(3.0, "calls"), Guidance(3.0, rescale=0.7), Guidance(3.0, "calls", rescale=0.7)]


@pytest.mark.parametrize("guidance", GUIDANCES, ids=str)
def test_every_kind_of_guidance_equals_diffusers(guidance):
    run = lowered(denoiser(), SCHEDULERS["DPM++ 2M"](), guidance)
    expected = diffusers_loop(SCHEDULERS["DPM++ 2M"](), expected_with(denoiser(), guidance), NOISE)
    assert distance(run(NOISE, **GUIDED), expected) <= 2e-6


@pytest.fixture(scope="module")
def run():
    """A stochastic schedule with guidance, its ops compared with torch's."""
    return lowered(denoiser(), SCHEDULERS["Euler ancestral"](), GUIDANCE, check=True)


def test_it_is_compiled_once_for_all_rows_conditions_scales_and_seeds(run):
    run(NOISE, 1, **GUIDED)
    other = {name: value + 1 for name, value in GUIDED.items()}
    for seed, scale in ((1, None), (2, 5.0)):
        got = run(NOISE, seed, guidance_scale=scale, **other)
        assert distance(got, run.program(NOISE, seed, guidance_scale=scale, **other)) <= 2e-6
    assert run.compilations == 1


def test_the_compiled_program_is_one_loop_that_no_host_takes_part_in(run):
    with exact_types():
        lowered = jax.jit(run.function()).lower(*run.arguments())
    assert lowered.as_text().count("stablehlo.while") == 1
    hlo = run.hlo()
    assert hlo.count(" while(") == 1
    for word in ("callback", "infeed", "outfeed", " send(", " recv(", "custom-call"):
        assert word not in lowered.as_text() and word not in hlo


class TestCalls:
    """What a compiled program does with what it is called with."""

    def test_its_ops_were_compared_with_those_of_torch(self, run):
        assert run.notes == ("16 ops of distinct sizes agree with torch",)

    def test_guidance_without_an_unconditional_branch_is_refused(self, run):
        with pytest.raises(ModelError, match="give negative_encoder_hidden_states"):
            run(NOISE, 1, **GIVEN)

    def test_run_starts_from_a_scaled_sample(self, run):
        scaled = NOISE * run.program.schedule.init_noise_sigma
        assert run.program.schedule.init_noise_sigma > 10
        assert torch.equal(run.run(scaled, 1, **GUIDED), run(NOISE, 1, **GUIDED))

    def test_arrays_in_give_arrays_out(self, run):
        got = run(NOISE.numpy(), 1, **{name: value.numpy() for name, value in GUIDED.items()})
        assert isinstance(got, np.ndarray) and np.array_equal(got, run(NOISE, 1, **GUIDED).numpy())

    def test_seeds_are_those_of_torch(self, run):
        by_seed = run(NOISE, 11, **GUIDED)
        assert torch.equal(by_seed, run(NOISE, TorchNormal(11), **GUIDED))
        assert distance(by_seed, run(NOISE, torch.Generator().manual_seed(11), **GUIDED)) <= 1e-6
        assert not torch.equal(by_seed, run(NOISE, 12, **GUIDED))

    def test_without_a_generator_tensors_draw_from_that_of_torch(self, run):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            first = run(NOISE, **GUIDED)
        assert torch.equal(first, run(NOISE, torch.Generator().manual_seed(5), **GUIDED))

    def test_a_callback_is_refused_with_what_to_do(self, run):
        with pytest.raises(UnsupportedError, match="hands out none of them.*onnxruntime"):
            run(NOISE, 1, callback=print, **GUIDED)

    def test_other_sizes_are_refused(self, run):
        with pytest.raises(ModelError, match="the initial sample"):
            run(NOISE[:1], 1, **GUIDED)


def test_an_op_that_differs_from_torch_is_named(monkeypatch):
    monkeypatch.setitem(OWN, "aten.tanh.default", lambda x: x)
    with pytest.raises(UnsupportedError, match=r"aten\.tanh\.default.*differs from torch"):
        lowered(denoiser(), SCHEDULERS["DDIM"](), check=True)


def test_an_op_that_was_not_compared_and_fails_is_named(monkeypatch):
    monkeypatch.setitem(OWN, "aten.tanh.default", lambda x: x.no_such_thing)
    run = lowered(denoiser(), SCHEDULERS["DDIM"]())
    with pytest.raises(UnsupportedError, match=r"aten\.tanh\.default fails in JAX.*no_such_thing"):
        run(NOISE, **GIVEN)


def test_unknown_options_are_refused():
    with pytest.raises(PipelineError, match="unknown option 'threads'"):
        program_of(denoiser()).lower("xla", threads=1)


def test_conditions_with_the_name_of_another_input_are_refused():
    class Clashing(torch.nn.Module):
        def forward(self, x, t, row):
            return x + row

    example = {"x": NOISE, "t": torch.tensor(1.0), "row": NOISE}
    program = graphopt.Sampler(Clashing().eval(), SCHEDULERS["DDIM"](), 2, example_inputs=example)
    with pytest.raises(UnsupportedError, match="a condition is named 'row'"):
        program.lower("xla")
