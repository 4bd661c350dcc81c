"""How the rewriting engine grows with the graph, beside other engines in the same process.

    python -m benchmarks.engine [--size N ...] [--rounds N] [--json FILE]

Times are processor time of this process per node, best of the rounds, which run in turn; building the graph
is not counted and nothing is verified. Exit code 1 if graphopt misses what it promises: four times the nodes
take at most five times the time, 20 us a node with 50 rules, and twice the speed of the engine that works on
the same storage with the same rules, be it one or 50.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from benchmarks.console import wide_console
from benchmarks.interleave import Timing, interleave, paired_ratio
from benchmarks.rewriters import REWRITERS, Shape, chain, wide

SIZES = (1_000, 4_000, 16_000, 64_000, 100_000)
RIVALS = {
    ours + rules: rival + rules
    for ours, rival in (("graphopt fx", "Inductor PatternMatcherPass"), ("graphopt onnx", "onnxscript rewriter"))
    for rules in ("", ", 50 rules")
}
MAX_MICROSECONDS = 20.0
MAX_GROWTH = 5.0 / 4.0
"""By how much the time per node may rise when the graph becomes four times as large."""
MIN_SPEED_UP = 2.0

Timings = Mapping[int, Mapping[str, Timing]]


def main(
    size: Annotated[list[int] | None, typer.Option(help="Nodes of the graphs.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed runs of each engine on each graph.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every sample there.")] = None,
) -> None:
    """Time graphopt's driver and other rewriting engines on chains and wide graphs."""
    console, sizes = wide_console(), sorted(size or SIZES)
    measured: dict[str, Timings] = {}
    for shape in (chain, wide):
        check_hits(shape)
        measured[shape.__name__] = timings = {nodes: _measure(shape, nodes, rounds) for nodes in sizes}
        console.print(_table(shape.__name__, timings))
    if json_file is not None:
        json_file.write_text(json.dumps(_as_json(measured), indent=2), encoding="utf-8")
    missed = [line for name, timings in measured.items() for line in judge(name, timings)]
    for line in missed:
        console.print(f"[red]missed[/] {line}", highlight=False)
    if missed:
        raise typer.Exit(1)
    console.print("All promises kept: growth, microseconds a node, speed beside the other engines.")


def check_hits(shape: Shape, nodes: int = 1_000) -> None:
    """Fail unless every engine makes the same number of rewrites."""
    for name, rewriter in REWRITERS.items():
        if shape not in rewriter.shapes:
            continue
        hits = rewriter.hits(rewriter.prepare(shape, nodes)())
        if hits != nodes // 4:
            raise SystemExit(f"{name} made {hits} rewrites of {nodes // 4} on the {shape.__name__} graph")


def _measure(shape: Shape, nodes: int, rounds: int) -> dict[str, Timing]:
    candidates = {
        name: lambda rewriter=rewriter: rewriter.prepare(shape, nodes)
        for name, rewriter in REWRITERS.items()
        if shape in rewriter.shapes and nodes <= rewriter.most
    }
    return interleave(candidates, rounds=rounds, warm_up=1, clock=time.process_time)


def judge(shape: str, timings: Timings) -> Iterator[str]:
    """What graphopt does not keep of its promises, in a sentence each."""
    for small, large in pairwise(timings):
        for name in (n for n in timings[large] if n.startswith("graphopt")):
            rise = _per_node(timings, large, name) / _per_node(timings, small, name)
            if rise > MAX_GROWTH:
                yield f"{shape}, {name}: {rise:.2f} times the time per node at {large} as at {small} nodes"
    for nodes, row in timings.items():
        for name in (n for n in row if n.startswith("graphopt") and n.endswith("50 rules")):
            if (spent := _per_node(timings, nodes, name)) > MAX_MICROSECONDS:
                yield f"{shape}, {name}: {spent:.1f} us a node at {nodes} nodes"
        for name, rival in RIVALS.items():
            if rival in row and (ratio := paired_ratio(row[rival], row[name])).median < MIN_SPEED_UP:
                yield f"{shape}, {nodes} nodes: {rival} takes only {ratio} times as long as {name}"


def _per_node(timings: Timings, nodes: int, name: str) -> float:
    """Microseconds."""
    return 1e6 * timings[nodes][name].best / nodes


def _table(shape: str, timings: Timings) -> Table:
    table = Table(title=f"{shape}: us a node, and times as long as graphopt with the same rules on the same storage")
    table.add_column("engine", no_wrap=True)
    for nodes in timings:
        table.add_column(f"{nodes:,}", justify="right")
    ours = {rival: name for name, rival in RIVALS.items()} | {
        "torch.fx replace_pattern": "graphopt fx",
        "edits alone, torch.fx": "graphopt fx",
        "edits alone, onnx_ir": "graphopt onnx",
        "tinygrad graph_rewrite": "graphopt fx",
    }
    for name in next(iter(timings.values())):
        cells = []
        for nodes, row in timings.items():
            text = f"{_per_node(timings, nodes, name):.1f}" if name in row else "-"
            if name in row and name in ours:
                text += f" ({paired_ratio(row[name], row[ours[name]]).median:.1f}x)"
            cells.append(text)
        table.add_row(name, *cells)
    return table


def _as_json(measured: Mapping[str, Timings]) -> dict[str, Any]:
    return {
        shape: {nodes: {name: t.samples for name, t in row.items()} for nodes, row in timings.items()}
        for shape, timings in measured.items()
    }


if __name__ == "__main__":
    typer.run(main)
