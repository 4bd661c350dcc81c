"""Every value of a graph is known with the model, the schedule, the request, both, or in the step only."""

from __future__ import annotations

import itertools

import onnx
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_denoisers import tiny
from torch import nn

import graphopt
from graphopt.ir.graph import TensorType
from graphopt.ir.load import load_model
from graphopt.ir.scratch import ScratchGraph
from graphopt.program.body import Feed, Unit
from graphopt.program.stages import Stage, feed_stage, input_stages, stage_table, stages, summary, weight_stages

F = TensorType("float32", (2, 3))
MODEL, SCHEDULE, REQUEST, BOTH, STEP = Stage


def onnx_graph(body: str, opset: int = 18):
    return load_model(onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {body}')).main


def by_output(graph, **inputs: Stage) -> dict[str, Stage]:
    """The stage of the first output of every node by its name; inputs are named."""
    staging = stages(graph, {v: inputs[graph.name(v)] for v in graph.inputs() if graph.name(v) in inputs})
    return {graph.name(graph.results(n)[0]): s for n, s in staging.nodes.items()}


def test_stages_join_to_the_later_of_both() -> None:
    for a, b in itertools.product(Stage, Stage):
        assert a | b is b | a and a | a is a and a | MODEL is a and a | STEP is STEP
    assert SCHEDULE | REQUEST is BOTH
    for a, b, c in itertools.product(Stage, Stage, Stage):
        assert (a | b) | c is a | (b | c)
    assert [s for s in Stage if s.before_loop] == [MODEL, SCHEDULE, REQUEST, BOTH]
    assert [s for s in Stage if s.per_row and s.before_loop] == [SCHEDULE, BOTH]


def test_a_value_has_the_stage_of_what_it_depends_on() -> None:
    graph = ScratchGraph()
    x, t, c = (graph.add_input(F, name) for name in "xtc")
    time = graph.append("silu", t, types=[F])
    text = graph.append("silu", c, types=[F])
    both = graph.append("add", time, text, types=[F])
    step = graph.append("add", both, x, types=[F])
    graph.add_output(step)
    staging = stages(graph, {x: STEP, t: SCHEDULE, c: REQUEST})
    assert [staging.of(v) for v in (x, t, c, time, text, both, step)] == [
        STEP, SCHEDULE, REQUEST, SCHEDULE, REQUEST, BOTH, STEP,
    ]  # fmt: skip
    assert list(staging.nodes.values()) == [SCHEDULE, REQUEST, BOTH, STEP]


def test_what_depends_on_nothing_is_known_with_the_model() -> None:
    graph = onnx_graph("""
        agraph (float[3] x) => (float[3] y) <float[3] w = {1, 2, 3}> {
            a = Exp(w)
            k = Constant <value = float[3] {1, 1, 1}> ()
            b = Add(a, k)
            y = Mul(b, x)
        }
    """)
    assert by_output(graph, x=STEP) == {"a": MODEL, "k": MODEL, "b": MODEL, "y": STEP}
    assert stages(graph, {}).of(graph.outputs()[0]) is STEP, "an input nobody names is of the step"


def test_random_numbers_are_of_the_step_whatever_they_read() -> None:
    graph = onnx_graph("""
        agraph (float[3] x, float[3] c) => (float[3] y) {
            a = Neg(c)
            r = RandomNormalLike(a)
            y = Add(r, c)
        }
    """)
    assert by_output(graph, x=STEP, c=REQUEST) == {"a": REQUEST, "r": STEP, "y": STEP}


def test_what_a_control_flow_body_reads_from_outside_counts() -> None:
    graph = onnx_graph("""
        agraph (bool f, float[3] c, float[3] t, float[3] x) => (float[3] y, float[3] z) {
            y = If (f) <
                then_branch = yes () => (float[3] p) { p = Neg(c) },
                else_branch = no () => (float[3] q) {
                    q = If (f) <
                        then_branch = yes2 () => (float[3] p2) { p2 = Neg(t) },
                        else_branch = no2 () => (float[3] q2) { q2 = Exp(t) }
                    >
                }
            >
            z = If (f) <
                then_branch = yes3 () => (float[3] p3) { p3 = Neg(x) },
                else_branch = no3 () => (float[3] q3) { q3 = Neg(c) }
            >
        }
    """)
    found = by_output(graph, f=REQUEST, c=REQUEST, t=SCHEDULE, x=STEP)
    assert found == {"y": BOTH, "z": STEP}


def test_a_size_that_another_node_computes_counts_in_torch_graphs() -> None:
    class Sized(nn.Module):
        def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return c.reshape(-1).repeat(1)[: x.shape[0]].exp()

    rows, others = torch.export.Dim("rows", min=2, max=5), torch.export.Dim("others", min=6, max=9)
    example = (torch.randn(3, 2), torch.randn(7, 2))
    model = load_model(Sized(), example_inputs=example, dynamic_shapes=({0: rows}, {0: others}))
    graph = model.main
    x, c = graph.inputs()
    staging = stages(graph, {x: STEP, c: REQUEST})
    assert staging.of(graph.outputs()[0]) is STEP
    assert staging.of(next(graph.results(n)[0] for n in graph.nodes() if graph.key(n) == "reshape")) is REQUEST


def test_a_buffer_that_is_written_is_of_the_step() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, c: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            return self.seen + c

    graph = load_model(Counting(), example_inputs=(torch.zeros(3),)).main
    assert set(stages(graph, {graph.inputs()[0]: REQUEST}).nodes.values()) == {STEP}


def test_a_weight_belongs_to_the_last_stage_that_reads_it() -> None:
    graph = onnx_graph("""
        agraph (float[1,2] x, float[1,2] t, float[1,2] c) => (float[1,2] y)
        <float[2,2] both = {1, 2, 3, 4}, float[2,2] text = {1, 2, 3, 4}, float[2,2] all = {1, 2, 3, 4},
         float[3] k = {1, 2, 3}> {
            a = MatMul(t, both)
            b = MatMul(c, both)
            d = MatMul(b, text)
            e = MatMul(d, all)
            f = MatMul(x, all)
            s = ReduceSum(k)
            g = Add(a, e)
            h = Add(g, f)
            y = Mul(h, s)
        }
    """)
    inputs = dict(zip(graph.inputs(), (STEP, SCHEDULE, REQUEST), strict=True))
    staging = stages(graph, inputs)
    assert sorted(weight_stages(staging).values()) == [
        (MODEL, 3, 12), (REQUEST, 4, 16), (BOTH, 4, 16), (STEP, 4, 16),
    ]  # fmt: skip
    sizes = summary(staging)
    assert [s.parameters for s in sizes.values()] == [3, 0, 4, 4, 4]
    assert [s.nodes for s in sizes.values()] == [1, 1, 3, 1, 3]
    assert [s.flops for s in sizes.values()] == [0, 8, 24, 0, 8]


def test_weights_inside_of_a_body_belong_to_the_node_that_holds_it() -> None:
    graph = onnx_graph("""
        agraph (bool f, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            a = If (f) <
                then_branch = yes () => (float[2] p) { p = Neg(w) },
                else_branch = no () => (float[2] q) { q = Exp(w) }
            >
            y = Add(a, x)
        }
    """)
    flag, x = graph.inputs()
    assert list(weight_stages(stages(graph, {flag: REQUEST, x: STEP})).values()) == [(REQUEST, 2, 8)]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [("sample", STEP), ("timestep", SCHEDULE), ("condition", REQUEST), ("prologue", REQUEST), ("table", BOTH)],
)
def test_the_inputs_of_a_unit_have_the_stages_of_their_feeds(kind: str, stage: Stage) -> None:
    assert feed_stage(Feed(kind)) is stage  # type: ignore[arg-type]


def test_the_table_of_a_program_lists_stages_and_what_is_handed_on() -> None:
    module, inputs = tiny("dit")
    program = graphopt.Sampler(module, DDIMScheduler(clip_sample=False), 3, example_inputs=inputs)
    step = program.bodies["denoiser"].step
    assert isinstance(step, Unit) and len(input_stages(step)) == 3
    before = stage_table(program)
    assert before.startswith("denoiser/step\n") and "schedule × request" in before
    hoisted = graphopt.optimize(program, "hoist").program
    lines = stage_table(hoisted).splitlines()
    heads = [line for line in lines if line.startswith("denoiser/")]
    assert [h.split(":")[0] for h in heads] == ["denoiser/prologue", "denoiser/table", "denoiser/step"]
    assert heads[1].endswith("bytes per row")
