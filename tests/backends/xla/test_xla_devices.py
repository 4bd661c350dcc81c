"""Samples divided over several devices: two of a CPU, in a process that XLA gives two."""

from xla_support import torch  # noqa: F401  first: it skips where JAX is missing  # isort: skip

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
from xla_programs import denoiser, program_of

from graphopt.errors import PipelineError, UnsupportedError

DIVIDED = """
import json, re, sys
sys.path[:0] = json.loads(sys.argv[1])
from sampling_programs import GUIDED, NOISE, SCHEDULERS, distance
from xla_programs import denoiser, lowered
from graphopt.backends.xla.arrays import exact_types
from graphopt.program.guidance import Guidance

found = {}
for mode in ("calls", "batch"):
    runs = [lowered(denoiser(), SCHEDULERS["Euler ancestral"](), Guidance(3.0, mode), devices=n) for n in (1, 2)]
    one, two = (run(NOISE, 7, **GUIDED) for run in runs)
    with exact_types():
        compiled = [run._run.lower(*run.arguments()).compile() for run in runs]
    flops = [c.cost_analysis()["flops"] for c in compiled]
    exchanges = re.findall(r" (?:all-|collective-|reduce-scatter)", compiled[1].as_text())
    found[mode] = [distance(two, one), flops[1] / flops[0], len(exchanges), runs[1].compilations]
print(json.dumps(found))
"""


def test_two_devices_give_what_one_gives_and_each_computes_half():
    folders = [str(Path(__file__).parents[i]) for i in range(3)]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-W", "ignore", "-c", DIVIDED, json.dumps(folders)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    found = json.loads(printed.splitlines()[-1])
    for difference, share, _, compilations in found.values():
        assert difference <= 1e-6 and share < 0.51 and compilations == 1
    assert found["calls"][2] == 0, "nothing goes from one device to another"
    assert found["batch"][2] > 0


def test_more_devices_than_there_are_is_an_error_that_says_how_a_cpu_gets_them():
    with pytest.raises(UnsupportedError, match="xla_force_host_platform_device_count=2"):
        program_of(denoiser()).lower("xla", devices=2)


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(UnsupportedError, match=r"float32\[2,4,8,8\].*multiple of 3"):
        program_of(denoiser()).lower("xla", devices=3)


@pytest.mark.parametrize("devices", [0, "two"])
def test_devices_have_to_be_a_number(devices):
    with pytest.raises(PipelineError, match=f"devices is {devices!r}, expected a positive integer"):
        program_of(denoiser()).lower("xla", devices=devices)
