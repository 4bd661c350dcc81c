"""How much of what is done to real models is proved, and what the proofs of ResNet-50 cost.

    python -m benchmarks.prove_zoo [ID ...] [--dest FOLDER]

Every model of the manifest is optimised by the default pipeline with proofs on; the table has, for each rule, how many
of its applications have which level of proof. Then the batch norms of ResNet-50, as transformers has it, are
folded. Exit code 1 if less than 90 % are proved or right by construction, or anything is kept without evidence.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

import graphopt
from benchmarks.console import wide_console
from benchmarks.measure import torch_model
from graphopt.pipeline.report import Application, Report
from graphopt.tools.fetch import DEFAULT_FOLDER, fetch, select
from graphopt.tools.manifest import Entry, zoo

LEAST = 0.9


def main(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of models; all if none is given.")] = None,
    dest: Annotated[Path, typer.Option(help="Folder of the models.")] = DEFAULT_FOLDER,
) -> None:
    """Prove what the default pipeline does to real models."""
    entries = select(ids or (), zoo())
    paths = fetch([entry.id for entry in entries], dest)
    kept: list[Application] = []
    with Progress(transient=True) as progress:
        for entry in progress.track(entries, description="models"):
            kept += _optimised(entry, paths[entry.id]).kept
    console = wide_console()
    console.print(_table(kept))
    share = sum(level_of(a) not in ("undecided", "none") for a in kept) / max(len(kept), 1)
    console.print(f"{len(entries)} models, {len(kept)} applications kept, {share:.1%} proved or right by construction")
    console.print(f"{seconds(kept):.1f} s of proofs")
    console.print(resnet())
    if share < LEAST or not all(a.evidence.counts for a in kept):
        raise typer.Exit(1)


def _optimised(entry: Entry, path: Path) -> Report:
    """What was done to one model."""
    if entry.kind != "torch":
        return graphopt.optimize(str(path), prove=True).report
    module, _, traced = torch_model(entry, path)
    return graphopt.optimize(module, prove=True, **traced).report


def level_of(application: Application) -> str:
    """The level of proof and what weights it speaks of; "construction", or "none" if no proof was tried."""
    evidence = application.evidence
    if evidence.proof is None:
        return "construction" if evidence.kind == "construction" else "none"
    return f"{evidence.proof.level}, {evidence.proof.weights} weights" if evidence.proof.holds else "undecided"


def seconds(kept: list[Application]) -> float:
    return sum(a.evidence.proof.milliseconds for a in kept if a.evidence.proof is not None) / 1e3


def resnet() -> str:
    """What the proofs of the 53 batch norms of ResNet-50 cost beside the executed checks."""
    import torch
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    inputs = (torch.rand(1, 3, 224, 224),)
    times, reports = [], list[Report]()
    for prove in (False, True):
        model = ResNetModel(ResNetConfig()).eval()
        started = time.perf_counter()
        reports.append(graphopt.optimize(model, "fuse-conv-bn", example_inputs=inputs, prove=prove).report)
        times.append(time.perf_counter() - started)
    proofs = [a.evidence.proof for a in reports[1].kept if a.evidence.proof is not None]
    held = sum(p.holds and p.weights == "all" for p in proofs)
    made = sum(p.milliseconds > 0 for p in proofs)
    return (
        f"ResNet-50: {held} of {len(reports[1].kept)} proved for all weights by {made} proofs, "
        f"{seconds(reports[1].kept):.2f} s in the field; {times[0]:.1f} s without proofs, {times[1]:.1f} s with them"
    )


def _table(kept: list[Application]) -> Table:
    counts = Counter((a.rule, level_of(a)) for a in kept)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("rule", "proof"):
        table.add_column(name)
    table.add_column("applications", justify="right")
    for (rule, level), count in sorted(counts.items()):
        table.add_row(Text(rule), Text(level), str(count))
    return table


if __name__ == "__main__":
    typer.run(main)
