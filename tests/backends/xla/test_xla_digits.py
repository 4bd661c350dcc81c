"""Digits drawn by XLA are those that torch and diffusers draw, here and from a file where neither is installed."""

from xla_support import torch  # first: it skips where JAX is missing  # isort: skip

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("diffusers")
from diffusers import DPMSolverMultistepScheduler
from sampling_programs import distance

import graphopt
from graphopt.tools.digits.data import NULL_CLASS
from graphopt.tools.digits.models import load_dit, load_unet, scheduler
from graphopt.tools.digits.sampling import noise, sample

STEPS, SCALE = 10, 1.5
NOISE, LABELS = noise(2, seed=0), torch.tensor([3, 7])
ANY = torch.full_like(LABELS, NULL_CLASS)


def program(denoiser, schedule):
    example = {"sample": NOISE, "timestep": torch.tensor(1), "class_labels": LABELS}
    return graphopt.Sampler(denoiser, schedule, STEPS, example_inputs=example, guidance=SCALE)


def solver():
    return DPMSolverMultistepScheduler.from_config(scheduler().config)


@pytest.fixture(scope="module")
def dit():
    """The DiT with its modulations and its prompt taken out of the loop."""
    result = graphopt.optimize(program(load_dit(), solver()), ["hoist", "clean-up"], target="xla", verify="off")
    return result.lower("xla")


def test_a_dit_taken_apart_draws_the_same_digits(dit):
    for labels in (LABELS, LABELS + 1):
        expected = sample(load_dit(), NOISE, labels, solver(), STEPS, guidance=SCALE)
        assert distance(dit(NOISE, class_labels=labels, negative_class_labels=ANY), expected) <= 3e-6
    assert dit.compilations == 1 and dit.notes == ("49 ops of distinct sizes agree with torch",)
    assert {name for name, _ in dit.program.bodies["denoiser"].units()} == {"prologue", "table", "step"}


def test_a_unet_draws_the_same_digits():
    run = program(load_unet(), scheduler()).lower("xla", check=False)
    expected = sample(load_unet(), NOISE, LABELS, scheduler(), STEPS, guidance=SCALE)
    assert distance(run(NOISE, class_labels=LABELS, negative_class_labels=ANY), expected) <= 3e-6


READER = """
import sys
for name in ("torch", "torchax", "diffusers", "graphopt"):
    sys.modules[name] = None
from pathlib import Path
import jax, numpy as np
from jax import export
jax.config.update("jax_enable_x64", True)
exported = export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
assert set(exported.platforms) == {"cpu", "tpu"}, exported.platforms
feeds = dict(np.load(sys.argv[2]))
np.save(sys.argv[3], np.asarray(exported.call(feeds)))
"""


def test_a_file_of_the_whole_loop_runs_in_a_process_without_torch(dit, tmp_path):
    dit.save(tmp_path / "digits.stablehlo")
    feeds = {"noise": NOISE.numpy(), "class_labels": LABELS.numpy(), "negative_class_labels": ANY.numpy()}
    np.savez(tmp_path / "feeds.npz", guidance_scale=np.float32(SCALE), **feeds)
    files = [str(tmp_path / name) for name in ("digits.stablehlo", "feeds.npz", "digits.npy")]
    subprocess.run([sys.executable, "-c", READER, *files], check=True)
    expected = sample(load_dit(), NOISE, LABELS, solver(), STEPS, guidance=SCALE)
    assert distance(np.load(files[2]), expected) <= 3e-6
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits.npy", "digits.stablehlo", "feeds.npz"]
