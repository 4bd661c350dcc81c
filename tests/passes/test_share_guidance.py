"""What both halves of a guided batch have in common is computed once, gives the same samples, and costs less."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from tiny_denoisers import randomised, tiny

import graphopt
from graphopt.compiler import OptimizedProgram
from graphopt.passes import share_guidance, twin_rules
from graphopt.passes.hoist_cost import node_flops
from graphopt.passes.twin_rules import Kind, Site, half_call
from graphopt.program.guidance import Guidance
from graphopt.program.interface import NEGATIVE
from graphopt.program.program import Program
from graphopt.tools.digits import models

STEPS = 3
GUIDANCE = Guidance(3.0, rescale=0.7)


@cache
def digits(kind: str) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A digit denoiser with random weights and two images."""
    make = {"unet": models.DigitUNet, "dit": models.DigitDiT}[kind]
    noise = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    inputs = {"sample": noise, "timestep": torch.tensor(1), "class_labels": torch.tensor([3, 5])}
    return randomised(make(models.config(kind))), inputs


@cache
def sampler(family: str, guidance: Guidance | None = GUIDANCE) -> Program:
    module, inputs = digits(family.removeprefix("digits-")) if family.startswith("digits") else tiny(family)
    schedule = DPMSolverMultistepScheduler()
    return graphopt.Sampler(module, schedule, STEPS, example_inputs=inputs, guidance=guidance)


@cache
def shared(family: str) -> OptimizedProgram:
    return graphopt.optimize(sampler(family), ["share-guidance"])


def request(program: Program, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Noise, and conditions of which each image and each branch has another."""
    rng = np.random.default_rng(seed)

    def drawn(type_: Any) -> torch.Tensor:
        if type_.dtype.startswith("int"):
            return torch.from_numpy(rng.permutation(9)[: type_.shape[0]].astype(type_.dtype))
        return torch.from_numpy(rng.standard_normal(type_.shape).astype(type_.dtype))

    given = {c.name: drawn(c.type) for c in program.interface.conditions}
    given |= {NEGATIVE + c.name: drawn(c.type) for c in program.interface.conditions if c.branched}
    return drawn(program.interface.sample), given


def relative(expected: Any, got: Any) -> float:
    expected, got = np.asarray(expected), np.asarray(got)
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def applications(result: OptimizedProgram) -> list[Any]:
    return [a for r in result.report.passes for a in r.applications]


def notes(result: OptimizedProgram) -> str:
    return "\n".join(note for r in result.report.passes for note in r.notes)


def step_flops(program: Program) -> int:
    (body,) = program.bodies.values()
    graph = body.step.model.main
    return sum(node_flops(graph, node) or 0 for node in graph.nodes())


def test_a_unet_computes_what_stands_before_its_conditions_once_and_samples_the_same():
    result = shared("digits-unet")
    (application,) = applications(result)
    assert (application.id, application.status) == ("share-guidance/step#1", "kept")
    assert application.evidence.kind == "executed" and application.evidence.worst <= 1.0
    program = sampler("digits-unet")
    noise, given = request(program)
    assert relative(program(noise, **given), result.program(noise, **given)) < 1e-5
    assert step_flops(result.program) < 0.93 * step_flops(program)


@pytest.mark.parametrize("backend", ["onnxruntime", "xla"])
def test_what_is_shared_can_be_lowered_after_the_other_passes(backend):
    if find_spec("torchax") is None and backend == "xla":  # not imported: that makes "jax" a device of torch
        pytest.skip("torchax is not installed: pip install 'graphopt[xla]'")
    program = sampler("digits-unet")
    target = backend if backend == "onnxruntime" else None
    result = graphopt.optimize(program, ["share-guidance", "hoist", "batch-tables"], target=target)
    assert {a.status for a in applications(result)} == {"kept"}
    noise, given = request(program, seed=1)
    assert relative(program(noise, **given), result.lower(backend)(noise, **given)) < 1e-5


@pytest.mark.parametrize("family", ["unet", "pixart"])
def test_denoisers_with_cross_attention_sample_the_same(family):
    result, program = shared(family), sampler(family)
    noise, given = request(program)
    assert relative(program(noise, **given), result.program(noise, **given)) < 1e-5


@pytest.mark.parametrize("family", ["sd3", "digits-dit"])
def test_where_the_condition_enters_with_the_timestep_nothing_is_changed_and_the_note_says_so(family):
    result = shared(family)
    assert not applications(result)
    assert "none so much that a copy is cheaper" in notes(result)


@pytest.mark.parametrize("guidance", [None, Guidance(3.0, mode="calls")])
def test_without_a_batch_of_two_halves_there_is_nothing_to_do(guidance):
    result = graphopt.optimize(sampler("digits-unet", guidance), ["share-guidance"])
    assert not applications(result) and "nothing is in a batch twice" in notes(result)


def test_a_skipped_application_leaves_the_program_as_it_was():
    program = sampler("digits-unet")
    result = graphopt.optimize(program, ["share-guidance"], skip=["share-guidance/step#1"])
    assert [a.status for a in applications(result)] == ["skipped"]
    assert step_flops(result.program) == step_flops(program)


def test_halves_that_differ_are_found_and_the_change_is_undone(monkeypatch):
    true = share_guidance._kinds

    def conditions_too(*unit):
        return {value: Kind.TWIN if kind is Kind.OTHER else kind for value, kind in true(*unit).items()}

    monkeypatch.setattr(share_guidance, "_kinds", conditions_too)
    program = sampler("unet")
    result = graphopt.optimize(program, ["share-guidance"])
    assert [a.status for a in applications(result)] == ["undone"]
    assert "error" in applications(result)[0].reason
    noise, given = request(program)
    assert torch.equal(result.program(noise, **given), program(noise, **given))


def test_a_wrong_rule_is_found_and_the_change_is_undone(monkeypatch):
    """Normalising over the batch as if each sample stood by itself."""
    true = twin_rules.half_call

    def wrong(site):
        return {"axes": (0,)} if site.op == "reduce_mean" else {"groups": 2} if site.op == "group_norm" else true(site)

    monkeypatch.setattr("graphopt.passes.twins.half_call", wrong)
    result = graphopt.optimize(sampler("digits-unet"), ["share-guidance"])
    assert [a.status for a in applications(result)] == ["undone"]


def site(op: str, *operands: tuple[Kind, tuple[int, ...]], result: tuple[int, ...], **fields: Any) -> Site:
    return Site(op, tuple(k for k, _ in operands), tuple(s for _, s in operands), fields, (result,))


TWIN, WHOLE = Kind.TWIN, Kind.WHOLE


@pytest.mark.parametrize(
    "mixing",
    [
        site("softmax", (TWIN, (4, 3)), result=(4, 3), axis=0),
        site("softmax", (TWIN, (4, 3)), result=(4, 3), axis=-2),
        site("concat", (TWIN, (4, 3)), (TWIN, (4, 3)), result=(8, 3), axis=0),
        site("concat", (TWIN, (4, 3)), (WHOLE, (4, 3)), result=(4, 6), axis=1),
        site("transpose", (TWIN, (4, 3)), result=(3, 4), perm=(1, 0)),
        site("transpose", (TWIN, (4, 4)), result=(4, 4), perm=(1, 0)),
        site("add", (TWIN, (4, 3)), (WHOLE, (4, 3)), result=(4, 3)),
        site("add", (TWIN, (4, 3)), (TWIN, (4,)), result=(4, 3)),
        site("add", (TWIN, (4,)), (WHOLE, (2, 4)), result=(2, 4)),
        site("reduce_mean", (TWIN, (4, 3)), result=(1, 3), axes=(0,), keepdims=True),
        site("roll", (TWIN, (4, 3)), result=(4, 3), axes=(0, 1), shifts=(1, 1)),
        site("unsqueeze", (TWIN, (4, 3)), result=(1, 4, 3), axes=(0,)),
        site("matmul", (WHOLE, (4, 4)), (TWIN, (4, 6)), result=(4, 6)),
        site("matmul", (WHOLE, (4, 5, 3)), (TWIN, (4, 3, 6)), result=(4, 5, 6)),
        site("pad", (TWIN, (2, 3)), result=(4, 3), pads=(1, 0, 1, 0)),
        site("matmul", (TWIN, (3, 3)), (WHOLE, (3, 6)), result=(3, 6)),
        site("no_such_op", (TWIN, (4, 3)), result=(4, 3)),
    ],
    ids=lambda s: s.op,
)
def test_what_mixes_the_halves_or_tells_them_apart_has_no_twin(mixing):
    assert half_call(mixing) is None
