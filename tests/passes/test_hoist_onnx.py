"""The same code hoists ONNX graphs: exported denoisers, control flow, unknown sizes, random graphs."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny_denoisers import tiny

import graphopt
from graphopt.ir.load import load_model
from graphopt.passes.hoist import Hoist
from graphopt.program.program import Program

ROWS = 3
ROLES = {"sample": "sample", "hidden_states": "sample", "timestep": "timestep"}


def sampler(model: Any, roles: dict[str, str] | None = None) -> Program:
    return graphopt.Sampler(model, DDIMScheduler(clip_sample=False), ROWS, roles=roles)


@cache
def exported(family: str) -> Program:
    from graphopt.backends.ort_export import export_onnx

    module, inputs = tiny(family)
    program: Any = load_model(module, example_inputs=inputs)
    model = export_onnx(program.program())
    names = [v.name for v in model.graph.inputs]
    return sampler(model, {n: ROLES[n] for n in names if n in ROLES})


def request(program: Program, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)

    def drawn(type_: Any) -> np.ndarray:
        if type_.dtype.startswith("int"):
            return rng.integers(0, 9, type_.shape)
        return rng.standard_normal(type_.shape).astype(type_.dtype)

    return drawn(program.interface.sample), {c.name: drawn(c.type) for c in program.interface.conditions}


def outcome(result: Any) -> list[tuple[str, str, str, str]]:
    return [(a.id, a.status, a.evidence.kind, a.reason) for a in result.report.passes[0].applications]


@pytest.mark.parametrize("family", ["unet", "dit"])
def test_exported_denoisers_are_split_bit_for_bit(family: str) -> None:
    program = exported(family)
    assert program.storage == "onnx"
    result = graphopt.optimize(program, "hoist", verify="model")
    assert outcome(result) == [
        ("hoist/prologue#1", "kept", "bit-equal", ""),
        ("hoist/table#1", "kept", "bit-equal", ""),
    ]
    for seed in range(2):
        noise, conditions = request(program, seed)
        before, after = program(noise, **conditions), result.program(noise, **conditions)
        assert before.dtype == after.dtype and before.tobytes() == after.tobytes()


def test_keys_and_values_of_the_prompt_are_products_of_the_prologue() -> None:
    """The text has 24 features, and nothing else has: a product with a 24 x n matrix projects it."""
    body = graphopt.optimize(exported("unet"), "hoist").program.bodies["denoiser"]

    def projections(model: Any) -> int:
        graph = model.main
        weights = [graph.type(n.inputs[1]) for n in graph.nodes() if n.op_type in ("MatMul", "Gemm")]
        return sum(t is not None and t.shape is not None and 24 in t.shape for t in weights)

    counts = {name: projections(unit.model) for name, unit in body.units()}
    assert counts["prologue"] == projections(exported("unet").bodies["denoiser"].step.model) == 8
    assert counts["table"] == counts["step"] == 0


def test_parts_are_saved_and_run_by_any_runtime(tmp_path) -> None:
    import onnxruntime

    body = graphopt.optimize(exported("dit"), "hoist").program.bodies["denoiser"]
    for name, unit in body.units():
        unit.model.save(tmp_path / f"{name}.onnx")
        onnx.checker.check_model(str(tmp_path / f"{name}.onnx"), full_check=True)
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        assert len(session.get_inputs()) == len(unit.feeds)


def parse(body: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> {body}')
    onnx.checker.check_model(model)
    return model


def test_a_size_that_depends_on_data_is_refused_by_name_and_nothing_changes() -> None:
    model = parse("""
        agraph (float[1, 4] sample, float timestep, float[1, 4] c) => (float[1, 4] y) {
            found = NonZero(c)
            wide = Cast <to = 1> (found)
            total = ReduceSum <keepdims = 0> (wide)
            a = Add(sample, total)
            late = Sin(timestep)
            y = Mul(a, late)
        }
    """)
    program = sampler(model)
    result = graphopt.optimize(program, "hoist")
    record = result.report.passes[0]
    (reason,) = record.rules["prologue"].refused
    assert "found at node" in reason and "give static sizes" in reason
    assert any(n.startswith("denoiser: no prologue: found at node") for n in record.notes)
    assert result.program.bodies["denoiser"].prologue is None


def test_random_numbers_stay_and_a_branch_on_the_prompt_leaves() -> None:
    model = parse("""
        agraph (float[1, 4] sample, float timestep, float[1, 4] c, bool[1] flag) => (float[1, 4] y)
        <float[4, 4] w = {1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}> {
            one = Squeeze(flag)
            text = If (one) <
                then_branch = yes () => (float[1, 4] p) { p = MatMul(c, w) },
                else_branch = no () => (float[1, 4] q) { q = Neg(c) }
            >
            r = RandomNormalLike <seed = 3.0> (text)
            zero = Sub(r, r)
            noisy = Add(text, zero)
            a = Add(sample, noisy)
            b = Add(a, text)
            y = Mul(b, timestep)
        }
    """)
    program = sampler(model)
    result = graphopt.optimize(program, [Hoist(weigh=False)])
    assert outcome(result) == [("hoist/prologue#1", "kept", "bit-equal", "")]
    body = result.program.bodies["denoiser"]
    assert body.prologue is not None
    assert [n.op_type for n in body.prologue.model.main.nodes()] == ["Squeeze", "If"]
    assert [n.op_type for n in body.step.model.main.nodes()] == ["RandomNormalLike", "Sub", "Add", "Add", "Add", "Mul"]
    noise = np.ones((1, 4), np.float32)
    for flag in (True, False):
        given_ = {"c": np.arange(4, dtype=np.float32)[None], "flag": np.array([flag])}
        assert program(noise, **given_).tobytes() == result.program(noise, **given_).tobytes()


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """Random graphs of sums, products and layers over a sample, a timestep and two conditions."""
    names = ["sample", "t", "c", "d"]
    nodes, weights = [helper.make_node("Unsqueeze", ["timestep", "axis"], ["t"])], []
    for i in range(2):
        values = np.random.default_rng(i).standard_normal(16).astype(np.float32) / 2
        weights.append(helper.make_tensor(f"w{i}", TensorProto.FLOAT, (4, 4), values))
    weights.append(helper.make_tensor("axis", TensorProto.INT64, (1,), [0]))
    for number in range(draw(st.integers(3, 14))):
        op = draw(st.sampled_from(["Add", "Mul", "Sin", "Neg", "MatMul", "Expand"]))
        operands = [draw(st.sampled_from(names))]
        if op in ("Add", "Mul"):
            operands.append(draw(st.sampled_from(names)))
        if op in ("MatMul", "Expand"):
            nodes.append(helper.make_node("Expand", [operands[0], "shape"], [f"e{number}"]))
            operands = [f"e{number}", draw(st.sampled_from(["w0", "w1"]))]
            op = "MatMul" if op == "MatMul" else "Add"
        nodes.append(helper.make_node(op, operands, [f"v{number}"]))
        names.append(f"v{number}")
    weights.append(helper.make_tensor("shape", TensorProto.INT64, (2,), [4, 4]))
    last = [draw(st.sampled_from(names)), names[-1]]
    nodes.append(helper.make_node("Add", last, ["sum"]))
    nodes.append(helper.make_node("Add", ["sum", "sample"], ["y"]))
    matrix = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in ("sample", "c", "d")]
    inputs = [*matrix, helper.make_tensor_value_info("timestep", TensorProto.FLOAT, [])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])]
    graph = helper.make_graph(nodes, "random", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


@settings(max_examples=30, deadline=None)
@given(models(), st.sampled_from(["hoist", "hoist{weigh=false}", "hoist{byte-price=0}", "hoist{byte-price=1e-7}"]))
def test_random_graphs_compute_the_same_bits_and_no_split_is_undone(model: onnx.ModelProto, text: str) -> None:
    program = sampler(model)
    result = graphopt.optimize(program, text)
    assert result.report.undone == []
    noise, conditions = request(program, 3)
    assert program(noise, **conditions).tobytes() == result.program(noise, **conditions).tobytes()
