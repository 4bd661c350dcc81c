"""A mixture of experts on onnxruntime: all experts on every token, copies of weights, each expert on its own tokens.

    python -m benchmarks.moe [--rounds N] [--experts E ...] [--tokens T ...]

transformers' Mixtral block, 512 features, 2048 hidden, 2 experts a token, random weights. Each way has a process of its
own; its peak of memory is that of loading and running the saved model. Times are processor time of one thread, medians;
processes take turns. The copies (transformers' batched_mm as torch exports it) are not run where they take more than
6 GB.
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
from typing import Annotated, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import typer
from rich.table import Table
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

import graphopt
from benchmarks.console import wide_console

WIDTH, HIDDEN, PICKED = 512, 2048, 2
MOST = 6e9
"""Bytes of copies that are made."""
WAYS = ("dense", "copies", "graphopt")


class Dense(torch.nn.Module):
    """Every expert of a block on every token; the gates of those that were not picked are zero."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.gate = block.gate
        ups, downs = block.experts.gate_up_proj.detach(), block.experts.down_proj.detach()
        self.ups = torch.nn.ParameterList([torch.nn.Parameter(w.T.contiguous()) for w in ups])
        self.downs = torch.nn.ParameterList([torch.nn.Parameter(w.T.contiguous()) for w in downs])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        scores = torch.softmax(rows @ self.gate.weight.T, -1)
        best, ids = torch.topk(scores, PICKED)
        gates = torch.zeros_like(scores).scatter(1, ids, best / best.sum(-1, keepdim=True))
        total = torch.zeros_like(rows)
        for expert, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            gate, value = (rows @ up).chunk(2, -1)
            total = total + gates[:, expert : expert + 1] * ((torch.nn.functional.silu(gate) * value) @ down)
        return total.reshape(x.shape)


def block_of(experts: int) -> Any:
    config = MixtralConfig(
        hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=experts, num_experts_per_tok=PICKED
    )
    config._experts_implementation = "batched_mm"
    torch.manual_seed(0)
    block = MixtralSparseMoeBlock(config).eval()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return block


def write(way: str, experts: int, tokens: int, path: Path) -> None:
    """The block as an ONNX file."""
    block = block_of(experts)
    module = Dense(block) if way == "dense" else block
    model = torch.onnx.export(module, (torch.zeros(1, tokens, WIDTH),), dynamo=True, verbose=False).model
    if way == "graphopt":
        result = graphopt.optimize(model, ["lower-moe", "clean-up"], target="onnxruntime")
        refused = [a for a in result.report.applications if a.status != "kept"]
        if refused or not result.report.kept:
            raise SystemExit(f"not lowered: {refused} {result.report.passes[0].notes}")
        model = result.model
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


def measured(experts: int, tokens: int, rounds: int, folder: Path) -> dict[str, dict[str, float]]:
    """Median milliseconds, peak MB and file MB of every way."""
    servers = {}
    for way in WAYS:
        if way == "copies" and 12 * WIDTH * HIDDEN * tokens * PICKED > MOST:
            continue
        path = folder / f"{way}.onnx"
        for step in ("write", "serve"):
            command = [sys.executable, "-m", "benchmarks.moe", f"--{step}", f"{way}:{experts}:{tokens}:{path}"]
            if step == "write":
                subprocess.run(command, check=True, capture_output=True)
            else:
                servers[way] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
    for way in servers:
        for file in folder.glob(f"{way}.onnx*"):
            file.unlink()
    sums = {way: runs[-1]["sum"] for way, runs in found.items()}
    if max(sums.values()) - min(sums.values()) > 1e-4 * max(sums.values()):
        raise SystemExit(f"the ways do not agree: {sums}")
    return {
        way: {"ms": statistics.median(r["ms"] for r in runs[2:]), "peak": runs[-1]["peak"], "file": size[way]}
        for way, runs in found.items()
    }


def main(
    rounds: Annotated[int, typer.Option(help="Rounds in which all ways take turns.")] = 11,
    experts: Annotated[list[int] | None, typer.Option(help="Numbers of experts.")] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Numbers of tokens.")] = None,
    write_: Annotated[str | None, typer.Option("--write", hidden=True)] = None,
    serve_: Annotated[str | None, typer.Option("--serve", hidden=True)] = None,
) -> None:
    """Print the table."""
    for step, spec in (("write", write_), ("serve", serve_)):
        if spec is not None:
            way, e, t, path = spec.split(":", 3)
            write(way, int(e), int(t), Path(path)) if step == "write" else serve(Path(path), int(t))
            return
    table = Table(title=f"Mixtral block, {WIDTH} and {HIDDEN} features, {PICKED} experts a token, 1 thread")
    for title in ("experts", "tokens", *(f"{way} ms" for way in WAYS), "dense / graphopt", "peak MB: dense", "copies",
                  "graphopt", "file MB: dense", "graphopt"):  # fmt: skip
        table.add_column(title, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for e in experts or (8, 64):
            for t in tokens or (1, 64, 1024):
                rows = measured(e, t, rounds, Path(folder))
                times = [f"{rows[w]['ms']:.3g}" if w in rows else "-" for w in WAYS]
                peaks = [f"{rows[w]['peak']:.0f}" if w in rows else "-" for w in WAYS]
                files = [f"{rows[w]['file']:.0f}" for w in ("dense", "graphopt")]
                ratio = f"{rows['dense']['ms'] / rows['graphopt']['ms']:.1f}"
                table.add_row(str(e), str(t), *times, ratio, *peaks, *files)
    wide_console().print(table)


if __name__ == "__main__":
    typer.run(main)
