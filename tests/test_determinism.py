"""The same input gives the same bytes and the same application ids in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("determinism_model.py")
AT_ONCE = 2


def run_all(commands: list[list[str]]) -> Iterator[dict]:
    """What each command prints, run under a hash seed of its own, a few at a time."""
    started: list[subprocess.Popen[str]] = []
    for seed, command in enumerate(commands):
        if seed >= AT_ONCE:
            started[seed - AT_ONCE].wait(timeout=120)
        environment = os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"}
        started.append(
            subprocess.Popen(
                [sys.executable, str(SCRIPT), *command],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        yield json.loads(out)


@pytest.fixture(scope="module")
def onnx_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[Path]]:
    from determinism_model import write_model

    folder = tmp_path_factory.mktemp("runs")
    write_model(folder / "in.onnx")
    outputs = [folder / f"out{i}.onnx" for i in range(20)]
    return list(run_all([["onnx", str(folder / "in.onnx"), str(o)] for o in outputs])), outputs


def test_twenty_processes_write_the_same_bytes(onnx_runs):
    _, outputs = onnx_runs
    assert len({o.read_bytes() for o in outputs}) == 1
    assert len({o.with_suffix(".txt").read_text() for o in outputs}) == 1


def test_twenty_processes_report_the_same_applications(onnx_runs):
    results, _ = onnx_runs
    assert all(r["ids"] == results[0]["ids"] for r in results)
    assert all(r["report"] == results[0]["report"] for r in results)


def test_the_model_has_something_for_every_family_of_rules(onnx_runs):
    """Otherwise equal outputs would say little."""
    results, _ = onnx_runs
    kept = {i.split("#")[0].partition("/")[2] for i in results[0]["ids"] if i.endswith(" kept")}
    assert kept >= {
        "conv-batch-norm",
        "multiply-by-one",
        "add-float-zero",
        "transpose-twice",
        "cast-to-same-type",
        "remove-identity",
        "known-reshape-target",
        "inline-constant-branch",
        "merge-equal-nodes",
        "merge-equal-constants",
        "store-constant-nodes",
        "fold-constants",
        "dead-code",
    }


def test_four_processes_make_the_same_of_a_torch_module(tmp_path: Path):
    outputs = [tmp_path / f"{i}.txt" for i in range(4)]
    results = list(run_all([["torch", str(o)] for o in outputs]))
    assert len({o.read_text() for o in outputs}) == 1
    assert all(r == results[0] for r in results)
    assert any(i.startswith("fuse-conv-bn/") and i.endswith(" kept") for i in results[0]["ids"])
