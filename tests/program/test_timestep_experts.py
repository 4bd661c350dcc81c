"""Denoisers chosen by timestep are bodies of one program: it computes what the pipeline of Wan 2.2 computes."""

import numpy as np
import pytest
import torch
from wan_pairs import GIVEN, NOISE, SCHEDULERS, distance, example, sampled, transformer, wan

import graphopt
from graphopt.errors import ModelError, UnsupportedError
from graphopt.program.schedule import Schedule

STEPS = 6


def program_of(pipe, guidance, steps=STEPS, **options):
    experts = graphopt.Experts.from_pipeline(pipe)
    return graphopt.Sampler(
        experts, pipe.scheduler, steps, **{"example_inputs": example(), "guidance": guidance, **options}
    )


@pytest.fixture(scope="module", params=SCHEDULERS)
def made(request):
    pipe = wan(request.param)
    scales = {"transformer": 4.0, "transformer_2": 3.0}
    return pipe, program_of(pipe, graphopt.Guidance(scales, "calls"))


def test_rows_call_the_expert_that_the_pipeline_calls(made):
    pipe, program = made
    expected = sampled(pipe, STEPS, 4.0, 3.0)
    assert distance(program(NOISE, **GIVEN), expected) <= 1e-5
    # The boundary is one of shifted timesteps: without the shift, one of six rows has t >= 875.
    times = program.schedule.timesteps
    assert program.calls == tuple("transformer" if t >= 875 else "transformer_2" for t in times)
    assert program.calls.count("transformer") > 1


def test_each_expert_has_its_own_guidance_scale_also_in_a_call(made):
    pipe, program = made
    one = sampled(pipe, STEPS, 5.0, None)
    assert distance(program(NOISE, guidance_scale=5.0, **GIVEN), one) <= 1e-5
    both = {"transformer": 2.0, "transformer_2": 6.0}
    expected = sampled(pipe, STEPS, 2.0, 6.0)
    assert distance(program(NOISE, guidance_scale=both, **GIVEN), expected) <= 1e-5
    by_row = [both[name] for name in program.calls]
    assert torch.equal(program(NOISE, guidance_scale=by_row, **GIVEN), program(NOISE, guidance_scale=both, **GIVEN))
    assert distance(one, expected) > 1e-3


def test_guidance_in_one_batch_gives_the_same():
    pipe = wan("UniPC")
    program = program_of(pipe, {"transformer": 4.0, "transformer_2": 3.0})
    assert program.interface.doubled
    assert distance(program(NOISE, **GIVEN), sampled(pipe, STEPS, 4.0, 3.0)) <= 1e-5


def test_the_text_says_which_rows_call_whom_and_why(made):
    _, program = made
    high = program.calls.count("transformer")
    times = program.schedule.timesteps
    text = str(program)
    assert (
        f"calls: transformer in rows 0 to {high - 1} (t {times[0]:g} to {times[high - 1]:g}), transformer_2 in rows "
        f"{high} to {STEPS - 1} (t {times[high]:g} to {times[-1]:g})"
    ) in text
    assert f"scale 4 in rows 0 to {high - 1}, 3 in rows {high} to {STEPS - 1}, two calls" in text
    assert "\ntransformer/step, in every row" in text and "\ntransformer_2/step, in every row" in text


def test_passes_run_on_every_expert_and_verify_each_application():
    pipe = wan("UniPC")
    program = program_of(pipe, graphopt.Guidance({"transformer": 4.0, "transformer_2": 3.0}, "calls"))
    result = graphopt.optimize(program, ["hoist", "fuse-attention", "clean-up"], verify="model")
    steps = {record.where for record in result.report.passes if record.where and record.where.endswith("/step")}
    assert steps == {"transformer/step", "transformer_2/step"}
    for body in result.model.bodies.values():
        assert [name for name, _ in body.units()] == ["prologue", "table", "step"]
    assert distance(result.model(NOISE, **GIVEN), sampled(pipe, STEPS, 4.0, 3.0)) <= 1e-5


def wave(amplitude):
    class Wave(torch.nn.Module):
        def forward(self, sample, timestep):
            return amplitude * torch.sin(sample + timestep)

    return Wave().eval()


EXAMPLE = {"sample": torch.zeros(2, 3), "timestep": torch.tensor(1.0)}


def waves(boundaries, count=2, **options):
    names = ("high", "middle", "low") if count == 3 else ("high", "low")
    experts = graphopt.Experts({name: wave(i + 1.0) for i, name in enumerate(names)}, boundaries)
    return graphopt.Sampler(experts, SCHEDULERS["flow match Euler"](), 5, example_inputs=EXAMPLE, **options)


def times_of(scheduler, steps):
    made = SCHEDULERS[scheduler]()
    made.set_timesteps(steps)
    return made.timesteps


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_row_exactly_on_the_boundary_calls_the_expert_of_high_noise(scheduler):
    schedule = Schedule.from_diffusers(SCHEDULERS[scheduler](), 5)
    for row, t in list(enumerate(times_of(scheduler, 5)))[:-1]:
        exact, above = float(t), float(torch.nextafter(t.float(), torch.tensor(2e3)))
        experts = graphopt.Experts([wave(1.0), wave(2.0)], exact)
        assert experts.calls(schedule) == ("denoiser_1",) * (row + 1) + ("denoiser_2",) * (4 - row)
        if row:
            later = graphopt.Experts([wave(1.0), wave(2.0)], above)
            assert later.calls(schedule) == ("denoiser_1",) * row + ("denoiser_2",) * (5 - row)


def test_a_boundary_between_two_float32_numbers_is_rounded_as_torch_rounds_it():
    schedule, times = Schedule.from_diffusers(SCHEDULERS["flow match Euler"](), 5), times_of("flow match Euler", 5)
    ulp = float(np.spacing(np.float32(times[2])))
    for offset in (-0.6, -0.4, 0.4, 0.6):
        boundary = float(times[2]) + offset * ulp
        expected = tuple("denoiser_1" if bool(t >= boundary) else "denoiser_2" for t in times)
        assert graphopt.Experts([wave(1.0), wave(2.0)], boundary).calls(schedule) == expected


def test_three_experts_have_two_boundaries():
    program = waves((900.0, 600.0), count=3)
    amplitudes = [{"high": 1.0, "middle": 2.0, "low": 3.0}[name] for name in program.calls]
    assert sorted(set(amplitudes)) == [1.0, 2.0, 3.0]
    times, noise = program.schedule.timesteps, np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)

    def predict(x, t):
        return amplitudes[list(times).index(float(t))] * np.sin(x + float(t))

    expected = program.schedule.run(predict, noise.astype(np.float64))
    assert distance(program(noise), expected) <= 1e-4  # sin of numbers near 1000 in float32


@pytest.mark.parametrize(("boundary", "idle"), [(0.875, "low"), (1001.0, "high")])
def test_a_boundary_outside_of_all_rows_is_refused(boundary, idle):
    where = f"no row calls '{idle}': with boundaries at {boundary:g}, and timesteps from 1000 to 24"
    with pytest.raises(ModelError, match=where) as refusal:
        waves(boundary)
    assert ("not shares of them" in str(refusal.value)) == (boundary == 0.875)


@pytest.mark.parametrize(
    ("count", "boundaries", "message"),
    [
        (2, (), "2 denoisers and 0 boundaries"),
        (2, (800.0, 600.0), "2 denoisers and 2 boundaries"),
        (3, (600.0, 800.0), r"boundaries=\[600.0, 800.0\]: expected falling"),
        (2, float("nan"), "expected falling"),
    ],
)
def test_boundaries_that_make_no_sense_are_refused(count, boundaries, message):
    with pytest.raises(ModelError, match=message):
        waves(boundaries, count)


def test_one_denoiser_alone_or_none_is_refused():
    with pytest.raises(ModelError, match="1 denoisers and 0 boundaries"):
        graphopt.Experts([wave(1.0)], ())
    with pytest.raises(ModelError, match="denoisers is a Wave: expected a dict by name, or a list"):
        graphopt.Experts(wave(1.0), 875.0)


class Styled(torch.nn.Module):
    def forward(self, sample, timestep, style=None):
        return torch.cos(sample) * timestep + (0 if style is None else style)


class Learned(torch.nn.Module):
    def forward(self, sample, timestep):
        return torch.cat([torch.cos(sample) * timestep, sample], dim=1)


def test_experts_that_are_called_differently_are_refused():
    def sampler(low, inputs):
        experts = graphopt.Experts({"high": wave(1.0), "low": low.eval()}, 875.0)
        return graphopt.Sampler(experts, SCHEDULERS["UniPC"](), 5, example_inputs=inputs)

    with pytest.raises(ModelError, match="'high' and 'low' differ in their prediction channels: None and 3"):
        sampler(Learned(), {**EXAMPLE, "timestep": torch.tensor(1.0)})
    with pytest.raises(ModelError, match="denoiser 'high': example_inputs do not fit Wave.forward"):
        sampler(Styled(), {**EXAMPLE, "style": torch.zeros(2, 3)})
    with pytest.raises(ModelError, match="denoiser 'low': example_inputs do not fit Linear.forward"):
        sampler(torch.nn.Linear(3, 3), EXAMPLE)


def test_experts_of_other_sizes_are_refused_by_name():
    pipe = wan("UniPC", transformer_2=transformer(3, text_dim=24))
    with pytest.raises(ModelError, match="denoiser 'transformer_2': "):
        program_of(pipe, None)


def test_an_expert_in_training_mode_is_refused_by_name():
    experts = graphopt.Experts({"high": wave(1.0), "low": wave(2.0).train()}, 875.0)
    with pytest.raises(UnsupportedError, match="denoiser 'low': Wave is in training mode"):
        graphopt.Sampler(experts, SCHEDULERS["UniPC"](), 5, example_inputs=EXAMPLE)


def test_pipelines_that_choose_nothing_by_timestep_are_refused():
    with pytest.raises(ModelError, match="WanPipeline has no transformer_2: it does not choose its denoiser"):
        graphopt.Experts.from_pipeline(wan("UniPC", transformer_2=None))
    with pytest.raises(ModelError, match="has no boundary_ratio"):
        graphopt.Experts.from_pipeline(wan("UniPC", boundary_ratio=None))
    pipe = wan("UniPC")
    pipe.register_to_config(expand_timesteps=True)
    with pytest.raises(UnsupportedError, match="expand_timesteps=True, a timestep for every token"):
        graphopt.Experts.from_pipeline(pipe)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"transformer": 4.0}, "no guidance scale is given for 'transformer_2'"),
        ({"transformer": 4.0, "transformer2": 3.0}, r"for 'transformer2' \(did you mean 'transformer_2'"),
        ([4.0, 3.0], "2 guidance scales are given for a schedule of 6 rows"),
        ({"transformer": 4.0, "transformer_2": float("inf")}, "expected a finite number"),
        ("4", "expected a finite number"),
    ],
)
def test_a_scale_that_leaves_a_row_open_is_refused(made, scale, message):
    with pytest.raises(ModelError, match=message):
        made[1](NOISE, guidance_scale=scale, **GIVEN)


def test_a_program_with_one_scale_takes_no_other_in_each_row():
    class Text(torch.nn.Module):
        def forward(self, sample, timestep, text):
            return torch.sin(sample) * timestep + text

    given = {**EXAMPLE, "text": torch.zeros(2, 3)}
    program = graphopt.Sampler(Text().eval(), SCHEDULERS["UniPC"](), 5, example_inputs=given, guidance=2.0)
    with pytest.raises(ModelError, match="build the program with a scale by body or by row"):
        program(torch.zeros(2, 3), guidance_scale=[2.0] * 5, text=torch.zeros(2, 3), negative_text=torch.ones(2, 3))
