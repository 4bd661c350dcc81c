"""A mixture of experts on onnxruntime: all experts on every token, copies of weights, each expert on its own tokens.

    python -m benchmarks.moe [--rounds N] [--kinds gated|plain ...] [--experts E ...] [--tokens T ...]

Blocks of transformers, 512 features, 2048 hidden, 2 experts a token, random weights: `gated` experts are Mixtral's,
`plain` ones Nemotron-H's, two matrices with a relu between. Ways: `dense` computes all experts for all tokens; `copies`
is transformers' batched_mm as torch exports it, not run where it would copy more than 6 GB; `by hand` is the sorted
form as one would write it for a fixed number of tokens; `contrib` is onnxruntime's own op, which on a CPU does plain
experts; `loop` is graphopt's form=loop.

Each way has a process of its own; its peak of memory is that of loading and running the saved model. Times are
processor time of one thread, medians; ratios are medians of the rounds' ratios; processes take turns.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import typer
from rich.table import Table

from benchmarks.console import wide_console
from benchmarks.moe_ways import HIDDEN, PICKED, WIDTH, model_of

MOST = 6e9
"""Bytes of copies that are made."""
WAYS = ("dense", "copies", "by hand", "contrib", "graphopt", "loop")


def write(way: str, kind: str, experts: int, tokens: int, path: Path) -> None:
    """The block as an ONNX file."""
    model = model_of(way, kind, experts, tokens)
    onnx.save(ir.to_proto(model), str(path), save_as_external_data=True, location=path.name + ".data")


def serve(path: Path, tokens: int) -> None:
    """Load the model at `path`; then one line of JSON for every line read: milliseconds, and the peak of memory."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    x = np.random.default_rng(0).standard_normal((1, tokens, WIDTH)).astype(np.float32)
    for _ in sys.stdin:
        started = time.process_time()
        (result,) = session.run(None, {name: x})
        spent = 1000 * (time.process_time() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"ms": spent, "peak": peak, "sum": float(np.abs(result).sum())}), flush=True)


def measured(kind: str, experts: int, tokens: int, rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Of every way: median milliseconds, the median ratio of dense to it, peak MB and file MB."""
    servers = {way: _started(way, kind, experts, tokens, folder) for way in _run(kind, tokens)}
    found: dict[str, list[dict[str, float]]] = {way: [] for way in servers}
    for _ in range(rounds + 2):
        for way, server in servers.items():
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write("\n")
            server.stdin.flush()
            found[way].append(json.loads(server.stdout.readline()))
    for server in servers.values():
        server.communicate()
    size = {way: sum(f.stat().st_size for f in folder.glob(f"{way}.onnx*")) / 1e6 for way in servers}
    for file in folder.iterdir():
        file.unlink()
    sums = {way: runs[-1]["sum"] for way, runs in found.items()}
    if max(sums.values()) - min(sums.values()) > 1e-4 * max(sums.values()):
        raise SystemExit(f"the ways do not agree: {sums}")
    dense = [r["ms"] for r in found["dense"][2:]]
    return {
        way: {
            "ms": statistics.median(r["ms"] for r in runs[2:]),
            "ratio": statistics.median(d / r["ms"] for d, r in zip(dense, runs[2:], strict=True)),
            "peak": runs[-1]["peak"],
            "file": size[way],
        }
        for way, runs in found.items()
    }


def _run(kind: str, tokens: int) -> list[str]:
    """The ways that are run."""
    matrices = 3 if kind == "gated" else 2
    left_out = {"contrib"} if kind == "gated" else set()
    if 4 * matrices * WIDTH * HIDDEN * tokens * PICKED > MOST:
        left_out.add("copies")
    return [way for way in WAYS if way not in left_out]


def _started(way: str, kind: str, experts: int, tokens: int, folder: Path) -> subprocess.Popen[str]:
    spec = f"{way}:{kind}:{experts}:{tokens}:{folder / way}.onnx"
    command = [sys.executable, "-m", "benchmarks.moe"]
    subprocess.run([*command, "--write", spec], check=True, capture_output=True)
    return subprocess.Popen([*command, "--serve", spec], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def main(
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 11,
    kinds: Annotated[list[str] | None, typer.Option(help="Kinds of experts: gated, plain.")] = None,
    experts: Annotated[list[int] | None, typer.Option(help="Numbers of experts.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Numbers of tokens.")] = None,
    write_: Annotated[str | None, typer.Option("--write", hidden=True)] = None,
    serve_: Annotated[str | None, typer.Option("--serve", hidden=True)] = None,
) -> None:
    """Print the table."""
    for step, spec in (("write", write_), ("serve", serve_)):
        if spec is not None:
            way, kind, e, t, path = spec.split(":", 4)
            write(way, kind, int(e), int(t), Path(path)) if step == "write" else serve(Path(path), int(t))
            return
    title = f"{WIDTH} and {HIDDEN} features, {PICKED} experts a token, 1 thread: ms (dense / way), peak MB"
    table = Table("kind", title=title)
    for column in ("experts", "tokens", *WAYS, "file MB: dense", "graphopt"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds or ("plain", "gated"):
            for e in experts or (8, 64):
                for t in tokens or (1, 64, 1024):
                    rows = measured(kind, e, t, rounds, Path(folder))
                    cells = [_cell(rows.get(way)) for way in WAYS]
                    files = [f"{rows[w]['file']:.0f}" for w in ("dense", "graphopt")]
                    table.add_row(kind, str(e), str(t), *cells, *files)
    wide_console().print(table)


def _cell(row: dict[str, float] | None) -> str:
    return "-" if row is None else f"{row['ms']:.3g} ({row['ratio']:.1f}) {row['peak']:.0f}"


if __name__ == "__main__":
    typer.run(main)
