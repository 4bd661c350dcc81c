"""Two pretrained ONNX files pruned as they are, by 30 % of their FLOPs: what they cost then, and their error.

    python -m benchmarks.prune_zoo [--flops 0.3] [--rounds 15] [--dest FOLDER]

Nothing is trained afterwards, so errors are large; the point is that the files run, are faster, and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

import graphopt
from benchmarks.console import wide_console
from benchmarks.low_rank import interleaved
from graphopt.tools.fetch import DEFAULT_FOLDER, fetch

Feed = dict[str, np.ndarray[Any, Any]]


def tokens(rng: np.random.Generator) -> Feed:
    ids = rng.integers(100, 30000, (4, 32))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def lines(rng: np.random.Generator) -> Feed:
    return {"x": rng.standard_normal((1, 3, 48, 320)).astype(np.float32)}


MODELS: dict[str, Callable[[np.random.Generator], Feed]] = {"minilm_l6_int8": tokens, "ppocrv4_rec": lines}


def main(
    flops: Annotated[float, typer.Option(help="Share of FLOPs that goes.")] = 0.3,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of timing.")] = 15,
    dest: Annotated[Path, typer.Option(help="Folder of fetched models.")] = DEFAULT_FOLDER,
) -> None:
    """Print one row for each model."""
    table = Table(title=f"pruned by {flops:.0%} of FLOPs, onnxruntime, 1 thread, processor time")
    for column in ("model", "axes pruned", "undone", "parameters", "FLOPs", "relative error", "original / pruned"):
        table.add_column(column, justify="left" if column == "model" else "right")
    paths = fetch(list(MODELS), dest)
    for name, draw in MODELS.items():
        rng = np.random.default_rng(0)
        feeds = [draw(rng) for _ in range(6)]
        spec = ["clean-up", f"prune{{flops={flops} importance=activation}}"]
        result = graphopt.optimize(str(paths[name]), spec, budget=float("inf"), calibration=feeds)
        record = result.report.passes[-1]
        runs = [lambda feed, run=run: run(**feed) for run in (graphopt.lower(str(paths[name]), threads=1),
                                                              result.lower(threads=1))]  # fmt: skip
        _, ratios = interleaved((runs[0], runs[1]), feeds[0], rounds)
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
        undone = sum(a.status == "undone" for a in record.applications)
        spent = record.spending.after if record.spending else 0.0
        counted = next((n.partition(": ")[2] for n in record.notes if n.startswith("FLOPs")), "unknown")
        table.add_row(
            name, str(len(record.applications) - undone), str(undone),
            f"{record.after.parameters / record.before.parameters - 1:+.1%}", counted, f"{spent:.2g}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
        )  # fmt: skip
    wide_console().print(table)


if __name__ == "__main__":
    typer.run(main)
