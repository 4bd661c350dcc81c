"""Structured pruning of tiny models of many architectures, beside Torch-Pruning.

    python -m benchmarks.pruning [--model NAME ...] [--held-out] [--no-peer] [--no-ours] [--jobs 2] [--seconds 60]

47 models, or the 10 held out, that no rule was written for. Torch-Pruning is asked for half of the channels with its
defaults. Of graphopt: the axes it finds; each pruned alone to half and compared in float64 with the original whose
removed weights are zero; the share of the parameters that is left with all of them at half; which of them the ONNX file
that torch.onnx.export makes has too. Each model and tool has a process of its own and a limit of processor time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.console import wide_console
from benchmarks.pruning_models import HELD_OUT, MODELS

PEER, OURS = "benchmarks.torch_pruning_peer", "benchmarks.pruning_ours"
Row = Mapping[str, Any]
"""What a child printed last; "failed" instead, if it ended without an outcome."""
PATIENCE = 10
"""Seconds of wall clock, for each of processor time, after which a child is stopped although it does not compute."""
TITLES = (
    "axes", "exact", "idle", "coupled", "wrong", "by half", "s", "nodes", "in both", "only torch", "only ONNX",
)  # fmt: skip
COUNTS = ("axes", "exact", "idle", "coupled", "wrong", "nodes")
ONNX_COUNTS = ("same", "only_torch", "only_onnx")


def run_child(module: str, model: str, seconds: int) -> Row:
    """The outcome of `python -m module model`."""
    command = [sys.executable, "-m", module, model, *([str(seconds)] if module == PEER else [])]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"no end after {seconds * PATIENCE} s"}
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode == 0 and lines and "step" not in lines[-1]:
        return lines[-1]
    step = lines[-1].get("step", "") if lines else "start"
    if done.returncode < 0:
        return {"failed": f"{step}: more than {seconds} s, or signal {-done.returncode}"}
    return {"failed": f"{step}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"}


def told_peer(row: Row | None) -> str:
    """Torch-Pruning's result in a few words."""
    if row is None:
        return "-"
    if "failed" in row:
        return str(row["failed"])
    result = row["result"]
    if result == "ok":
        before, after = row["parameters"]
        return f"ok, {after / before:.0%} of the parameters left"
    return f"{result}: {row['detail']}" if row.get("detail") else result


def table(rows: Mapping[str, tuple[Row | None, Row | None]]) -> Table:
    """One line a model; the totals below."""
    shown = Table(title="Structured pruning by half: tiny models, random weights")
    shown.add_column("model", no_wrap=True)
    shown.add_column("Torch-Pruning 1.6.1, defaults", max_width=30, no_wrap=True, overflow="ellipsis")
    for title in TITLES:
        shown.add_column(title, justify="right")
    for name, (peer, ours) in rows.items():
        shown.add_row(name, told_peer(peer), *_our_cells(ours))
    shown.add_section()
    shown.add_row(*_totals(rows))
    return shown


def _our_cells(row: Row | None) -> list[str]:
    if row is None:
        return ["-"] * len(TITLES)
    if "failed" in row:
        return ["failed"]
    counts = [str(row[name]) for name in COUNTS]
    half = f"{row['half_parameters'] / row['parameters']:.0%}" if row["half_runs"] else "fails"
    onnx = ["not exported"] if row["onnx"] is None else [str(row["onnx"][name]) for name in ONNX_COUNTS]
    return [*counts[:-1], half, f"{row['seconds']:.2f}", counts[-1], *onnx]


def _totals(rows: Mapping[str, tuple[Row | None, Row | None]]) -> list[str]:
    peers = [told_peer(peer).partition(",")[0].partition(":")[0] for peer, _ in rows.values() if peer is not None]
    by_result = ", ".join(f"{count} {result}" for result, count in Counter(peers).most_common())
    ours = [row for _, row in rows.values() if row is not None and "failed" not in row]
    if not ours:
        return [f"{len(rows)} models", by_result]
    counts = [str(sum(row[name] for row in ours)) for name in COUNTS]
    half = f"{sum(row['half_runs'] for row in ours)} of {len(ours)} run"
    seconds = f"{sum(row['seconds'] for row in ours):.2f}"
    files = [row["onnx"] for row in ours if row["onnx"] is not None]
    onnx = [str(sum(file[name] for file in files)) for name in ONNX_COUNTS]
    return [f"{len(rows)} models", by_result, *counts[:-1], half, seconds, counts[-1], *onnx]


def measured(
    models: Sequence[str], *, peer: bool, ours: bool, jobs: int, seconds: int
) -> dict[str, tuple[Row | None, Row | None]]:
    """The outcomes of both tools, a process for each."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {
            name: [
                pool.submit(run_child, module, name, seconds) if wanted else None
                for module, wanted in ((PEER, peer), (OURS, ours))
            ]
            for name in models
        }
        return {n: tuple(f and f.result() for f in pair) for n, pair in waiting.items()}  # type: ignore[misc]


def main(
    model: Annotated[list[str] | None, typer.Option(help="A model's name; may be given several times.")] = None,
    held_out: Annotated[bool, typer.Option("--held-out", help="The 10 models that no rule was written for.")] = False,
    peer: Annotated[bool, typer.Option(help="Run Torch-Pruning.")] = True,
    ours: Annotated[bool, typer.Option(help="Run graphopt.")] = True,
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 2,
    seconds: Annotated[int, typer.Option(min=1, help="Processor time that a process may take.")] = 60,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the processes said instead.")] = False,
) -> None:
    """Print the table; exit code 1 if graphopt pruned anything wrongly."""
    names = list(model or (HELD_OUT if held_out else MODELS))
    for name in names:
        if name not in MODELS and name not in HELD_OUT:
            raise typer.BadParameter(f"no model {name!r}; expected one of {', '.join([*MODELS, *HELD_OUT])}")
    rows = measured(names, peer=peer, ours=ours, jobs=jobs, seconds=seconds)
    if as_json:
        print(json.dumps({name: {"torch-pruning": p, "graphopt": o} for name, (p, o) in rows.items()}, indent=1))
    else:
        console = wide_console()
        console.print(table(rows))
        for name, (_, row) in rows.items():
            for line in () if row is None else (*row.get("details", ()), *filter(None, [row.get("failed")])):
                console.print(f"{name}: {line}", markup=False)
    if any(o is not None and o.get("wrong") for _, o in rows.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
