"""Approximate passes on programs: tuned on what a unit is really fed, judged by whole trajectories."""

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
import pytest
import torch
from approximate_passes import Reckless, RoundWeights
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler

import graphopt
from graphopt import Budget, Calibration, Guidance
from graphopt.errors import ModelError, PipelineError, RuleError
from graphopt.program.schedule import Schedule
from graphopt.program.step_weights import final_coefficients, step_weights


class Small(torch.nn.Module):
    """A denoiser whose embeddings of time and text can be hoisted."""

    def __init__(self):
        super().__init__()
        self.time = torch.nn.Linear(4, 8)
        self.text = torch.nn.Linear(6, 8)
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.last = torch.nn.Conv2d(8, 3, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)

    def forward(self, sample, timestep, text):
        time = self.time(torch.stack([timestep.float().sin() / k for k in range(1, 5)]))
        known = torch.tanh(self.text(text) + time)[:, :, None, None]
        return self.last(torch.tanh(self.first(sample) + known))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@cache
def program_of(guidance=None, scheduler=DDIMScheduler, batch=2):
    """Three steps; programs are immutable."""
    example = {"sample": normal(batch, 3, 6, 6), "timestep": torch.tensor(1.0), "text": normal(batch, 6)}
    return graphopt.Sampler(Small().eval(), scheduler(), 3, example_inputs=example, guidance=guidance)


def request(seed, batch=2, **names):
    shapes = {"noise": (batch, 3, 6, 6), "text": (batch, 6), "negative_text": (batch, 6)}
    wanted = ["noise", "text", *names]
    return {name: normal(*shapes[name], seed=10 * seed + k) for k, name in enumerate(wanted)}


@dataclass(frozen=True)
class Look(graphopt.GraphPass):
    """Keeps what it is shown."""

    name: ClassVar[str] = "look"

    def run(self, context):
        approximation = context.approximation(self)
        feeds = [[np.array(array) for array in batch] for batch in approximation.feeds]
        self.seen.append((feeds, list(approximation.weights), approximation.measure(context.model)))

    @property
    def seen(self):
        return self.__dict__.setdefault("_seen", [])


def looked_at(program, **options):
    look = Look()
    graphopt.optimize(program, [*options.pop("before", []), look], verify="structure", budget=1, **options)
    return look.seen


# ---- what a pass is shown ------------------------------------------------------------------------


def test_the_feeds_of_the_digits_unet_are_those_of_a_plain_guided_loop():
    from graphopt.tools.digits.models import load_unet, scheduler
    from graphopt.tools.digits.sampling import noise, sample

    unet, steps, labels = load_unet(), 2, [torch.tensor([3, 8]), torch.tensor([1, 5])]
    example = {"sample": noise(2, 0), "timestep": torch.tensor(1), "class_labels": labels[0]}
    program = graphopt.Sampler(unet, scheduler(), steps, example_inputs=example, guidance=1.5)
    anything = torch.tensor([10, 10])
    data = [
        {"noise": noise(2, seed), "class_labels": asked, "negative_class_labels": anything}
        for seed, asked in enumerate(labels)
    ]
    ((feeds, weights, measured),) = looked_at(program, calibration=data)

    calls = []
    unet.register_forward_pre_hook(lambda _, args: calls.append([np.array(a) for a in args]))
    sample(unet, noise(2, 0), labels[0], scheduler(), steps, guidance=1.5)
    assert len(feeds) == len(calls) == steps
    for fed, called in zip(feeds, calls, strict=True):
        for ours, theirs in zip(fed, called, strict=True):
            assert ours.dtype == theirs.dtype or ours.size == 1  # the traced timestep may be wider
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1.0, float(np.abs(theirs).max())))
    assert weights == [1.0] * len(feeds) and measured == 0.0


def test_every_unit_of_a_hoisted_program_is_shown_what_it_is_fed():
    program = program_of(guidance=Guidance(3.0, "calls"))
    data = [request(seed, negative_text=True) for seed in range(4)]
    names = [name for name, _ in graphopt.optimize(program, "hoist").program.bodies["denoiser"].units()]
    assert names == ["prologue", "table", "step"]
    step, prologue, table = looked_at(program, before=["hoist"], calibration=data)
    tuned, branches, rows = 2, 2, 3
    assert [len(unit[0]) for unit in (prologue, table, step)] == [
        tuned * branches, tuned * branches * rows, tuned * branches * rows,
    ]  # fmt: skip
    texts = [data[i][name].numpy() for i in (0, 2) for name in ("negative_text", "text")]
    assert all(np.array_equal(fed[0], text) for fed, text in zip(prologue[0], texts, strict=True))


def test_without_data_four_samples_or_more_are_drawn_for_each_part():
    for batch, requests in ((1, 4), (3, 2), (4, 1), (8, 1)):
        ((feeds, *_),) = looked_at(program_of(batch=batch))
        assert len(feeds) == 3 * requests
        assert len({fed[0].tobytes() for fed in feeds}) == len(feeds)
    ((feeds, *_),) = looked_at(program_of(batch=1), calibration=Calibration(limit=10))
    assert len(feeds) == 3 * 5


def test_arrays_of_several_requests_are_cut_and_noise_may_be_left_out():
    text = normal(8, 6)
    ((feeds, *_),) = looked_at(program_of(), calibration={"text": text})
    texts = [np.array(fed[2]) for fed in feeds[::3]]
    assert np.array_equal(np.concatenate(texts), text.numpy()[[0, 1, 4, 5]])


def test_calibration_of_nested_conditions_is_given_as_to_the_program():
    class Nested(Small):
        def forward(self, sample, timestep, added):
            return super().forward(sample, timestep, added["text"])

    example = {"sample": normal(2, 3, 6, 6), "timestep": torch.tensor(1), "added": {"text": normal(2, 6)}}
    program = graphopt.Sampler(Nested().eval(), DDIMScheduler(), 2, example_inputs=example)
    data = [{"added": {"text": normal(2, 6, seed=seed)}} for seed in range(2)]
    ((feeds, *_),) = looked_at(program, calibration=data)
    assert np.array_equal(feeds[0][2], data[0]["added"]["text"].numpy())


# ---- how it is judged ----------------------------------------------------------------------------


@pytest.mark.parametrize("target", [None, "onnxruntime"])
def test_what_is_spent_is_the_relative_mean_square_error_of_held_out_samples(target):
    program = program_of(guidance=2.0)
    data = [request(seed, negative_text=True) for seed in range(4)]
    options = {"verify": "structure", "calibration": data, "target": target}
    result = graphopt.optimize(program, [Reckless(0.2)], budget=math.inf, **options)
    (record,) = result.report.passes
    apart = size = 0.0
    for i in (1, 3):
        before, after = (p(**data[i]).double() for p in (program, result.program))
        apart, size = apart + float(((before - after) ** 2).sum()), size + float((before**2).sum())
    assert record.spending.metric == "trajectory-mse"
    assert record.spending.after == pytest.approx(apart / size, rel=1e-3) and record.spending.after > 1e-4


def test_a_pass_may_measure_samples_of_the_tuning_part_too():
    data = [request(seed) for seed in range(4)]

    @dataclass(frozen=True)
    class Measures(graphopt.GraphPass):
        name: ClassVar[str] = "measures"

        def run(self, context):
            approximation = context.approximation(self)
            found.append((approximation.measure_tuning(context.model), approximation.measure(context.model)))

    measured = []
    for order in (data, [data[i] for i in (1, 0, 3, 2)]):
        found = []
        options = {"verify": "structure", "calibration": order, "budget": math.inf}
        graphopt.optimize(program_of(), [Reckless(0.2), Measures()], **options)
        measured += found
    (tuning, held_out), swapped = measured
    assert tuning > 1e-4 and tuning != held_out and swapped == (held_out, tuning)


def test_units_and_passes_share_one_budget():
    limit = 0.004
    result = graphopt.optimize(
        program_of(), ["hoist", RoundWeights(0.005), RoundWeights(0.2)], budget=limit, verify="structure"
    )
    spent = [record.spending for record in result.report.passes if record.spending is not None]
    assert len(spent) == 6 and spent[0].before == 0.0
    assert all(one.after == next_.before for one, next_ in zip(spent, spent[1:], strict=False))
    assert 0 < spent[2].after < spent[-1].after <= limit
    kept = [len([a for a in r.applications if a.status == "kept"]) for r in result.report.passes if r.spending]
    assert sum(kept[:3]) == 4 and 0 < sum(kept[3:]) < 4


def test_a_program_whose_rows_draw_noise_is_measured_from_the_same_noise():
    program = program_of(scheduler=EulerAncestralDiscreteScheduler)
    assert looked_at(program)[0][2] == 0.0
    result = graphopt.optimize(program, [RoundWeights(0.1)], budget=0.001, verify="structure")
    assert 0 < result.report.passes[0].spending.after <= 0.001


def test_a_metric_of_distributions_sees_the_final_samples():
    seen = []

    def features(samples):
        seen.append(samples.shape)
        return samples.reshape(len(samples), -1)[:, :3]

    budget = Budget(graphopt.Frechet(features), 0.1)
    report = graphopt.optimize(program_of(batch=4), [RoundWeights(0.1)], budget=budget, verify="structure").report
    assert report.passes[0].spending.metric == "frechet" and report.passes[0].spending.after <= 0.1
    assert set(seen) == {(4, 3, 6, 6)}


def test_a_pass_that_leaves_the_budget_of_a_program_is_at_fault():
    with pytest.raises(RuleError, match="reckless leaves trajectory-mse at"):
        graphopt.optimize(program_of(), [Reckless(0.5)], budget=1e-6, verify="structure")


def test_a_program_without_a_budget_runs_no_approximate_pass():
    with pytest.raises(PipelineError, match="round-weights is approximate"):
        graphopt.optimize(program_of(), [RoundWeights()])


def test_end_to_end_an_approximated_program_is_judged_by_its_budget(monkeypatch):
    from graphopt.verify.verifier import Structural

    monkeypatch.setattr("graphopt.job.make_verifier", lambda *_: Structural("types"))
    report = graphopt.optimize(program_of(), [RoundWeights(0.1)], budget=0.01, verify="model").report
    assert report.notes[-1].startswith("end to end: trajectory-mse")
    report = graphopt.optimize(program_of(), "clean-up", budget=0.01, verify="model").report
    assert report.notes[-1].startswith("end to end: largest error")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([normal(2, 6)], "has a Tensor: expected dicts of its conditions by name"),
        ([{"txt": normal(2, 6)}], r"'txt', which is no input \(did you mean 'text'"),
        ([{"noise": normal(2, 3, 6, 6)}], "lacks 'text'"),
        ([{"text": normal(2, 5)}], r"expected float32\[2,6\], got float32\[2,5\]"),
        ([request(0)], "is one request, which cannot be split"),
        (Calibration(limit=1), "leaves nothing to hold out"),
        ([], "empty"),
    ],
)
def test_data_that_does_not_fit_a_program_is_refused_before_any_pass(data, says):
    with pytest.raises(ModelError, match=says):
        graphopt.optimize(program_of(), "clean-up", budget=0.1, calibration=data)


def test_guidance_asks_calibration_for_its_unconditional_branch():
    with pytest.raises(ModelError, match="negative_text"):
        graphopt.optimize(program_of(guidance=2.0), "clean-up", budget=0.1, calibration=[request(0), request(1)])


# ---- weights of steps ----------------------------------------------------------------------------

SCHEDULERS = [
    DDIMScheduler(clip_sample=False),
    DPMSolverMultistepScheduler(),
    EulerAncestralDiscreteScheduler(),
    DDIMScheduler(clip_sample=True, clip_sample_range=1e6),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=["ddim", "dpm++", "ancestral", "ddim with an inactive clamp"])
def test_coefficients_are_what_moving_one_prediction_does_to_the_final_sample(scheduler):
    schedule, start = Schedule.from_diffusers(scheduler, 6), np.random.default_rng(0).standard_normal((1, 3))
    noise = np.zeros((schedule.total_draws, 1, 3))
    predictions = np.random.default_rng(1).standard_normal((6, 1, 3))

    def final(predictions):
        given = iter(predictions)
        return schedule.run(lambda x, t: next(given), start, noise=noise)

    for row in range(6):
        moved = predictions.copy()
        moved[row] += 1.0
        np.testing.assert_allclose(final(moved) - final(predictions), final_coefficients(schedule)[row], rtol=1e-8)
    weights = step_weights(schedule, "coefficient")
    assert weights.mean() == pytest.approx(1.0) and (weights > 0).all() and weights.std() > 0
    coefficients = np.abs(final_coefficients(schedule))
    np.testing.assert_allclose(weights / weights[0], coefficients / coefficients[0])


def test_feeds_are_weighted_by_the_rows_that_they_are_for():
    program = program_of()
    calibration = Calibration([request(seed) for seed in range(4)], step_weights="coefficient")
    step, prologue, table = looked_at(program, before=["hoist"], calibration=calibration)
    rows = list(step_weights(program.schedule, "coefficient"))
    assert step[1] == pytest.approx(2 * rows) and table[1] == pytest.approx(2 * rows)
    assert prologue[1] == pytest.approx([1.0, 1.0])
