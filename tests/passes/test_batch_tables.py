"""Tables of all rows: the same samples as row by row, in every form, for every schedule; and when it is not done."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_denoisers import FAMILIES, randomised, tiny

import graphopt
from graphopt.compiler import OptimizedProgram
from graphopt.passes import batching_rules
from graphopt.passes.batch_tables import BatchTables, batched_body
from graphopt.passes.hoist import Hoist
from graphopt.program.guidance import Guidance
from graphopt.program.interface import NEGATIVE
from graphopt.program.program import Program
from graphopt.program.schedule import Schedule
from graphopt.program.stages import stage_table
from graphopt.tools.digits import models

ROWS = 4


def scheduler() -> Any:
    return DDIMScheduler(clip_sample=False)


def digits() -> tuple[torch.nn.Module, dict[str, Any], Guidance]:
    module = randomised(models.DigitDiT(models.config("dit")))
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 1, 16, 16, generator=generator)
    return module, {"sample": noise, "timestep": torch.tensor(1), "class_labels": torch.tensor([3])}, Guidance(1.5)


@cache
def sampler(family: str) -> Program:
    if family == "digits":
        module, inputs, guidance = digits()
        return graphopt.Sampler(module, scheduler(), ROWS, example_inputs=inputs, guidance=guidance).convert(
            "onnxruntime"
        )
    module, inputs = tiny(family)
    return graphopt.Sampler(module, scheduler(), ROWS, example_inputs=inputs).convert("onnxruntime")


@cache
def optimized(family: str, *passes: str) -> OptimizedProgram:
    return graphopt.optimize(sampler(family), list(passes), target="onnxruntime", verify="model")


def by_row(family: str) -> Program:
    return optimized(family, "hoist", "clean-up").program


def batched(family: str) -> Program:
    return optimized(family, "hoist", "batch-tables", "clean-up").program


def request(program: Program, seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)

    def drawn(type_: Any) -> np.ndarray:
        if type_.dtype.startswith("int"):
            return rng.integers(0, 9, type_.shape)
        return rng.standard_normal(type_.shape).astype(type_.dtype)

    conditions = {c.name: drawn(c.type) for c in program.interface.conditions}
    if program.guidance is not None:
        conditions |= {NEGATIVE + c.name: drawn(c.type) for c in program.interface.conditions if c.branched}
    return drawn(program.interface.sample), conditions


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape and np.isfinite(a).all()
    return float(np.abs(a - b).max() / np.abs(b).max())


def applications(result: OptimizedProgram) -> list[Any]:
    return [a for r in result.report.passes if r.text.startswith("batch-tables") for a in r.applications]


FAMILY = pytest.mark.parametrize("family", [*FAMILIES, "digits"])


@FAMILY
def test_the_application_is_executed_at_every_row_and_kept(family: str) -> None:
    (application,) = applications(optimized(family, "hoist", "batch-tables", "clean-up"))
    assert (application.id, application.status, application.reason) == ("batch-tables/table#1", "kept", "")
    assert application.evidence.kind == "executed" and application.evidence.inputs == 2 * ROWS
    assert application.evidence.worst <= 1.0 and len(application.nodes) > 20
    body = batched(family).bodies["denoiser"]
    assert body.batched and body.table is not None
    assert body.result_types("table") == by_row(family).bodies["denoiser"].result_types("table")


@FAMILY
@pytest.mark.parametrize("form", ["reference", "loop", "sessions"])
def test_samples_are_those_of_tables_row_by_row(family: str, form: str) -> None:
    before, after = by_row(family), batched(family)
    noise, conditions = request(before)
    run = after if form == "reference" else after.lower("onnxruntime", form=form, threads=1)
    assert distance(run(noise, **conditions), before(noise, **conditions)) < 1e-6


@pytest.mark.parametrize("family", ["sd3", "unet"])
def test_both_forms_agree_to_the_bit(family: str) -> None:
    program = batched(family)
    noise, conditions = request(program, 1)
    loop, sessions = (program.lower("onnxruntime", form=form, threads=1) for form in ("loop", "sessions"))
    assert loop(noise, **conditions).tobytes() == sessions(noise, **conditions).tobytes()
    tables = [n for n in loop.model.graph if n.op_type == "Loop"]
    assert len(tables) == 1, "the loop over the rows, and none for the table"


@pytest.mark.parametrize("family", ["sd3", "unet"])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_schedule_of_another_length_may_be_put_in_afterwards(family: str, rows: int) -> None:
    schedule = Schedule.from_diffusers(scheduler(), rows)
    before, after = (
        replace(p, schedule=schedule, calls=("denoiser",) * rows) for p in (by_row(family), batched(family))
    )
    noise, conditions = request(before)
    expected = before(noise, **conditions)
    for run in (after, after.lower("onnxruntime", form="loop"), after.lower("onnxruntime", form="sessions")):
        assert distance(run(noise, **conditions), expected) < 1e-6


def test_weights_are_those_of_the_table_of_one_row() -> None:
    one, all_rows = (p.bodies["denoiser"].table.model for p in (by_row("sd3"), batched("sd3")))
    large = [{(name, size) for name, size, _ in m.weights() if size > 16} for m in (one, all_rows)]
    assert large[0] == large[1] and len(large[0]) > 10


def test_wide_weights_are_shared_and_not_copied() -> None:
    body = optimized("sd3", "hoist").program.bodies["denoiser"]
    after = batched_body(body)

    def identities(model: Any) -> dict[str, Any]:
        graph = model.main
        read = {v for n in graph.nodes() for v in graph.call(n).operands if v is not None}
        return {graph.name(v): d.identity for v in read if (d := graph.constant(v)) is not None and d.size > 16}

    shared = identities(body.table.model)
    assert shared == {n: i for n, i in identities(after.table.model).items() if n in shared}


def test_a_second_time_is_a_note_and_hoisting_again_finds_the_table() -> None:
    result = optimized("dit", "hoist", "batch-tables", "batch-tables", "hoist")
    assert len(applications(result)) == 1
    notes = [n for r in result.report.passes for n in r.notes if "already" in n]
    assert notes == [
        "denoiser: its table takes all rows already",
        "denoiser: has a prologue already",
        "denoiser: has a table already",
    ]


def test_a_prologue_is_taken_out_beside_a_table_of_all_rows() -> None:
    first = graphopt.optimize(sampler("unet"), ["hoist", "batch-tables"], skip=["hoist/prologue#1"]).program
    assert first.bodies["denoiser"].prologue is None and first.bodies["denoiser"].batched
    result = graphopt.optimize(first, "hoist")
    (application,) = [a for r in result.report.passes for a in r.applications]
    assert (application.id, application.status, application.evidence.kind) == (
        "hoist/prologue#1", "kept", "bit-equal",
    )  # fmt: skip
    assert result.program.bodies["denoiser"].batched
    noise, conditions = request(first)
    assert result.program(noise, **conditions).tobytes() == first(noise, **conditions).tobytes()


def test_dumps_and_stages_say_so() -> None:
    program = batched("dit")
    assert "denoiser/table, in one call for all rows, before the loop: " in program.dump(graphs=True)
    (line,) = [x for x in stage_table(program).splitlines() if x.startswith("denoiser/table")]
    (other,) = [x for x in stage_table(by_row("dit")).splitlines() if x.startswith("denoiser/table")]
    assert line == other and line.endswith("bytes per row")


@pytest.mark.parametrize(("verify", "kind"), [("structure", "types"), ("off", "none")])
def test_other_levels_execute_nothing(verify: Any, kind: str) -> None:
    result = graphopt.optimize(sampler("unet"), ["hoist", "batch-tables"], verify=verify)
    (application,) = applications(result)
    assert (application.status, application.evidence.kind) == ("kept", kind)


def test_it_can_be_skipped_and_limited() -> None:
    skipped = graphopt.optimize(sampler("unet"), ["hoist", "batch-tables"], skip=["batch-tables/table#1"])
    assert [a.status for a in applications(skipped)] == ["skipped"]
    limited = graphopt.optimize(sampler("unet"), ["hoist", "batch-tables"], limit=2)
    assert applications(limited) == []
    assert not any(r.program.bodies["denoiser"].batched for r in (skipped, limited))


def _halves_swapped(write: Any, site: Any) -> Any:
    return write.like(site, site.operands, axis=site.fields["axis"] + 1)[::-1]


def _of_the_first_row(write: Any, site: Any) -> Any:
    x = site.operands[0]
    first = {"starts": (0,), "ends": (1,), "axes": (0,), "steps": (1,)}
    cut = write.call("slice", [x], [(x.dtype, x.shape)], first, (1,))
    same = write.call(site.op, cut, [(x.dtype, x.shape)], {}, (1,))[0]
    return [write.repeated(replace(write.call("squeeze", [same], site.results, {"axes": (0,)}, ())[0], batched=False))]


@pytest.mark.parametrize(("op", "rule"), [("split", _halves_swapped), ("sin", _of_the_first_row)])
def test_a_wrong_rule_is_undone(op: str, rule: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batching_rules.RULES, op, rule)
    result = graphopt.optimize(sampler("dit"), ["hoist", "batch-tables"])
    (application,) = applications(result)
    assert application.status == "undone" and application.evidence.kind == "executed"
    assert application.evidence.worst > 1.0 and "times the error that rounding(factor=8) allows" in application.reason
    assert not result.program.bodies["denoiser"].batched
    noise, conditions = request(sampler("dit"))
    assert distance(result.program(noise, **conditions), sampler("dit")(noise, **conditions)) == 0.0


def refusal(program: Program, *passes: Any) -> str:
    result = graphopt.optimize(program, [*passes, "batch-tables"])
    assert applications(result) == [] and not result.program.bodies["denoiser"].batched
    record = result.report.passes[-1]
    (reason,) = record.rules["table"].refused
    assert f"denoiser: the table stays row by row: {reason}" in record.notes
    return reason


def test_torch_graphs_are_refused_with_the_way_out() -> None:
    module, inputs = tiny("dit")
    program = graphopt.Sampler(module, scheduler(), ROWS, example_inputs=inputs)
    assert "give target='onnxruntime'" in refusal(program, "hoist")


def parsed(body: str) -> Program:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {body}')
    onnx.checker.check_model(model)
    return graphopt.Sampler(model, scheduler(), ROWS)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("late = If (on) <then_branch = a () => (float p) { p = Sin(timestep) }, "
         "else_branch = b () => (float q) { q = Cos(timestep) }>", "is ai.onnx::If: "),
        ("late = Det(wide)", "is ai.onnx::Det: "),
        ("places = Cast <to = 7> (flat) hot = OneHot(places, four, ends) late = ReduceMax <keepdims = 0> (hot)",
         "is one_hot, which has no batching rule"),
    ],
)  # fmt: skip
def test_nodes_without_a_rule_are_refused_by_name(nodes: str, reason: str) -> None:
    program = parsed(f"""
        agraph (float[1, 4] sample, float timestep) => (float[1, 4] y)
        <bool on = {{1}}, int64[2] sizes = {{1, 1}}, int64[1] one = {{1}}, int64 four = {{4}},
         float[2] ends = {{0, 2}}> {{
            wide = Reshape(timestep, sizes)
            flat = Reshape(timestep, one)
            {nodes}
            y = Mul(sample, late)
        }}
    """)
    found = refusal(program, Hoist(weigh=False))
    assert reason in found and found.startswith("node ")


def test_an_old_operator_set_stays_what_it_is() -> None:
    source = onnx.parser.parse_model("""
        <ir_version: 7, opset_import: ["" : 13]>
        agraph (float[1, 4] sample, float[1] timestep, float[1, 4] c) => (float[1, 4] y)
        <float[4, 4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}, float[4] b = {1,2,3,4}, int64[1] first = {0}> {
            t = Unsqueeze (timestep, first)
            small = Div(t, w)
            late = Sin(small)
            total = ReduceSum <keepdims = 1> (late, first)
            mixed = Add(total, c)
            layer = Gemm(mixed, w, b)
            y = Mul(sample, layer)
        }
    """)
    program = graphopt.Sampler(source, scheduler(), ROWS)
    before = graphopt.optimize(program, [Hoist(weigh=False)]).program
    result = graphopt.optimize(program, [Hoist(weigh=False), BatchTables()])
    assert [a.status for a in applications(result)] == ["kept"]
    assert result.program.bodies["denoiser"].table.model.main.opset == 13
    noise, conditions = request(program)
    expected = before(noise, **conditions)
    for run in (result.program, result.program.lower("onnxruntime")):
        assert distance(run(noise, **conditions), expected) < 1e-6


def test_results_of_rank_0_are_rows_too() -> None:
    program = parsed("""
        agraph (float[1, 4] sample, float timestep) => (float[1, 4] y) {
            late = Sin(timestep)
            y = Mul(sample, late)
        }
    """)
    before = graphopt.optimize(program, [Hoist(weigh=False)]).program
    result = graphopt.optimize(program, [Hoist(weigh=False), BatchTables()])
    assert [a.status for a in applications(result)] == ["kept"]
    noise, _ = request(program)
    expected = before(noise)
    for form in ("loop", "sessions"):
        assert distance(result.program.lower("onnxruntime", form=form)(noise), expected) < 1e-6
    assert distance(result.program(noise), expected) < 1e-6
