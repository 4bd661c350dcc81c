"""All real models of the manifest, optimised and checked, with node counts beside those of other tools.

    python -m benchmarks.zoo [ID ...] [--dest FOLDER] [--tool TOOL ...] [--json FILE]

Each ONNX file is optimised by every tool in a process of its own; then both files run on onnxruntime with its
optimisations off, on each input set of the manifest. The torch models run in torch. Exit code 1 if graphopt
crashed, changed an output beyond the manifest's tolerance, let a file grow by more than 1 %, or kept an
application without evidence.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.candidates import PASSES, TOOLS
from benchmarks.compare import run_plain
from benchmarks.console import wide_console
from benchmarks.measure import MAX_GROWTH, Outcome, Shape, feeds_of, onnx_shape, optimise_onnx, optimise_torch
from graphopt.tools.fetch import DEFAULT_FOLDER, fetch, select
from graphopt.tools.manifest import Entry, zoo

Row = tuple[Entry, Shape, dict[str, Outcome]]


def main(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of models; all if none is given.")] = None,
    dest: Annotated[Path, typer.Option(help="Folder of the models.")] = DEFAULT_FOLDER,
    tool: Annotated[list[str] | None, typer.Option(help="Only these tools.")] = None,
    limit: Annotated[float, typer.Option(help="Seconds that a tool may take for one model.")] = 300.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured there.")] = None,
) -> None:
    """Optimise the real models of the manifest with graphopt and its peers, and compare."""
    tools = tool or list(TOOLS)
    entries = select(ids or (), zoo())
    paths = fetch([entry.id for entry in entries], dest)
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for entry in progress.track(entries, description="models"):
            rows.append(_measure(entry, paths[entry.id], tools, limit))
    failed = [(row[0].id, why) for row in rows if (why := verdict(row))]
    if json_file is not None:
        json_file.write_text(json.dumps([_as_json(row) for row in rows], indent=2), encoding="utf-8")
    _print(rows, tools, failed)
    if failed:
        raise typer.Exit(1)


def _measure(entry: Entry, source: Path, tools: list[str], limit: float) -> Row:
    if entry.kind == "torch":
        if "graphopt" not in tools:
            return entry, Shape(0, 0, 0, source.stat().st_size), {}
        try:
            shape, outcome = optimise_torch(entry, source)
        except Exception as error:  # one model that fails must not hide the others
            shape = Shape(0, 0, 0, source.stat().st_size)
            outcome = Outcome(f"{type(error).__name__}: {error}")
        return entry, shape, {"graphopt": outcome}
    references = [run_plain(source, feeds) for feeds in feeds_of(entry)]
    outcomes = {tool: optimise_onnx(tool, entry, source, references, limit) for tool in tools}
    return entry, onnx_shape(source), outcomes


def verdict(row: Row) -> str:
    """Why graphopt's result for a model is not good enough; empty if it is, or if graphopt was not asked."""
    _, before, outcomes = row
    outcome = outcomes.get("graphopt")
    if outcome is None:
        return ""
    if outcome.failure:
        return outcome.failure
    if growth(before, outcome) > MAX_GROWTH:
        return f"the file grew by {growth(before, outcome):.1%}"
    if outcome.coverage != 1.0:
        return f"only {outcome.coverage:.0%} of the applications carry evidence"
    return ""


def growth(before: Shape, outcome: Outcome) -> float:
    """Change of size as a share of the original."""
    return (outcome.shape.bytes - before.bytes) / before.bytes if outcome.shape else 0.0


def _as_json(row: Row) -> dict[str, Any]:
    entry, before, outcomes = row
    after = {tool: outcome.to_dict() for tool, outcome in outcomes.items()}
    fails = verdict(row)
    return {"id": entry.id, "kind": entry.kind, "before": asdict(before), "after": after, "fails": fails}


def _print(rows: list[Row], tools: list[str], failed: list[tuple[str, str]]) -> None:
    console = wide_console()
    console.print(_node_table(rows, tools))
    if "graphopt" in tools:
        console.print(_graphopt_table(rows))
    for name, why in failed:
        console.print(f"[red]graphopt fails on {name}[/]: {why}", highlight=False)
    for tool in tools:
        console.print(_summary(tool, rows), highlight=False)


def _node_table(rows: list[Row], tools: list[str]) -> Table:
    table = Table(title="Nodes (Constant nodes, which are weights, are not counted)")
    table.add_column("model", no_wrap=True)
    for column in ("before", *tools):
        table.add_column(column, justify="right")
    for entry, before, outcomes in rows:
        cells = [_node_cell(outcomes[tool]) if tool in outcomes else "-" for tool in tools]
        table.add_row(entry.id, str(before.nodes), *cells)
    return table


def _node_cell(outcome: Outcome) -> str:
    if outcome.failure:
        return f"[red]{_short(outcome.failure)}[/]"
    return str(outcome.shape.nodes) if outcome.shape else ""


def _graphopt_table(rows: list[Row]) -> Table:
    table = Table(title=f"graphopt: {PASSES}")
    table.add_column("model", no_wrap=True)
    for column in ("batch norms", "size", "worst error", "applied", "undone", "with evidence", "seconds"):
        table.add_column(column, justify="right")
    for row in rows:
        entry, before, outcomes = row
        outcome = outcomes["graphopt"]
        if outcome.shape is None or outcome.error is None or outcome.coverage is None:
            table.add_row(entry.id, f"[red]{_short(outcome.failure)}[/]")
            continue
        table.add_row(
            entry.id,
            f"{before.batch_norms} -> {outcome.shape.batch_norms}",
            f"{growth(before, outcome):+.1%}",
            f"{outcome.error:.1e}",
            str(outcome.applied),
            str(outcome.undone),
            f"{outcome.coverage:.0%}",
            f"{outcome.seconds:.2f}",
        )
    return table


def _short(text: str, width: int = 40) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _summary(tool: str, rows: list[Row]) -> str:
    outcomes = [(before, found[tool]) for _, before, found in rows if tool in found]
    good = [(before, o.shape) for before, o in outcomes if not o.failure and o.shape]
    nodes = f"{sum(b.nodes for b, _ in good)} -> {sum(s.nodes for _, s in good)} nodes in them"
    seconds = sum(o.seconds or 0.0 for _, o in outcomes)
    return f"{tool:14} {len(good)} of {len(outcomes)} models right, {nodes}, {seconds:.1f} s in all"


if __name__ == "__main__":
    typer.run(main)
