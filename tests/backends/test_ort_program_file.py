"""A saved sampling program is one ONNX file that needs nothing but onnxruntime."""

import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from sampling_programs import (
    GUIDED,
    NEGATIVE,
    NOISE,
    SCHEDULERS,
    TEXT,
    diffusers_loop,
    distance,
    lower,
    onnx_program,
    predict_with,
    small_unet,
    with_scheduler,
)

from graphopt.ir.onnx.save import Carried, save_model
from graphopt.program.guidance import Guidance
from graphopt.program.noise import draw_noise

GUIDANCE = Guidance(3.0)


@pytest.fixture(scope="module")
def compiled():
    return lower(with_scheduler(onnx_program(GUIDANCE), SCHEDULERS["Euler ancestral"]()), form="loop")


@pytest.fixture(scope="module")
def path(compiled, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "sampler.onnx"
    compiled.save(path)
    return path


FEEDS = {
    "noise": NOISE.numpy(),
    "encoder_hidden_states": TEXT.numpy(),
    "negative_encoder_hidden_states": NEGATIVE.numpy(),
}


def feeds_for(program, seed):
    return {**FEEDS, "step_noise": draw_noise(program.schedule, NOISE.shape, "float32", seed)}


RUN_ALONE = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "diffusers", "transformers", "graphopt", "onnxscript", "onnx_ir"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
for name in ("torch", "diffusers", "graphopt"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + " can be imported")
import numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(["sample"], dict(numpy.load(sys.argv[2])))[0])
"""


def test_the_file_runs_where_neither_torch_nor_diffusers_nor_graphopt_can_be_imported(compiled, path, tmp_path):
    np.savez(tmp_path / "feeds.npz", **feeds_for(compiled.program, 7))
    arguments = [str(path), str(tmp_path / "feeds.npz"), str(tmp_path / "result.npy")]
    subprocess.run([sys.executable, "-c", RUN_ALONE, *arguments], check=True, cwd=tmp_path)
    result = np.load(tmp_path / "result.npy")
    expected = diffusers_loop(SCHEDULERS["Euler ancestral"](), predict_with(small_unet(), GUIDANCE), NOISE, seed=7)
    assert distance(result, expected) <= 1e-6
    assert np.array_equal(result, compiled(NOISE, 7, **GUIDED).numpy())


def test_the_file_is_valid_and_holds_standard_ops_with_typed_inputs_and_outputs(path):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {i.domain for i in model.opset_import} == {""} and not model.functions
    text = "float32[2,5,12]"
    types = {v.name: described(v) for v in (*model.graph.input, *model.graph.output)}
    assert types == {
        "noise": "float32[2,4,8,8]", "encoder_hidden_states": text, "negative_encoder_hidden_states": text,
        "step_noise": "float32[7,2,4,8,8]", "guidance_scale": "float32[]", "initial_scale": "float32[]",
        "sample": "float32[2,4,8,8]",
    }  # fmt: skip


def described(value):
    tensor = value.type.tensor_type
    name = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return f"{name}[{','.join(str(d.dim_value) for d in tensor.shape.dim)}]"


def test_weights_lie_in_the_body_of_the_loop(compiled, path):
    model = onnx.load(path)
    loops = [n for n in model.graph.node if n.op_type == "Loop"]
    assert len(loops) == 1
    (body,) = [a.g for a in loops[0].attribute if a.name == "body"]
    inside = sum(int(np.prod(t.dims)) for t in body.initializer)
    outside = sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    denoiser = compiled.program.bodies["denoiser"].step.model
    assert inside >= sum(size for _, size, _ in denoiser.weights()) > 50_000 and outside < 20


def test_scales_have_defaults_and_can_be_given(compiled, path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {i.name for i in session.get_overridable_initializers()} == {"guidance_scale", "initial_scale"}
    feeds = feeds_for(compiled.program, 7)
    given = {"guidance_scale": np.float32(1.5), "initial_scale": np.float32(1.0)}
    scaled = session.run(None, {**feeds, **{name: np.asarray(value) for name, value in given.items()}})[0]
    assert np.array_equal(scaled, compiled.run(NOISE, 7, guidance_scale=1.5, **GUIDED).numpy())
    assert not np.array_equal(scaled, session.run(None, feeds)[0])


def test_weights_in_a_file_beside_the_model_give_the_same(compiled, tmp_path):
    path = tmp_path / "sampler.onnx"
    save_model(compiled.model, path, Carried(), limit=1000)
    assert {p.name for p in tmp_path.iterdir()} == {"sampler.onnx", "sampler.onnx.data"}
    assert path.stat().st_size < (tmp_path / "sampler.onnx.data").stat().st_size
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    result = session.run(None, feeds_for(compiled.program, 7))[0]
    assert np.array_equal(result, compiled(NOISE, 7, **GUIDED).numpy())


def test_a_program_run_as_sessions_saves_the_same_file(compiled, path, tmp_path):
    other = lower(compiled.program, form="sessions")
    other.save(tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").read_bytes() == path.read_bytes()


def test_a_failed_save_leaves_the_old_file(compiled, tmp_path, monkeypatch):
    path = tmp_path / "sampler.onnx"
    path.write_bytes(b"old")

    def fail(*names):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        compiled.save(path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["sampler.onnx"]


def test_nothing_of_the_torch_model_is_changed(compiled, path):
    before = {name: value.clone() for name, value in small_unet().state_dict().items()}
    compiled(NOISE, 7, **GUIDED)
    assert all(torch.equal(value, before[name]) for name, value in small_unet().state_dict().items())
