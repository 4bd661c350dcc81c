"""What a denoiser chooses by its timestep becomes bodies of a program, which compute the same bits."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from wan_pairs import GIVEN, NOISE, SCHEDULERS, distance, example, sampled, transformer, wan

import graphopt
from graphopt.diffusers import accelerate
from graphopt.errors import UnsupportedError
from graphopt.passes.route_timesteps import RouteTimesteps
from graphopt.passes.timestep_choices import find_choices

STEPS, ROWS = 6, (2, 8)


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.high, self.low = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)


class Where(Two):
    def forward(self, sample, timestep):
        return torch.where((timestep >= 875.0)[:, None], torch.tanh(self.high(sample)), torch.sin(self.low(sample)))


class Branch(Two):
    def forward(self, sample, timestep):
        high, low = (lambda x: torch.tanh(self.high(x))), (lambda x: torch.sin(self.low(x)))
        return torch.cond(timestep[0] >= 875.0, high, low, (sample,)) + 1


class Stacked(torch.nn.Module):
    """Three experts whose weights are one tensor."""

    def __init__(self, count=3):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(count, 8, 8))
        self.bias = torch.nn.Parameter(torch.randn(count, 8))
        self.edges = torch.nn.Buffer(torch.linspace(400.0, 875.0, count - 1))

    def forward(self, sample, timestep):
        expert = (timestep[:1, None] >= self.edges).sum(-1)
        return torch.tanh(sample @ self.weight[expert][0] + self.bias[expert])


class Three(Where):
    """A choice within a choice, and a number by the timestep that is no expert."""

    def __init__(self):
        super().__init__()
        self.middle = torch.nn.Linear(8, 8)

    def forward(self, sample, timestep):
        t = timestep[:, None]
        low = torch.where(t >= 600.0, torch.cos(self.middle(sample)), torch.sin(self.low(sample)))
        return torch.where(t >= 875.0, torch.tanh(self.high(sample)), low) * torch.where(t > 30.0, 1.0, 0.5)


EXAMPLE = {"sample": torch.randn(ROWS, generator=torch.Generator().manual_seed(1)), "timestep": torch.ones(2)}
START = torch.randn(ROWS, generator=torch.Generator().manual_seed(2))
TARGETS = [None, "onnxruntime"]


def sampler(module, **options):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    return graphopt.Sampler(module.eval(), scheduler, STEPS, **{"example_inputs": EXAMPLE, **options})


def routed(program, target, **options):
    """The program in its storage, and after the pass."""
    before = program if target is None else program.convert(target)
    result = graphopt.optimize(before, [RouteTimesteps(**options)], verify="model")
    return before, result.model, result.report.passes[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("make", "count"), [(Where, 2), (Branch, 2), (Stacked, 3), (Three, 3)])
def test_every_expert_is_a_body_with_its_own_weights_alone(make, count, target):
    program, after, record = routed(sampler(make()), target)
    assert [a.status for a in record.applications] == ["kept"]
    assert record.applications[0].evidence.kind == "bit-equal"
    assert torch.equal(after(START), program(START))

    rows = [sorted(set(after.calls)).index(name) for name in after.calls]
    assert rows == sorted(rows) and set(rows) == set(range(count))
    whole = sum(size for _, _, size in program.bodies["denoiser"].step.model.weights())
    for body in after.bodies.values():
        assert not find_choices(body.step) or make is Three
        assert sum(size for _, _, size in body.step.model.weights()) <= 1.1 * whole / count


@pytest.mark.parametrize("target", TARGETS)
def test_the_boundary_is_where_the_module_has_it(target):
    _, after, _ = routed(sampler(Where()), target)
    high = [t >= 875.0 for t in after.schedule.timesteps]
    assert after.calls == tuple("denoiser_1" if is_high else "denoiser_2" for is_high in high)
    assert 1 < sum(high) < STEPS


def test_a_choice_that_is_the_same_in_all_rows_leaves_one_body():
    class Never(Where):
        def forward(self, sample, timestep):
            return super().forward(sample, timestep * 0.001)

    program, after, _ = routed(sampler(Never()), None)
    assert set(after.calls) == {"denoiser_1"} and list(after.bodies) == ["denoiser_1"]
    assert len(list(after.bodies["denoiser_1"].step.model.weights())) == 2
    assert torch.equal(after(START), program(START))


class Wan(torch.nn.Module):
    """Both transformers in one module."""

    def __init__(self):
        super().__init__()
        self.high, self.low = transformer(1), transformer(2)

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        given = {
            "hidden_states": hidden_states, "timestep": timestep, "encoder_hidden_states": encoder_hidden_states,
            "return_dict": False,
        }  # fmt: skip
        high, low = self.high(**given)[0], self.low(**given)[0]
        return torch.where((timestep >= 875.0)[:, None, None, None, None], high, low)


def test_two_transformers_of_wan_in_one_module_become_two_bodies_in_every_form():
    guidance = graphopt.Guidance(4.0, "calls")
    program = graphopt.Sampler(Wan().eval(), SCHEDULERS["UniPC"](), STEPS, example_inputs=example(), guidance=guidance)
    passes = ["route-timesteps", "hoist", "clean-up"]
    result = graphopt.optimize(program, passes, target="onnxruntime", verify="model")
    expected = sampled(wan("UniPC"), STEPS, 4.0, None)
    assert len(result.model.bodies) == 2
    for options in ({"form": "loop"}, {"low_memory": True}):
        run = result.lower("onnxruntime", threads=1, **options)
        assert distance(run(NOISE, **GIVEN), expected) <= 1e-5


def test_a_scale_by_body_stays_with_its_rows():
    class Text(Where):
        def forward(self, sample, timestep, text):
            return super().forward(sample, timestep) + text

    given = {**EXAMPLE, "text": torch.zeros(ROWS)}
    guidance = graphopt.Guidance({"denoiser": 3.0}, "calls")
    program, after, _ = routed(sampler(Text(), example_inputs=given, guidance=guidance), None)
    text = {"text": START, "negative_text": -START}
    assert after.guidance.scale == (3.0,) * STEPS
    assert torch.equal(after(START, **text), program(START, **text))


class BySample(Two):
    def forward(self, sample, timestep):
        chosen = sample.sum() + timestep[0] >= 875.0
        return torch.where(chosen, torch.tanh(self.high(sample)), torch.sin(self.low(sample)))


class Number(torch.nn.Module):
    """No more than a number is chosen."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, sample, timestep):
        return self.layer(sample) * torch.where(timestep >= 875.0, 2.0, timestep)[:, None]


class PerElement(Two):
    """Elements of the batch choose differently."""

    def forward(self, sample, timestep):
        chosen = timestep[:, None] + torch.tensor([[0.0], [1000.0]]) >= 1500.0
        return torch.where(chosen, torch.tanh(self.high(sample)), torch.sin(self.low(sample)))


@pytest.mark.parametrize("make", [BySample, Number])
def test_what_is_no_choice_of_experts_by_timestep_is_left_alone(make):
    program, after, record = routed(sampler(make()), None)
    assert list(after.bodies) == ["denoiser"] and not record.applications and not record.notes
    assert torch.equal(after(START), program(START))


class Trunk(Where):
    """Nearly all weights are read by both experts."""

    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 8))

    def forward(self, sample, timestep):
        return super().forward(self.trunk(sample), timestep)


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (Trunk, {}, "its bodies would have weights of .* as most are read whatever the timestep is; growth=0.1 allows"),
        (Stacked, {"most": 2}, "a choice among more than 2"),
        (Three, {"most": 2}, "3 bodies would be needed, and most=2"),
        (PerElement, {}, "elements of a batch choose differently"),
    ],
)
def test_what_is_not_worth_it_is_refused_with_the_reason(make, options, reason):
    program, after, record = routed(sampler(make()), None, **options)
    assert list(after.bodies) == ["denoiser"] and not record.applications
    assert re.search(f"denoiser: chooses at run time: .*{reason}", record.notes[0]), record.notes
    assert torch.equal(after(START), program(START))


def test_more_growth_makes_bodies_that_share_much():
    program, after, _ = routed(sampler(Trunk()), None, growth=1.0)
    assert len(after.bodies) == 2 and torch.equal(after(START), program(START))


def test_after_hoist_it_is_refused():
    class Late(Where):
        def forward(self, sample, timestep):
            return super().forward(sample, timestep) + torch.cos(timestep.exp().sin())[:, None]

    result = graphopt.optimize(sampler(Late()), ["hoist{weigh=false}", "route-timesteps"])
    assert list(result.model.bodies) == ["denoiser"]
    assert "route timesteps before hoist" in str(result.report.passes[-1].notes)


def test_options_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="most=0"):
        RouteTimesteps(most=0)
    with pytest.raises(ValueError, match="growth=-1"):
        RouteTimesteps(growth=-1.0)


def test_a_pipeline_whose_timesteps_change_refuses_bodies_for_some():
    pipe = wan("UniPC", transformer=bent(), transformer_2=None, boundary_ratio=None)
    fast = accelerate(pipe, passes=[RouteTimesteps(growth=1.0)])
    with pytest.raises(UnsupportedError, match="made bodies for certain timesteps"):
        sampled(fast, STEPS, 4.0, None)


def bent():
    """A transformer of Wan that bends its output differently at high noise."""

    class Bent(WanTransformer3DModel):
        def forward(self, hidden_states, timestep, encoder_hidden_states, **options):
            out = super().forward(hidden_states, timestep, encoder_hidden_states, return_dict=False)[0]
            return (torch.where((timestep >= 875)[:, None, None, None, None], out.tanh(), out.sin()),)

    made = copy.deepcopy(transformer(1))
    made.__class__ = Bent
    return made
