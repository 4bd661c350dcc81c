"""The same input gives the same bytes and the same application ids in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from determinism_model import write_model

import graphopt

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


def test_twenty_processes_write_the_same_bytes_and_report_the_same_applications(tmp_path: Path):
    write_model(tmp_path / "in.onnx")
    outputs = [tmp_path / f"out{i}.onnx" for i in range(20)]
    first, *others = run_all([["onnx", str(tmp_path / "in.onnx"), str(o)] for o in outputs])
    assert len({o.read_bytes() for o in outputs}) == 1
    assert len({o.with_suffix(".txt").read_text() for o in outputs}) == 1
    assert all(other["ids"] == first["ids"] for other in others)
    assert all(other["report"] == first["report"] for other in others)


def test_the_model_has_something_for_every_family_of_rules(tmp_path: Path):
    """Otherwise equal outputs would say little."""
    write_model(tmp_path / "in.onnx")
    report = graphopt.optimize(tmp_path / "in.onnx").report
    kept = {application.rule for application in report.kept}
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
