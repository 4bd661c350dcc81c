"""What is known before the loop leaves it, bit for bit, on denoisers of five families."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_denoisers import FAMILIES, tiny
from torch.utils._python_dispatch import TorchDispatchMode

import graphopt
from graphopt.compiler import OptimizedProgram
from graphopt.ir.model import Model
from graphopt.passes import hoist_check
from graphopt.program.guidance import Guidance
from graphopt.program.program import Program
from graphopt.program.reference import RunUnit, run_unit

ROWS = 4
LEAVING = {
    "unet": ["attn2.to_k.weight", "attn2.to_v.weight", "time_embedding.linear_1.weight", "time_emb_proj.weight"],
    "pixart": [
        "attn2.to_k.weight",
        "attn2.to_v.bias",
        "adaln_single.linear.weight",
        "caption_projection.linear_2.bias",
    ],
    "sd3": [
        "context_embedder.weight",
        "norm1.linear.weight",
        "norm1_context.linear.bias",
        "text_embedder.linear_1.bias",
    ],
    "flux": ["context_embedder.weight", "norm1.linear.weight", "norm.linear.weight", "guidance_embedder.linear_1.bias"],
    "dit": ["norm1.linear.weight", "class_embedder.embedding_table.weight", "proj_out_1.weight"],
}
"""Ends of the names of weights that no step needs."""


@cache
def _sampler(family: str, guidance: Guidance | None) -> tuple[Program, torch.nn.Module]:
    module, inputs = tiny(family)
    scheduler = DDIMScheduler(clip_sample=False)
    return graphopt.Sampler(module, scheduler, ROWS, example_inputs=inputs, guidance=guidance), module


@cache
def _hoisted(family: str, guidance: Guidance | None) -> OptimizedProgram:
    return graphopt.optimize(_sampler(family, guidance)[0], "hoist", verify="model")


def sampler(family: str, guidance: Guidance | None = None) -> tuple[Program, torch.nn.Module]:
    """A program and its denoiser; the same objects whenever it is asked for."""
    return _sampler(family, guidance)


def hoisted(family: str, guidance: Guidance | None = None) -> OptimizedProgram:
    return _hoisted(family, guidance)


def request(program: Program, seed: int = 0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def drawn(type_: Any) -> torch.Tensor:
        if type_.dtype.startswith("int"):
            return torch.randint(0, 9, type_.shape, generator=generator)
        return torch.randn(type_.shape, generator=generator)

    conditions = {c.name: drawn(c.type) for c in program.interface.conditions}
    if program.guidance is not None:
        conditions |= {f"negative_{c.name}": drawn(c.type) for c in program.interface.conditions if c.branched}
    return drawn(program.interface.sample), conditions


def applications(result: OptimizedProgram) -> list[tuple[str, str, str]]:
    return [(a.id, a.status, a.evidence.kind) for r in result.report.passes for a in r.applications]


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request: pytest.FixtureRequest) -> tuple[str, Program, OptimizedProgram, torch.nn.Module]:
    program, module = sampler(request.param)
    return request.param, program, hoisted(request.param), module


def test_two_applications_are_executed_and_bit_equal(pair) -> None:
    _, _, result, _ = pair
    assert applications(result) == [
        ("hoist/prologue#1", "kept", "bit-equal"),
        ("hoist/table#1", "kept", "bit-equal"),
    ]
    assert all(a.evidence.inputs == 6 for a in result.report.kept), "two requests at three timesteps each"


def test_the_whole_denoiser_runs_once_for_each_sample_though_two_splits_are_held_against_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[int] = []

    def counting(model: Model) -> RunUnit:
        run, nodes = run_unit(model), len(list(model.main.nodes()))

        def counted(feeds: Sequence[Any]) -> Sequence[Any]:
            runs.append(nodes)
            return run(feeds)

        return counted

    monkeypatch.setattr(hoist_check, "run_unit", counting)
    program, _ = sampler("dit")
    graphopt.optimize(program, "hoist")
    whole = len(list(program.bodies["denoiser"].step.model.main.nodes()))
    assert runs.count(whole) == 6


def test_two_requests_differ_by_nothing_at_all(pair) -> None:
    _, program, result, _ = pair
    for seed in range(2):
        noise, conditions = request(program, seed)
        before, after = program(noise, **conditions), result.program(noise, **conditions)
        assert torch.equal(before, after) and before.isfinite().all()


def test_no_step_reads_timestep_or_prompt_through_a_weight_any_more(pair) -> None:
    family, program, result, _ = pair
    step = program.bodies["denoiser"].step.model
    body = result.program.bodies["denoiser"]
    left = {name for name, _, _ in step.weights()} - {name for name, _, _ in body.step.model.weights()}
    for suffix in LEAVING[family]:
        assert any(name.endswith(suffix) for name in left), suffix
    kinds = {f.kind for f in body.step.feeds}
    assert kinds <= {"sample", "prologue", "table"}, "neither the timestep nor a condition is read in the step"


def test_every_part_holds_only_the_weights_that_it_reads(pair) -> None:
    _, program, result, _ = pair
    whole = {name: size for name, size, _ in program.bodies["denoiser"].step.model.weights()}
    parts = {name: unit.model.weights() for name, unit in result.program.bodies["denoiser"].units()}
    assert {n for part in parts.values() for n, _, _ in part} <= set(whole)
    assert sum(size for _, size, _ in parts["step"]) < 0.9 * sum(whole.values())


class Products(TorchDispatchMode):
    """Counts the matrix products with each of some weights, whatever view of them is taken."""

    def __init__(self, weights: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self._names = {w.untyped_storage().data_ptr(): n for n, w in weights.items()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket._qualified_op_name.partition("::")[2] in ("addmm", "mm", "bmm", "linear"):
            for tensor in args:
                if isinstance(tensor, torch.Tensor):
                    self.counts[self._names.get(tensor.untyped_storage().data_ptr(), "")] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("family", "once_a_request"),
    [("unet", ".attn2.to_k."), ("unet", ".attn2.to_v."), ("pixart", ".attn2.to_k."), ("flux", "context_embedder")],
)
def test_keys_and_values_of_the_prompt_are_computed_once_a_request_and_time_once_a_row(
    family: str, once_a_request: str
) -> None:
    program, module = sampler(family)
    weights = {n: p for n, p in module.named_parameters() if n.endswith("weight") and p.ndim == 2}
    noise, conditions = request(program)
    counts = []
    for version in (program, hoisted(family).program):
        with Products(weights) as products:
            version(noise, **conditions)
        counts.append(products.counts)
    before, after = counts
    prompt = [n for n in weights if once_a_request in n]
    time = [n for n in weights if "timestep_embedder" in n or n.startswith("time_embedding")]
    assert prompt and time
    assert {before[n] for n in prompt} == {ROWS} and {after[n] for n in prompt} == {1}
    assert {before[n] for n in time} == {ROWS} and {after[n] for n in time} == {ROWS}
    others = [n for n in weights if n.endswith(("attn1.to_q.weight", "attn.to_q.weight"))]
    assert others and {after[n] for n in others} == {ROWS}


def test_time_projections_run_in_the_table_and_nowhere_else() -> None:
    _, module = sampler("unet")
    body = hoisted("unet").program.bodies["denoiser"]
    time = {n for n, _ in module.named_parameters() if n.startswith("time_emb") or ".time_emb_proj." in n}
    held = {name: {n for n, _, _ in unit.model.weights()} for name, unit in body.units()}
    assert time <= held["table"] and not time & (held["step"] | held["prologue"])


@pytest.mark.parametrize("mode", ["batch", "calls"])
def test_guidance_changes_nothing_about_it(mode: Any) -> None:
    guidance = Guidance(4.0, mode=mode)
    program, result = sampler("pixart", guidance)[0], hoisted("pixart", guidance)
    noise, conditions = request(program)
    assert len(result.report.kept) == 2
    assert torch.equal(program(noise, **conditions), result.program(noise, **conditions))


def test_the_program_that_was_given_stays_as_it_was() -> None:
    program, _ = sampler("dit")
    step = program.bodies["denoiser"].step
    before = step.model.main.fingerprint()
    graphopt.optimize(program, "hoist")
    assert step.model.main.fingerprint() == before and program.bodies["denoiser"].prologue is None


def test_other_passes_find_the_parts_afterwards() -> None:
    program, _ = sampler("pixart")
    result = graphopt.optimize(program, "hoist,clean-up,hoist")
    assert {r.where for r in result.report.passes} == {
        "", "denoiser/prologue", "denoiser/table", "denoiser/step",
    }  # fmt: skip
    again = result.report.passes[-1]
    assert again.applications == []
    assert [n for n in again.notes if "already" in n] == [
        "denoiser: has a prologue already", "denoiser: has a table already",
    ]  # fmt: skip
    noise, conditions = request(program)
    got, expected = result.program(noise, **conditions), program(noise, **conditions)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


def test_a_body_without_conditions_gets_a_table_and_no_prologue_of_its_own() -> None:
    from diffusers import UNet2DModel
    from tiny_denoisers import randomised

    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    program = graphopt.Sampler(randomised(unet), DDIMScheduler(clip_sample=False), ROWS)
    result = graphopt.optimize(program, "hoist")
    body = result.program.bodies["denoiser"]
    assert body.table is not None and {f.kind for f in body.step.feeds} == {"sample", "table"}
    noise, _ = request(program)
    assert torch.equal(program(noise), result.program(noise))


def test_the_report_says_what_each_stage_holds_and_what_left() -> None:
    notes = hoisted("dit").report.passes[0].notes
    stages = [line.split()[0] for line in notes if line.startswith("  ")]
    assert stages == ["stage", "model", "schedule", "request", "schedule", "step"]
    assert any(n.startswith("denoiser/prologue: ") and "keeps" in n for n in notes)
    assert any(n.startswith("denoiser/table: ") and n.endswith("B per row") for n in notes)
    assert notes[-1].startswith("denoiser: 23,440 of 34,160 parameters (68.6%) left the loop")


def test_without_weighing_more_is_kept_and_the_result_is_the_same() -> None:
    program, _ = sampler("flux")
    weighed = hoisted("flux").program
    everything = graphopt.optimize(program, "hoist{weigh=false}").program
    kept = [
        sum(len(u.model.main.outputs()) for n, u in p.bodies["denoiser"].units() if n != "step")
        for p in (weighed, everything)
    ]
    assert kept[0] <= kept[1]
    noise, conditions = request(program)
    assert torch.equal(weighed(noise, **conditions), everything(noise, **conditions))
