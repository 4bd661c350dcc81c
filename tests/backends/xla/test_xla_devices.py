"""Programs divided over several devices, by samples and by weights: two of a CPU, in a process that XLA gives two."""

from xla_support import torch  # noqa: F401  first: it skips where JAX is missing  # isort: skip

import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh

pytest.importorskip("diffusers")
from tiny_denoisers import tiny
from xla_programs import denoiser, program_of

import graphopt
from graphopt.backends.xla.arrays import exact_types
from graphopt.backends.xla.settings import Settings
from graphopt.backends.xla.tensor_parallel import divided_dims
from graphopt.errors import PipelineError, UnsupportedError
from graphopt.program.guidance import Guidance

DIVIDED = """
import json, re, sys
sys.path[:0] = json.loads(sys.argv[1])
from sampling_programs import GUIDED, NOISE, SCHEDULERS, distance
from tiny_denoisers import tiny
from xla_programs import denoiser, lowered
from graphopt.backends.xla.arrays import exact_types
from graphopt.program.guidance import Guidance

def run(mode, **options):
    run = lowered(denoiser(), SCHEDULERS["Euler ancestral"](), Guidance(3.0, mode), **options)
    with exact_types():
        compiled = run._run.lower(*run.arguments()).compile()
    return run, run(NOISE, 7, **GUIDED), compiled.cost_analysis()["flops"], compiled.as_text()

found = {}
several = {"samples": {}, "weights": {"tensor": 2}, "branches": {"branches": 2}}
several["branches and samples"] = {"devices": 4, "branches": 2}
for mode, kinds in (("calls", list(several)), ("batch", ["samples"])):
    _, alone, whole, _ = run(mode)
    for kind in kinds:
        two, result, flops, text = run(mode, **{"devices": 2, **several[kind]})
        exchanges = re.findall(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)[(-]", text)
        found[f"{mode}: {kind}"] = [distance(result, alone), flops / whole, exchanges, two.compilations, two.notes]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def divided():
    """For samples divided over two devices, with guidance of both kinds, for weights, for branches of the guidance, and
    for these with samples over four: how far the result is from that of one device, what share of the FLOPs each has,
    what they exchange, compilations and notes."""
    folders = [str(Path(__file__).parents[i]) for i in range(3)]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-W", "ignore", "-c", DIVIDED, json.dumps(folders)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return json.loads(printed.splitlines()[-1])


def test_several_devices_give_what_one_gives_and_each_computes_its_share(divided):
    for kind, (difference, share, _, compilations, _) in divided.items():
        assert difference <= 1e-6 and compilations == 1
        assert share < (0.28 if kind == "calls: branches and samples" else 0.53)


def test_samples_stay_where_they_are_unless_both_branches_are_one_batch(divided):
    assert divided["calls: samples"][2] == []
    assert divided["batch: samples"][2]


def test_divided_weights_meet_in_one_sum_for_each_branch(divided):
    assert set(divided["calls: weights"][2]) == {"all-reduce"} and len(divided["calls: weights"][2]) <= 2
    assert divided["calls: weights"][4] == ["7 of 8 weights, 99% of the bytes, are divided over 2 devices"]


def test_branches_of_the_guidance_exchange_their_predictions_and_nothing_else(divided):
    assert divided["calls: branches"][2] == ["all-gather"]


def test_loops_of_a_cpu_that_is_several_devices_are_not_divided_between_threads():
    alone, two = (Settings().compiler_options(devices) for devices in (1, 2))
    assert {**alone, "xla_disable_hlo_passes": "cpu-parallel-task-assigner"} == two != alone
    assert Settings(platform="tpu").compiler_options(2) == {}


@cache
def graph_of(family):
    module, example = tiny(family)
    return graphopt.load(module, example_inputs=example).main


def test_heads_and_hidden_units_are_divided_and_what_layers_add_to_is_not():
    dims = divided_dims(graph_of("dit"), 2)
    block = "transformer_blocks.0."
    attention = {f"attn1.to_{name}.weight": 0 for name in "qkv"} | {"attn1.to_out.0.weight": 1}
    feed_forward = {"ff.net.0.proj.weight": 0, "ff.net.0.proj.bias": 0, "ff.net.2.weight": 1}
    assert {name: dims.get(block + name) for name in (attention | feed_forward)} == attention | feed_forward
    assert not {f"{block}attn1.to_out.0.bias", f"{block}ff.net.2.bias", "pos_embed.proj.weight"} & dims.keys()


def test_parts_that_are_no_equal_parts_of_an_axis_stay_whole():
    heads = {name for name in divided_dims(graph_of("dit"), 4) if "attn1" in name}
    assert heads == set(), "there are two heads"
    gates = {name for name in divided_dims(graph_of("unet"), 2) if "ff.net.0.proj" in name}
    assert gates == set(), "both halves of a gate are in one matrix"


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'graphopt[tpu]'")
def test_four_chips_of_a_tpu_are_compiled_for_and_only_add_up_what_divided_weights_give(monkeypatch):
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    run = program_of(denoiser()).lower("xla", check=False)
    chips = np.asarray(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
    flops = {}
    for shape in ((1, 1), (2, 1), (2, 2)):
        mesh = Mesh(chips[: shape[0] * shape[1]].reshape(shape), ("samples", "channels"))
        given, result = run.shardings(mesh)
        with exact_types():
            jitted = jax.jit(run.function(), in_shardings=given, out_shardings=result)
            compiled = jitted.trace(*run.arguments()).lower(lowering_platforms=("tpu",)).compile()
        flops[shape], text = compiled.cost_analysis()["flops"], compiled.as_text()
        exchanges = set(re.findall(r" (all-[a-z]+|collective-[a-z]+|reduce-scatter)[(-]", text))
        assert exchanges == ({"all-reduce"} if shape[1] > 1 else set())
        assert len(re.findall(r" while\(", text)) == 1
    assert flops[2, 1] < 0.51 * flops[1, 1] and flops[2, 2] < 0.27 * flops[1, 1]


def test_more_devices_than_there_are_is_an_error_that_says_how_a_cpu_gets_them():
    with pytest.raises(UnsupportedError, match="xla_force_host_platform_device_count=2"):
        program_of(denoiser()).lower("xla", devices=2)


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(UnsupportedError, match=r"float32\[2,4,8,8\].*multiple of 3"):
        program_of(denoiser()).lower("xla", devices=3)


def test_groups_have_to_divide_the_devices():
    with pytest.raises(PipelineError, match="devices=3 cannot be divided into groups of tensor=2"):
        program_of(denoiser()).lower("xla", devices=3, tensor=2)


@pytest.mark.parametrize(("guidance", "hint"), [(None, "$"), (Guidance(3.0), "; build it with guidance=Guidance")])
def test_branches_need_as_many_calls_of_the_denoiser(guidance, hint):
    with pytest.raises(UnsupportedError, match=f"branches=2, and the program calls its denoiser once in a row{hint}"):
        program_of(denoiser(), guidance).lower("xla", devices=2, branches=2)


def test_branches_have_to_divide_the_devices():
    with pytest.raises(PipelineError, match="devices=3 cannot be divided .* for each of branches=2"):
        program_of(denoiser(), Guidance(3.0, "calls")).lower("xla", devices=3, branches=2)


@pytest.mark.parametrize("devices", [0, "two"])
def test_devices_have_to_be_a_number(devices):
    with pytest.raises(PipelineError, match=f"devices is {devices!r}, expected a positive integer"):
        program_of(denoiser()).lower("xla", devices=devices)
