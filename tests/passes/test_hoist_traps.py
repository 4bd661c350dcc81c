"""What hoisting must not do: serve what is stale, keep a wrong split, claim what was not executed."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_denoisers import tiny
from torch import nn

import graphopt
from graphopt.passes import hoist as module
from graphopt.passes.hoist import Hoist
from graphopt.program.body import Feed, Unit
from graphopt.program.program import Program
from graphopt.program.stages import Stage


@cache
def pixart() -> Program:
    denoiser, inputs = tiny("pixart")
    return graphopt.Sampler(denoiser, DDIMScheduler(clip_sample=False), 3, example_inputs=inputs)


@cache
def hoisted() -> Program:
    return graphopt.optimize(pixart(), "hoist").program


def sampler(denoiser: nn.Module, **example: torch.Tensor) -> Program:
    inputs = {"x": torch.randn(1, 4), "t": torch.tensor(1.0), **example}
    return graphopt.Sampler(denoiser.eval(), DDIMScheduler(clip_sample=False), 3, example_inputs=inputs)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def applications(result: Any) -> dict[str, tuple[str, str]]:
    return {a.id: (a.status, a.evidence.kind) for a in result.report.passes[0].applications}


# ---- never stale ---------------------------------------------------------------------------------------------


def test_a_prompt_that_is_overwritten_in_place_is_computed_anew() -> None:
    noise, prompt = draw(2, 4, 8, 8), draw(2, 6, 24, seed=1)
    first = hoisted()(noise, encoder_hidden_states=prompt)
    prompt.copy_(draw(2, 6, 24, seed=2))
    second = hoisted()(noise, encoder_hidden_states=prompt)
    assert not torch.equal(first, second)
    assert torch.equal(second, pixart()(noise, encoder_hidden_states=prompt))


def test_another_prompt_at_the_same_address_is_computed_anew() -> None:
    noise, memory = draw(2, 4, 8, 8), np.zeros((2, 6, 24), np.float32)
    results, addresses, versions = [], set(), set()
    for seed in (1, 2):
        memory[...] = draw(2, 6, 24, seed=seed).numpy()
        prompt = torch.from_numpy(memory)
        addresses.add(prompt.data_ptr())
        versions.add(prompt._version)
        results.append((hoisted()(noise, encoder_hidden_states=prompt), pixart()(noise, encoder_hidden_states=prompt)))
        del prompt
    assert len(addresses) == len(versions) == 1, "nothing about the tensor tells the two apart"
    assert not torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(got, expected) for got, expected in results)


def test_a_prompt_that_changes_during_a_call_counts_as_it_was_at_the_start() -> None:
    noise, prompt = draw(2, 4, 8, 8), draw(2, 6, 24, seed=1)
    expected = hoisted()(noise, encoder_hidden_states=prompt)

    def meddle(row: int, sample: Any) -> None:
        prompt.zero_()

    assert torch.equal(hoisted()(noise, encoder_hidden_states=prompt, callback=meddle), expected)


# ---- wrong splits are undone, alone --------------------------------------------------------------------------


def swap_first_two_of_one_type(unit: Unit, place: str) -> Unit:
    """Lets two inputs of equal types read each other's value."""
    inputs = unit.model.main.inputs()
    types = [unit.model.main.type(v) for v in inputs]
    for i, j in itertools.combinations(range(len(inputs)), 2):
        if unit.feeds[i].kind == unit.feeds[j].kind == place and types[i] == types[j]:
            feeds = list(unit.feeds)
            feeds[i], feeds[j] = feeds[j], feeds[i]
            return Unit(unit.model, tuple(feeds))
    raise AssertionError(f"no two inputs of one type come from the {place}")


@pytest.mark.parametrize("wrong", ["prologue", "table"])
def test_a_step_that_reads_the_wrong_kept_value_is_undone_and_the_other_part_stays(
    monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    split = module.split

    def planted(step: Unit, place: Any, cut: Any) -> tuple[Unit, Unit]:
        first, rest = split(step, place, cut)
        return first, swap_first_two_of_one_type(rest, place) if place == wrong else rest

    monkeypatch.setattr(module, "split", planted)
    result = graphopt.optimize(pixart(), "hoist")
    other = {"prologue": "table", "table": "prologue"}[wrong]
    assert applications(result) == {
        f"hoist/{wrong}#1": ("undone", "executed"),
        f"hoist/{other}#1": ("kept", "bit-equal"),
    }
    (undone,) = result.report.undone
    assert "is not bit-equal" in undone.reason and "request 0 at timestep" in undone.reason
    body = result.program.bodies["denoiser"]
    assert getattr(body, wrong) is None and getattr(body, other) is not None
    noise, prompt = draw(2, 4, 8, 8), draw(2, 6, 24, seed=1)
    expected = pixart()(noise, encoder_hidden_states=prompt)
    assert torch.equal(result.program(noise, encoder_hidden_states=prompt), expected)


def test_a_value_of_the_step_that_is_taken_for_one_of_the_request_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timestep classed as a condition: a prologue would need it, and has none."""
    wrong = {"sample": Stage.STEP, "timestep": Stage.REQUEST}

    def lying(unit: Unit) -> Any:
        return {v: wrong.get(f.kind, Stage.REQUEST) for v, f in zip(unit.model.main.inputs(), unit.feeds, strict=True)}

    monkeypatch.setattr(module, "input_stages", lying)
    result = graphopt.optimize(pixart(), "hoist")
    assert applications(result) == {"hoist/prologue#1": ("undone", "none")}
    assert result.report.undone[0].reason == "the prologue reads the timestep, which is not known when it runs"
    assert result.program.bodies["denoiser"].prologue is None


def test_a_part_that_returns_another_type_is_undone_without_running(monkeypatch: pytest.MonkeyPatch) -> None:
    split = module.split

    def planted(step: Unit, place: Any, cut: Any) -> tuple[Unit, Unit]:
        first, rest = split(step, place, cut)
        feeds = tuple(Feed(f.kind, f.name, 0) for f in rest.feeds)
        return first, Unit(rest.model, feeds)

    monkeypatch.setattr(module, "split", planted)
    result = graphopt.optimize(pixart(), "hoist", limit=1, verify="structure")
    assert applications(result)["hoist/prologue#1"] == ("undone", "none")
    assert "the step takes prologue[0] as" in result.report.undone[0].reason


# ---- ids, limits and levels ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"skip": ["hoist/prologue#1"]}, [("skipped", "none"), ("kept", "bit-equal")]),
        ({"skip": ["hoist/table#1"]}, [("kept", "bit-equal"), ("skipped", "none")]),
        ({"limit": 1}, [("kept", "bit-equal")]),
        ({"limit": 0}, []),
        ({"verify": "off"}, [("kept", "none"), ("kept", "none")]),
        ({"verify": "structure"}, [("kept", "types"), ("kept", "types")]),
    ],
)
def test_applications_can_be_skipped_limited_and_taken_on_trust(options: Any, expected: Any) -> None:
    result = graphopt.optimize(pixart(), "hoist", **options)
    ids = ("hoist/prologue#1", "hoist/table#1")
    assert applications(result) == dict(zip(ids, expected, strict=False))
    noise, prompt = draw(2, 4, 8, 8), draw(2, 6, 24, seed=1)
    got = result.program(noise, encoder_hidden_states=prompt)
    assert torch.equal(got, pixart()(noise, encoder_hidden_states=prompt))


def test_a_program_with_two_bodies_counts_them_one_after_the_other() -> None:
    program = pixart()
    both = dict.fromkeys(("early", "late", "unused"), program.bodies["denoiser"])
    two = replace(program, bodies=both, calls=("early", "late", "late"))
    result = graphopt.optimize(two, "hoist")
    assert list(applications(result)) == ["hoist/prologue#1", "hoist/table#1", "hoist/prologue#2", "hoist/table#2"]
    assert result.program.bodies["unused"].table is None
    noise, prompt = draw(2, 4, 8, 8), draw(2, 6, 24, seed=1)
    expected = program(noise, encoder_hidden_states=prompt)
    assert torch.equal(result.program(noise, encoder_hidden_states=prompt), expected)


def test_without_data_nothing_is_claimed_to_have_been_executed() -> None:
    with torch.device("meta"):
        denoiser, inputs = tiny_meta()
    program = graphopt.Sampler(denoiser, DDIMScheduler(clip_sample=False), 3, example_inputs=inputs)
    trusting = graphopt.optimize(program, "hoist", verify="structure")
    assert applications(trusting) == {"hoist/prologue#1": ("kept", "types"), "hoist/table#1": ("kept", "types")}
    assert all(a.evidence.notes == ("types only: nothing was executed",) for a in trusting.report.kept)
    assert "parameters" in trusting.report.passes[0].notes[-1]
    strict = graphopt.optimize(program, "hoist")
    assert {a.status for a in strict.report.passes[0].applications} == {"undone"}
    assert "device meta" in strict.report.undone[0].reason and "verify='structure'" in strict.report.undone[0].reason


def tiny_meta() -> tuple[nn.Module, dict[str, Any]]:
    from tiny_denoisers import FAMILIES

    denoiser, inputs = FAMILIES["dit"]()
    return denoiser.eval(), {n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}


def test_a_price_that_is_no_price_is_refused() -> None:
    with pytest.raises(ValueError, match="byte-price"):
        Hoist(byte_price=-1.0)
    assert str(Hoist(byte_price=1e-8)) == "hoist{byte-price=1e-08}"


# ---- models that are odd -------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Draws noise of the shape of the prompt in every step."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return x * t + torch.randn_like(c.exp())


def test_noise_is_drawn_in_every_step() -> None:
    program = sampler(Noisy(), c=torch.randn(1, 4))
    result = graphopt.optimize(program, [Hoist(weigh=False)], verify="structure")
    torch.manual_seed(0)
    step = result.program.bodies["denoiser"].step.model.main
    assert [step.raw_name(n) for n in step.nodes() if not step.is_pure(n)] == ["aten.randn_like.default"]


class Checked(nn.Module):
    """Casts, for which torch.export asserts the dtype of every input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.layer(c.to(torch.float64).to(torch.float32)) + x * torch.sin(t.to(torch.float64)).to(torch.float32)


def test_checks_of_inputs_go_with_who_reads_them() -> None:
    program = sampler(Checked(), c=torch.randn(1, 4))
    result = graphopt.optimize(program, [Hoist(weigh=False)])
    assert len(result.report.kept) == 2
    body = result.program.bodies["denoiser"]
    assert [f.kind for f in body.step.feeds] == ["sample", "prologue", "table"]
    checks = {
        name: sum("assert" in unit.model.main.raw_name(n) for n in unit.model.main.nodes())
        for name, unit in body.units()
    }
    assert checks == {"prologue": 1, "table": 1, "step": 1}
    noise, c = draw(1, 4), draw(1, 4, seed=1)
    assert torch.equal(program(noise, c=c), result.program(noise, c=c))


class Late(nn.Module):
    """Everything depends on the sample."""

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return x * t + c


def test_where_nothing_is_known_early_nothing_is_done() -> None:
    program = sampler(Late(), c=torch.randn(1, 4))
    result = graphopt.optimize(program, "hoist")
    assert applications(result) == {}
    body = result.program.bodies["denoiser"]
    assert body.prologue is None and body.table is None


class Early(nn.Module):
    """Nothing depends on the sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return self.layer(c) * t


def test_where_everything_is_known_early_the_step_hands_it_on() -> None:
    program = sampler(Early(), c=torch.randn(1, 4))
    result = graphopt.optimize(program, [Hoist(weigh=False)])
    assert [s for s, _ in applications(result).values()] == ["kept", "kept"]
    assert result.program.bodies["denoiser"].step.model.weights() == []
    noise, c = draw(1, 4), draw(1, 4, seed=1)
    assert torch.equal(program(noise, c=c), result.program(noise, c=c))


class Branching(nn.Module):
    """A branch on the prompt, and one on the sample, that capture the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        text = torch.cond(c.sum() > 0, lambda v: self.layer(v).tanh(), lambda v: -self.layer(v), (c,))
        return torch.cond(x.sum() > 0, lambda v, w: v + w, lambda v, w: v - w, (x, text)) * t


def test_a_branch_on_the_prompt_leaves_the_loop_with_its_bodies() -> None:
    program = sampler(Branching(), c=torch.randn(1, 4))
    result = graphopt.optimize(program, [Hoist(weigh=False)])
    assert [s for s, _ in applications(result).values()] == ["kept"]
    body = result.program.bodies["denoiser"]
    assert body.prologue is not None
    assert len(body.prologue.model.regions()) == len(body.step.model.regions()) == 3
    for seed in range(4):
        noise, c = draw(1, 4, seed=seed), draw(1, 4, seed=10 + seed)
        assert torch.equal(program(noise, c=c), result.program(noise, c=c))


def test_a_graph_that_cannot_be_cut_stays_whole_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    model = type(pixart().bodies["denoiser"].step.model)
    extract, whole = model.extract, len(pixart().bodies["denoiser"].step.feeds)

    def failing(self: Any, nodes: Any, inputs: Any, outputs: Any) -> Any:
        if len(inputs) < whole:
            raise RuntimeError("no scissors")
        return extract(self, nodes, inputs, outputs)

    monkeypatch.setattr(model, "extract", failing)
    result = graphopt.optimize(pixart(), "hoist")
    assert {a.reason for a in result.report.undone} == {"the split raised RuntimeError: no scissors"}
    assert [name for name, _ in result.program.bodies["denoiser"].units()] == ["step"]
