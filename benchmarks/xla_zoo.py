"""The real ONNX models of the manifest on XLA: their error beside onnxruntime's results, or why they are refused.

    python -m benchmarks.xla_zoo [ID ...] [--dest FOLDER]

Errors are the largest of any output: relative to the output's largest number, and as they are (probabilities near 0 are
right to 1e-7 in onnxruntime). Times are processor time on this machine, the first call's without the second's: what
fixing the sizes, the check and compiling take.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

import graphopt
from benchmarks.compare import run_plain
from benchmarks.console import wide_console
from benchmarks.measure import feeds_of
from graphopt.errors import GraphoptError
from graphopt.tools.fetch import DEFAULT_FOLDER, fetch, select
from graphopt.tools.manifest import zoo


def row(path: Path, feeds: dict[str, Any]) -> tuple[str, ...]:
    """What came of one model: ops compared, relative error, error, seconds of the first and the second call."""
    begin = time.process_time()
    try:
        run: Any = graphopt.lower(path, "xla")
        run(feeds)
    except GraphoptError as error:
        return ("refused: " + str(error).removeprefix("backend 'xla' "),)
    first = time.process_time()
    got = run(feeds)
    second = time.process_time()
    errors = [difference(e, g) for e, g in zip(run_plain(path, feeds), got, strict=True)]
    relative, absolute = (max(e[i] for e in errors) for i in (0, 1))
    checked = run.notes[0].partition(" ")[0]
    return checked, f"{relative:.1e}", f"{absolute:.1e}", f"{first - begin:.1f}", f"{second - first:.3f}"


def difference(expected: Any, got: Any) -> tuple[float, float]:
    """Relative to the largest number, and as it is; infinite if dtypes or sizes differ."""
    if expected.dtype != got.dtype or expected.shape != got.shape:
        return float("inf"), float("inf")
    error = float(np.max(np.abs(expected.astype(np.float64) - got.astype(np.float64)), initial=0.0))
    return error / (float(np.max(np.abs(expected), initial=0.0)) or 1.0), error


def main(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of models; all if none is given.")] = None,
    dest: Annotated[Path, typer.Option(help="Folder of the models.")] = DEFAULT_FOLDER,
) -> None:
    """Run the real ONNX models on XLA and compare."""
    entries = sorted((e for e in select(ids or (), zoo()) if e.kind == "onnx"), key=lambda e: e.size)
    table = Table("model", "ops compared", "relative error", "error", "first call s", "second s", title="ONNX on XLA")
    for entry in entries:
        table.add_row(entry.id, *row(fetch([entry.id], dest)[entry.id], feeds_of(entry)[0]))
    wide_console().print(table)


if __name__ == "__main__":
    typer.run(main)
