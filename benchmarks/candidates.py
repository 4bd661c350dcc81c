"""Optimises one ONNX file with one tool, in a process of its own: a crash or hang stays with that tool.

    python -m benchmarks.candidates TOOL SOURCE TARGET RESULT

reads SOURCE, writes the optimised model to TARGET and what there is to tell (JSON) to RESULT. The seconds are
those from reading the file to having written the new one; importing the tool is not counted.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphopt.pipeline.spec import DEFAULT_PASSES as PASSES


def run_graphopt(source: Path, target: Path) -> dict[str, Any]:
    import graphopt

    optimized = graphopt.optimize(source, passes=PASSES)
    optimized.save(target)
    return {"report": optimized.report.to_dict()}


def run_onnxsim(source: Path, target: Path) -> dict[str, Any]:
    import onnx
    import onnxsim

    model, checked = onnxsim.simplify(onnx.load(source), certify=False)
    onnx.save(model, target)
    return {} if checked else {"error": "its own check failed"}


def run_onnxslim(source: Path, target: Path) -> dict[str, Any]:
    import onnx
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)
    return {}


def run_onnxoptimizer(source: Path, target: Path) -> dict[str, Any]:
    import onnx
    import onnxoptimizer

    onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)
    return {}


TOOLS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "graphopt": run_graphopt,
    "onnxsim": run_onnxsim,
    "onnxslim": run_onnxslim,
    "onnxoptimizer": run_onnxoptimizer,
}


def main(tool: str, source: str, target: str, result: str) -> None:
    importlib.import_module(tool)
    start = time.perf_counter()
    told = TOOLS[tool](Path(source), Path(target))
    told["seconds"] = time.perf_counter() - start
    Path(result).write_text(json.dumps(told, default=str), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
