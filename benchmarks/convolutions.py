"""What the passes on convolutions save alone: one convolution as it is and rewritten, on each backend, interleaved.

    python -m benchmarks.convolutions [--threads N] [--rounds N] [--backend NAME ...]

`winograd` is given convolutions of 3 × 3, `fuse-upsampling` the same behind nearest upsampling by 2. The thresholds of
`winograd` are left out, so that the sizes at which it does not pay are seen as well. XLA runs one convolution a call
here, with what a call costs.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import nn

import graphopt
from benchmarks.console import wide_console
from benchmarks.interleave import always, interleave, paired_ratio

SIZES = ((40, 8), (64, 32), (128, 32), (256, 16), (256, 32), (320, 64), (512, 8), (512, 16))
"""Channels, in and out, and height and width of the result; of U-Nets."""
BATCH = 2
PASSES = {"winograd": "winograd{channels=1 tiles=1}", "fuse-upsampling": "fuse-upsampling"}


class Convolution(nn.Module):
    def __init__(self, channels: int, *, upsample: bool) -> None:
        super().__init__()
        self.conv, self.upsample = nn.Conv2d(channels, channels, 3, padding=1), upsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(nn.functional.interpolate(x, scale_factor=2.0) if self.upsample else x)


def candidates(name: str, channels: int, size: int, backend: str, threads: int) -> dict[str, Any]:
    """The module as it is and after the pass, lowered, each as a job."""
    torch.manual_seed(0)
    upsample = name == "fuse-upsampling"
    module = Convolution(channels, upsample=upsample).eval()
    x = torch.randn(BATCH, channels, *[size // 2 if upsample else size] * 2)
    options = {"threads": threads} if backend == "onnxruntime" else {}
    plain = graphopt.optimize(module, [], example_inputs=x).lower(backend, **options)
    result = graphopt.optimize(module, PASSES[name], example_inputs=x)
    assert len(result.report.kept) == 1, result.report.why_not()
    rewritten = result.lower(backend, **options)
    wanted = module(x)
    for run in (plain, rewritten):
        error = float((run(x) - wanted).abs().max() / wanted.abs().max())
        assert error < 1e-5, f"{name} on {backend}: {error:.1e}"
    return {"plain": lambda: plain(x), "rewritten": lambda: rewritten(x)}


def main(
    threads: Annotated[int, typer.Option(help="Threads of torch and onnxruntime; XLA takes NPROC.")] = 1,
    rounds: Annotated[int, typer.Option(help="Timed runs of each form.")] = 15,
    backend: Annotated[list[str] | None, typer.Option(help="Backends to run; all without one.")] = None,
) -> None:
    """Print medians and the share of the time that is left."""
    os.environ.setdefault("NPROC", str(threads))
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    console = wide_console()
    for name in PASSES:
        table = Table(title=f"{name}: batch {BATCH}, {threads} thread(s), median of {rounds} rounds", box=None)
        for column in ("channels", "size", "backend", "plain, ms", "rewritten, ms", "share of the time"):
            table.add_column(column, justify="right")
        for channels, size in SIZES:
            for where in backend or ("onnxruntime", "torch", "xla"):
                jobs = {n: always(run) for n, run in candidates(name, channels, size, where, threads).items()}
                timings = interleave(jobs, rounds=rounds, lead=1)
                cells = [f"{1e3 * timings[form].median:.2f}" for form in ("plain", "rewritten")]
                share = str(paired_ratio(timings["rewritten"], timings["plain"]))
                table.add_row(str(channels), f"{size} × {size}", where, *cells, share)
        console.print(table)


if __name__ == "__main__":
    typer.run(main)
