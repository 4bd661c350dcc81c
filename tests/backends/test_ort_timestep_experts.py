"""Denoisers chosen by timestep on onnxruntime: one file with a Loop for each, or one expert's weights at a time."""

import dataclasses
import gc
import weakref

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import sampling_programs
import torch
from wan_pairs import GIVEN, NOISE, SCHEDULERS, distance, example, sampled, wan

import graphopt
from graphopt.backends import ort_residents, ort_tables
from graphopt.errors import PipelineError
from graphopt.program.guidance import Guidance

STEPS = 6
SCALES = {"transformer": 4.0, "transformer_2": 3.0}


@pytest.fixture(scope="module", params=[*SCHEDULERS])
def pair(request):
    """The pipeline, and its program with ONNX graphs, hoisted."""
    pipe = wan(request.param)
    experts = graphopt.Experts.from_pipeline(pipe)
    guidance = graphopt.Guidance(SCALES, "calls")
    program = graphopt.Sampler(experts, pipe.scheduler, STEPS, example_inputs=example(), guidance=guidance)
    return pipe, graphopt.optimize(program, ["hoist", "clean-up"], target="onnxruntime").model


def lower(program, **options):
    return program.lower("onnxruntime", threads=1, **options)


FORMS = {"loop": {"form": "loop"}, "sessions": {"form": "sessions"}, "low memory": {"low_memory": True}}


def test_every_form_gives_what_the_pipeline_gives(pair):
    pipe, program = pair
    runs = {name: lower(program, **options) for name, options in FORMS.items()}
    for scale in (None, {"transformer": 2.0, "transformer_2": 6.0}):
        expected = sampled(pipe, STEPS, *(scale or SCALES).values())
        results = {name: run(NOISE, guidance_scale=scale, **GIVEN) for name, run in runs.items()}
        for result in results.values():
            assert distance(result, expected) <= 1e-5
            assert torch.equal(result, results["loop"])


def test_the_file_has_a_loop_over_the_rows_of_each_expert_and_all_weights_once(pair, tmp_path):
    import onnxruntime

    _, program = pair
    compiled = lower(program)
    graph = ir.to_proto(compiled.model).graph
    loops = [node for node in graph.node if node.op_type == "Loop"]
    counts = [onnx.numpy_helper.to_array(t) for n in loops for t in graph.initializer if t.name == n.input[0]]
    high = program.calls.count("transformer")
    assert [int(c) for c in counts][-2:] == [high, STEPS - high]
    assert not any(node.op_type == "If" for loop in loops for node in loop.attribute[0].g.node)

    compiled.save(tmp_path / "wan.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "wan.onnx")
    feeds = {"noise": NOISE.numpy(), **{name: value.numpy() for name, value in GIVEN.items()}}
    assert np.array_equal(session.run(None, feeds)[0], compiled(NOISE, **GIVEN).numpy())
    scales = np.asarray([2.0] * high + [6.0] * (STEPS - high), dtype=np.float32)
    by_name = {"transformer": 2.0, "transformer_2": 6.0}
    scaled = session.run(None, {**feeds, "guidance_scale": scales})[0]
    assert np.array_equal(scaled, compiled(NOISE, guidance_scale=by_name, **GIVEN).numpy())


class Sessions:
    """Counts the sessions that are open, and refuses to have those of two experts at once."""

    def __init__(self, monkeypatch):
        self.alive = weakref.WeakSet()
        self.most = 0
        for module in (ort_residents, ort_tables):
            monkeypatch.setattr(module, "open_session", self._wrap(module.open_session))

    def _wrap(self, open_session):
        def counted(model, settings):
            session = open_session(model, settings)
            self.alive.add(session)
            self.most = max(self.most, len(self.alive))
            return session

        return counted


@pytest.mark.parametrize("low_memory", [True, False])
def test_in_low_memory_sessions_of_two_experts_are_never_open_at_once(pair, monkeypatch, low_memory):
    _, program = pair
    sessions = Sessions(monkeypatch)
    gc.disable()  # closing must not wait for a collection
    try:
        run = lower(program, form="sessions", low_memory=low_memory)
        for _ in range(2):
            run(NOISE, **GIVEN)
    finally:
        gc.enable()
    # Of each expert a prologue and a step; its table depends on the schedule alone and is evaluated beforehand.
    assert sessions.most == (2 if low_memory else 4)
    assert len(sessions.alive) == (2 if low_memory else 4)


def test_in_low_memory_experts_are_closed_before_others_open(pair, monkeypatch):
    _, program = pair
    events = []
    real = ort_residents.open_session

    def opened(model, settings):
        name = model.graph.name or ""
        session = real(model, settings)
        events.append(("open", name))
        weakref.finalize(session, events.append, ("close", name))
        return session

    monkeypatch.setattr(ort_residents, "open_session", opened)
    run = lower(program, low_memory=True)
    run(NOISE, callback=lambda row, x: events.append(("row", program.calls[row])) and None, **GIVEN)
    live = 0
    for what, _ in events:
        live += {"open": 1, "close": -1, "row": 0}[what]
        assert live <= 2, events
    rows = [name for what, name in events if what == "row"]
    assert rows == list(program.calls)
    switch = events.index(("row", "transformer_2"))
    assert sum(what == "close" for what, _ in events[:switch]) == 4  # the second, opened to try it, then the first


def test_bodies_that_take_turns_run_in_low_memory_too(pair):
    _, program = pair
    calls = ("transformer", "transformer_2") * (STEPS // 2)
    turns = dataclasses.replace(program, calls=calls)
    results = [lower(turns, **options)(NOISE, **GIVEN) for options in FORMS.values()]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert distance(results[0], turns(NOISE, **GIVEN)) <= 1e-5


def test_a_loop_in_low_memory_is_refused(pair):
    with pytest.raises(PipelineError, match="a loop is one session, which has the weights of all bodies"):
        lower(pair[1], form="loop", low_memory=True)


def test_a_scale_in_each_row_of_one_denoiser():
    scales = tuple(1.0 + row / 2 for row in range(sampling_programs.STEPS))
    program = sampling_programs.onnx_program(Guidance(scales, "calls"))
    noise, given = sampling_programs.NOISE, sampling_programs.GUIDED
    expected = program(noise, **given)
    for form in ("loop", "sessions"):
        run = lower(program, form=form)
        assert distance(run(noise, **given), expected) <= 1e-5
        assert distance(run(noise, guidance_scale=scales[::-1], **given), expected) > 1e-3
    one = sampling_programs.onnx_program(Guidance(2.0, "calls"))
    assert torch.equal(lower(program)(noise, guidance_scale=2.0, **given), lower(one)(noise, **given))


def test_experts_may_be_onnx_models_and_of_other_depths():
    def model(body):
        source = f'<ir_version: 8, opset_import: ["" : 18]> unit (float[2,3] sample, float[1] timestep) => ' \
                 f'(float[2,3] prediction) <float scale = {{0.001}}> {{ t = Mul(timestep, scale) {body} }}'  # fmt: skip
        return onnx.parser.parse_model(source)

    high = model("prediction = Mul(sample, t)")
    low = model("y = Sin(sample) z = Tanh(y) prediction = Add(z, t)")
    program = graphopt.Sampler(graphopt.Experts([high, low], 875.0), SCHEDULERS["UniPC"](), STEPS)
    assert program.storage == "onnx" and set(program.calls) == {"denoiser_1", "denoiser_2"}
    noise = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)

    def predict(x, t):
        return x * t * 0.001 if t >= 875.0 else np.tanh(np.sin(x)) + t * 0.001

    expected = program.schedule.run(predict, noise.astype(np.float64))
    for options in FORMS.values():
        assert distance(lower(program, **options)(noise), expected) <= 1e-5
