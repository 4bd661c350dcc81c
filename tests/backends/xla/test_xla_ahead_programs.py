"""Whole sampling loops compiled for TPUs, of the shipped digit models, and what leaves the loop."""

from xla_support import torch, tpu  # first: it skips where JAX is missing  # isort: skip

import pytest

import graphopt

pytest.importorskip("diffusers")
from graphopt.tools.digits import models

ROWS = 10
ARGS = (torch.zeros(4, 1, 16, 16), torch.tensor(1), torch.tensor([1, 2, 3, 4]))


def sampler(load):
    return graphopt.Sampler(load(), models.scheduler(), ROWS, example_inputs=ARGS)


@pytest.fixture(scope="module")
def dit():
    return sampler(models.load_dit)


def report_of(made, topology="v5e:2x2"):
    return graphopt.lower(made, "xla", check=False, precision="default").compile_for(topology).report


def step_of(program):
    return report_of(program.bodies["denoiser"].step.model)


@pytest.fixture(scope="module")
def step(dit):
    return step_of(dit)


@tpu
@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_the_loop_of_digits_is_one_loop_on_the_device(dit, step, topology):
    report = report_of(dit, topology)
    assert report.loops == 1 and report.host_transfers == ()
    assert step.flops < report.flops < 1.05 * step.flops  # a loop's body counts once
    assert step.memory["arguments"] < report.memory["arguments"] + 2048 < report.memory["peak"]
    assert report.memory["peak"] < 3 * step.memory["arguments"]
    assert report.argument_padding.padded_bytes == report.memory["arguments"]


@tpu
def test_the_loop_of_the_unet_is_one_loop_too():
    report = report_of(sampler(models.load_unet))
    weights = sum(p.nbytes for p in models.load_unet().parameters())
    assert report.loops == 1 and report.host_transfers == ()
    assert 250e6 < report.flops < 450e6  # 294e6 are its products and sums
    assert weights < report.memory["arguments"] < report.memory["peak"] < 10 * weights


@tpu
def test_what_is_hoisted_saves_flops_bytes_and_memory_in_every_step(dit, step):
    hoisted = step_of(graphopt.optimize(dit, "hoist").program)
    assert hoisted.flops < step.flops
    assert hoisted.bytes_accessed < 0.9 * step.bytes_accessed
    assert hoisted.memory["arguments"] < 0.7 * step.memory["arguments"]
    assert hoisted.memory["peak"] < 0.9 * step.memory["peak"]
