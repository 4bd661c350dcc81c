"""Programs on XLA whose denoiser is taken apart, chosen by timestep, of low precision, or returns more than it
predicts."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import copy
from dataclasses import replace

import jax
import pytest

pytest.importorskip("diffusers")
from sampling_programs import GIVEN, GUIDED, NOISE, SCHEDULERS, distance, with_scheduler
from tiny_denoisers import tiny
from xla_programs import EXAMPLE, denoiser, program_of

import graphopt
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.units import Units
from graphopt.program.body import Body, Feed, Unit
from graphopt.program.guidance import Guidance

LABELS = {"class_labels": torch.tensor([3, 4]), "negative_class_labels": torch.tensor([7, 7])}


def products(run):
    """How many products of matrices stand before the loop, and how many in it."""
    with exact_types():
        text = jax.jit(run.function()).lower(*run.arguments()).as_text()
    before = text.partition("stablehlo.while")[0].count("dot_general")
    return before, text.count("dot_general") - before


@pytest.fixture(scope="module")
def dit():
    """A DiT with a learned variance, and the same taken apart."""
    module, example = tiny("dit")
    guidance = Guidance(2.0, "calls")
    program = graphopt.Sampler(module, SCHEDULERS["DPM++ 2M"](), 5, example_inputs=example, guidance=guidance)
    return program, graphopt.optimize(program, ["hoist"], verify="off").program


def test_what_is_known_before_the_loop_is_computed_before_it(dit):
    whole, apart = (program.lower("xla", check=program is dit[1]) for program in dit)
    body = apart.program.bodies["denoiser"]
    assert body.prologue is not None and body.table is not None
    assert whole.program.interface.prediction_channels == 4
    assert apart.hlo().count(" while(") == 1
    assert (products(whole), products(apart)) == ((0, 74), (24, 50))
    expected = whole.program(NOISE, **LABELS)
    assert distance(whole(NOISE, **LABELS), expected) <= 2e-6
    assert distance(apart(NOISE, **LABELS), expected) <= 2e-6


@pytest.fixture(scope="module")
def experts():
    """Two denoisers chosen by timestep, with a guidance scale of each."""
    chosen = graphopt.Experts({"high": denoiser(), "low": denoiser(1)}, boundaries=500)
    scales = {"high": 5.0, "low": 2.0}
    return graphopt.Sampler(chosen, SCHEDULERS["UniPC"](), 8, example_inputs=EXAMPLE, guidance=scales)


def test_denoisers_chosen_by_timestep_are_one_loop(experts):
    run = experts.lower("xla")
    assert distance(run(NOISE, **GUIDED), experts(NOISE, **GUIDED)) <= 2e-6
    other = {"high": 1.5, "low": 4.0}
    got = run(NOISE, guidance_scale=other, **GUIDED)
    assert distance(got, experts(NOISE, guidance_scale=other, **GUIDED)) <= 2e-6
    assert run.compilations == 1
    hlo = run.hlo()
    assert hlo.count(" while(") == 1 and hlo.count(" conditional(") == 1


def test_denoisers_that_take_turns_and_are_taken_apart_equal_the_reference(experts):
    apart = graphopt.optimize(experts, ["hoist"], verify="off").program
    assert all(body.table is not None for body in apart.bodies.values())
    turns = replace(apart, calls=("high", "low", "low", "high") * 2)
    run = turns.lower("xla", check=False)
    assert distance(run(NOISE, **GUIDED), turns(NOISE, **GUIDED)) <= 2e-6
    assert not torch.allclose(run(NOISE, **GUIDED), apart(NOISE, **GUIDED), atol=0.01)


def test_a_table_that_takes_all_rows_at_once_gives_each_row_its_own():
    class Table(torch.nn.Module):
        def forward(self, timesteps):
            return (torch.sin(timesteps / 100),)

    class Step(torch.nn.Module):
        def forward(self, x, shift):
            return (torch.tanh(x) + shift,)

    rows = 5
    table = Unit(graphopt.load(Table(), example_inputs=(torch.arange(float(rows)),)), (Feed("timestep"),))
    step = Unit(graphopt.load(Step(), example_inputs=(NOISE, torch.tensor(1.0))), (Feed("sample"), Feed("table")))
    program = with_scheduler(program_of(denoiser()), SCHEDULERS["DDIM"](), rows)
    program = replace(
        program,
        bodies={"denoiser": Body(step, table=table, batched=True)},
        interface=replace(program.interface, conditions=()),
    )
    assert distance(program.lower("xla")(NOISE), program(NOISE)) <= 1e-6


def test_bfloat16_is_within_two_percent_of_float32_and_nearer_than_row_by_row():
    module = copy.deepcopy(denoiser()).bfloat16()
    example = {name: value if name == "timestep" else value.bfloat16() for name, value in EXAMPLE.items()}
    program = graphopt.Sampler(module, SCHEDULERS["DDIM"](), 8, example_inputs=example)
    given = {name: value.bfloat16() for name, value in GIVEN.items()}
    got = program.lower("xla")(NOISE.bfloat16(), **given)
    assert got.dtype == torch.bfloat16
    expected = program_of(denoiser())(NOISE, **GIVEN)
    by_row = program(NOISE.bfloat16(), **given)
    error, own = (float((x.float() - expected).norm() / expected.norm()) for x in (got, by_row))
    assert error < 0.02 and error < own


def test_weights_that_several_graphs_read_are_held_once(experts):
    twice = replace(experts, bodies={**experts.bodies, "low": experts.bodies["high"]})
    assert len(Units(twice).weights) == len(Units(experts).weights) / 2
    assert len(Units(program_of(denoiser())).weights) == len(list(denoiser().parameters()))


def test_conditions_may_be_shared_by_both_branches_or_lie_inside_of_an_argument():
    class Conditioned(torch.nn.Module):
        def forward(self, sample, timestep, ids, extra):
            return torch.tanh(sample * ids[0] + extra["text"].mean(1)[:, :, None, None]) * (1 + timestep / 1000)

    ids, text = torch.tensor([0.3, 2.0]), torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(4))
    example = {"sample": NOISE, "timestep": torch.tensor(1.0), "ids": ids, "extra": {"text": text}}
    program = graphopt.Sampler(
        Conditioned().eval(), SCHEDULERS["DDIM"](), 4, example_inputs=example, guidance=2.0, roles={"ids": "shared"}
    )
    given = {"ids": ids, "extra": {"text": text}, "negative_extra": {"text": -text}}
    run = program.lower("xla")
    assert distance(run(NOISE, **given), program(NOISE, **given)) <= 1e-6
    assert {*run.arguments()[1]} == {
        "noise", "initial_scale", "ids", "extra.text", "negative_extra.text", "guidance_scale"
    }  # fmt: skip
