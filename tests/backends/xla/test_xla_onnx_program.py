"""Sampling programs of ONNX graphs on XLA: one compiled loop that draws what the torch program draws."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import jax
import numpy as np
import pytest
from onnx import helper

pytest.importorskip("diffusers")
from diffusers import DPMSolverMultistepScheduler
from sampling_programs import GUIDED, NOISE, SCHEDULERS, distance
from xla_programs import EXAMPLE, denoiser

import graphopt
from graphopt.backends.xla import calls
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.units import Units
from graphopt.errors import UnsupportedError
from graphopt.program.guidance import Guidance
from graphopt.tools.digits.data import NULL_CLASS
from graphopt.tools.digits.models import load_dit, load_unet, scheduler
from graphopt.tools.digits.sampling import noise

LABELS = torch.tensor([3, 7])
ANY = torch.full_like(LABELS, NULL_CLASS)


def digits(load, schedule):
    """The program in torch, and the same of ONNX graphs."""
    example = {"sample": noise(2, seed=0), "timestep": torch.tensor(1), "class_labels": LABELS}
    program = graphopt.Sampler(load(), schedule, 5, example_inputs=example, guidance=1.5)
    return program, program.convert("onnxruntime")


@pytest.fixture(scope="module")
def dit():
    """The DiT, its attention fused for onnxruntime and its modulations taken out of the loop."""
    program, converted = digits(load_dit, DPMSolverMultistepScheduler.from_config(scheduler().config))
    apart = graphopt.optimize(converted, ["fuse-attention", "hoist"], target="onnxruntime", verify="off").program
    return program, apart.lower("xla")


def require_same_digits(program, run):
    for seed, labels in ((0, LABELS), (1, LABELS + 1)):
        given = {"class_labels": labels, "negative_class_labels": ANY}
        assert distance(run(noise(2, seed=seed), **given), program(noise(2, seed=seed), **given)) <= 1e-5
    assert run.compilations == 1


def require_one_loop(run):
    hlo = run.hlo()
    assert hlo.count(" while(") == 1
    for word in ("callback", "infeed", "outfeed", " send(", " recv(", "custom-call"):
        assert word not in hlo


def test_a_dit_of_fused_onnx_graphs_draws_the_same_digits_in_one_loop(dit):
    program, run = dit
    assert {name for name, _ in run.program.bodies["denoiser"].units()} == {"prologue", "table", "step"}
    main = run.program.bodies["denoiser"].step.model.main
    assert "com.microsoft::MultiHeadAttention" in {main.raw_name(node) for node in main.nodes()}
    (note,) = run.notes
    assert note.endswith("ops of distinct sizes agree with onnxruntime") and int(note.split()[0]) > 40
    require_same_digits(program, run)
    require_one_loop(run)


def test_a_unet_of_onnx_graphs_draws_the_same_digits_in_one_loop():
    program, converted = digits(load_unet, scheduler())
    run = converted.lower("xla", check=False)
    require_same_digits(program, run)
    with exact_types():
        text = jax.jit(run.function()).lower(*run.arguments()).as_text()
    assert text.count("stablehlo.while") == 1 and "custom_call" not in text


@pytest.fixture(scope="module")
def experts():
    """Two denoisers chosen by timestep, whose schedule draws noise; and the same of ONNX graphs."""
    chosen = graphopt.Experts({"high": denoiser(), "low": denoiser(1)}, boundaries=500)
    made = graphopt.Sampler(
        chosen, SCHEDULERS["Euler ancestral"](), 6, example_inputs=EXAMPLE, guidance=Guidance(2.0, "calls")
    )
    return made, made.convert("onnxruntime")


def test_denoisers_chosen_by_timestep_and_drawn_noise_are_one_loop(experts):
    program, converted = experts
    run = converted.lower("xla")
    assert distance(run(NOISE, 7, **GUIDED), program(NOISE, 7, **GUIDED)) <= 5e-6
    other = {name: value + 1 for name, value in GUIDED.items()}
    assert distance(run(NOISE, 8, **other), program(NOISE, 8, **other)) <= 5e-6
    assert run.compilations == 1


def test_weights_that_several_onnx_graphs_read_are_held_once(experts):
    _, converted = experts
    bodies = {"high": converted.bodies["high"], "low": converted.bodies["high"]}
    twice = graphopt.Program(**{**vars(converted), "bodies": bodies})
    assert len(Units(twice).weights) == len(Units(converted).weights) / 2


def test_an_op_that_differs_from_onnxruntime_is_named(experts, monkeypatch):
    monkeypatch.setitem(calls.KERNELS, "matmul", lambda a, b: (a @ b) * 1.01)
    monkeypatch.setitem(calls.KERNELS, "conv", lambda x, *_, **__: x)
    with pytest.raises(UnsupportedError, match=r"differs from onnxruntime|gives sizes"):
        experts[1].lower("xla")


def test_an_onnx_model_without_torch_is_sampled():
    x, t, y = (helper.make_tensor_value_info(*v) for v in (("x", 1, [2, 3]), ("t", 1, []), ("y", 1, [2, 3])))
    graph = helper.make_graph([helper.make_node("Mul", ["x", "t"], ["y"])], "product", [x, t], [y])
    program = graphopt.Sampler(helper.make_model(graph), SCHEDULERS["flow match Euler"](), 4)
    start = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    assert distance(program.lower("xla")(start), program(start)) <= 1e-6
