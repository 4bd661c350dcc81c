"""Optimises one model with one tool and says what came of it: outputs, size, nodes, evidence, time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.candidates import PASSES
from benchmarks.compare import Array, Comparison, compare, run_plain
from graphopt.tools.inputs import make_inputs
from graphopt.tools.manifest import Entry

MAX_GROWTH = 0.01
"""Share by which an optimised file may be larger than the original."""


@dataclass(frozen=True)
class Shape:
    """What a model is made of."""

    nodes: int
    """Nodes of all graphs, control-flow bodies and functions, except Constant nodes, which are weights."""
    constants: int
    batch_norms: int
    bytes: int


@dataclass(frozen=True)
class Outcome:
    """What one tool did to one model."""

    failure: str = ""
    """Why the result cannot be used; empty if it can."""
    shape: Shape | None = None
    error: float | None = None
    """Worst max|error| / max|reference| over outputs and input sets."""
    seconds: float | None = None
    applied: int | None = None
    """Applications that were kept (graphopt only)."""
    undone: int | None = None
    """Applications that verification undid (graphopt only)."""
    coverage: float | None = None
    """Share of the kept applications that carry evidence (graphopt only)."""

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


def feeds_of(entry: Entry) -> list[dict[str, Array]]:
    """Every input set of `entry`; its position is its seed."""
    return [make_inputs(spec, seed) for seed, spec in enumerate(entry.inputs)]


def onnx_shape(path: Path) -> Shape:
    """What the ONNX file at `path` is made of."""
    import onnx

    types = [node.op_type for node in _all_nodes(onnx.load(path))]
    constants = types.count("Constant")
    return Shape(len(types) - constants, constants, types.count("BatchNormalization"), path.stat().st_size)


def _all_nodes(model: Any) -> Iterator[Any]:
    pending = [model.graph, *model.functions]
    while pending:
        for node in pending.pop().node:
            yield node
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else attribute.graphs


def optimise_onnx(
    tool: str, entry: Entry, source: Path, references: Sequence[Sequence[Array]], limit: float
) -> Outcome:
    """Optimise `source` with `tool` in a process of its own, given `limit` seconds; check the result."""
    with tempfile.TemporaryDirectory() as folder:
        target, result = Path(folder) / "optimised.onnx", Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.candidates", tool, str(source), str(target), str(result)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=_one_thread())
        except subprocess.TimeoutExpired:
            return Outcome(f"over {limit:.0f} s")
        if run.returncode:
            return Outcome(_why_it_ended(run))
        told = json.loads(result.read_text(encoding="utf-8"))
        shape = onnx_shape(target)
        comparison = _check_onnx(entry, target, references)
    failure = told.get("error", "") or ("" if comparison.equal else comparison.reason)
    return Outcome(failure, shape, comparison.error, told["seconds"], **evidence_of(told.get("report")))


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def _why_it_ended(run: subprocess.CompletedProcess[str]) -> str:
    if run.returncode < 0:
        return f"killed by signal {-run.returncode}"
    return next(reversed(run.stderr.strip().splitlines()), f"exit code {run.returncode}")


def _check_onnx(entry: Entry, target: Path, references: Sequence[Sequence[Array]]) -> Comparison:
    try:
        outputs = [run_plain(target, feeds) for feeds in feeds_of(entry)]
    except Exception as error:  # onnxruntime has no common class for what a broken model makes it raise
        return Comparison(float("inf"), False, f"does not run: {str(error).splitlines()[0]}")
    return _worst(entry, outputs, references)


def _worst(entry: Entry, outputs: Sequence[Any], references: Sequence[Any]) -> Comparison:
    found = [compare(o, r, entry.compare) for o, r in zip(outputs, references, strict=True)]
    return min(found, key=lambda c: (c.equal, -c.error))


def evidence_of(report: Mapping[str, Any] | None) -> dict[str, Any]:
    """Counts and share of evidence from the dictionary of a graphopt report; nothing for another tool."""
    if report is None:
        return {}
    status = [application["status"] for record in report["passes"] for application in record["applications"]]
    counts = {"applied": status.count("kept"), "undone": status.count("undone")}
    return {**counts, "coverage": report["coverage"]}


def optimise_torch(entry: Entry, source: Path) -> tuple[Shape, Outcome]:
    """Optimise a torch model of the zoo with graphopt; what it was made of, and what came of it."""
    import graphopt

    module, sets, traced = torch_model(entry, source)
    references = [_run_torch(module, arguments) for arguments in sets]
    start = time.perf_counter()
    optimized = graphopt.optimize(module, passes=PASSES, **traced)
    seconds = time.perf_counter() - start
    outputs = [_run_torch(optimized.model, arguments) for arguments in sets]
    comparison = _worst(entry, outputs, references)
    report = optimized.report.to_dict()
    before, after = (_torch_shape(m, report["passes"][i][side]) for m, i, side in _ends(module, optimized))
    failure = "" if comparison.equal else comparison.reason
    return before, Outcome(failure, after, comparison.error, seconds, **evidence_of(report))


def torch_model(entry: Entry, source: Path) -> tuple[Any, list[tuple[Any, ...]], dict[str, Any]]:
    """A torch model of the zoo, its sets of inputs, and what it is traced with."""
    import torch

    from benchmarks.torch_zoo import build

    sets = [tuple(torch.from_numpy(x) for x in feeds.values()) for feeds in feeds_of(entry)]
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # from torch.export
    return build(entry.id, source), sets, {"example_inputs": sets[-1], "dynamic_shapes": _what_varies(sets)}


def _ends(module: Any, optimized: Any) -> tuple[tuple[Any, int, str], tuple[Any, int, str]]:
    return (module, 0, "before"), (optimized.model, -1, "after")


def _run_torch(module: Any, arguments: tuple[Any, ...]) -> list[Array]:
    import torch

    with torch.no_grad():
        outputs = module(*arguments)
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple | list) else (outputs,))]


def _what_varies(sets: Sequence[tuple[Any, ...]]) -> tuple[dict[int, Any], ...] | None:
    """The dimensions in which the input sets differ, as `dynamic_shapes` of torch.export."""
    from torch.export import Dim

    varying = tuple(
        {d: Dim.AUTO for d in range(group[0].ndim) if len({x.shape[d] for x in group}) > 1}
        for group in zip(*sets, strict=True)
    )
    return varying if any(varying) else None


def _torch_shape(module: Any, size: Mapping[str, Any]) -> Shape:
    import torch

    graph = getattr(module, "graph", None)
    if graph is None:
        norms = sum(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in module.modules())
    else:
        norms = sum("batch_norm" in str(node.target) for node in graph.nodes if node.op == "call_function")
    return Shape(size["nodes"], 0, norms, size["bytes"])
