"""Proof of what other tools did: models simplified by onnxsim and onnxscript, proved by graphopt and by onnxsim.

    python -m benchmarks.prove [--every N] [--tool TOOL ...] [--json FILE] [--pairs FOLDER]

The models are those of the ONNX backend tests (see `corpus_cases`) and the whole networks that onnx ships. Pairs are
those in which a tool changed what the graph is made of. Both provers judge the same pairs in the same run, each in a
process that is ended if a pair takes too long. A pair whose outputs follow from constants alone is counted apart:
graphopt compares such outputs as the runtime computes them and does not call that a proof. The pairs that are in FOLDER
already, from a run before, are taken as they are. Exit code 1 if less than
95 % are proved or compared so, or if a pair takes over 10 s.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from benchmarks.console import wide_console
from benchmarks.prove_worker import PROVERS, Told

TOOLS = ("onnxsim", "onnxscript")
LIMITS = {"make": 60.0, "graphopt": 10.0, "onnxsim-certify": 60.0}
"""Seconds for one item."""
STARTING = 60.0
"""Seconds in which a process starts and comes to its first item."""
SHARE, WORST = 0.95, 10.0
OWN_VALUES = "executed"


def main(
    every: Annotated[int, typer.Option(min=1, help="Take every so many of about 5,300 models.")] = 1,
    tool: Annotated[list[str] | None, typer.Option(help="Only what these tools made.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every verdict there.")] = None,
    pairs: Annotated[Path | None, typer.Option(help="Keep the pairs there, and take those that are there.")] = None,
) -> None:
    """Prove what other tools did to the models of the ONNX backend tests."""
    console = wide_console()
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: _of_tool(name, every, (pairs or Path(scratch)) / f"{name}-{every}") for name in tool or TOOLS}
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    console.print(_table(found))
    missed = list(judge(found))
    for line in missed:
        console.print(f"[red]missed[/] {line}", highlight=False)
    if missed:
        raise typer.Exit(1)


def _of_tool(tool: str, every: int, folder: Path) -> dict[str, list[Told]]:
    """The verdicts of each prover on the pairs that `tool` made; they are made if `folder` is not there."""
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}-unfinished")
        unfinished.mkdir(parents=True, exist_ok=True)
        for _ in _items("make", str(unfinished), tool, every):
            pass
        unfinished.rename(folder)
    count = len(list(folder.glob("*.pair")))
    return {prover: list(_items(prover, str(folder), "-", every, count)) for prover in PROVERS}


def _items(what: str, folder: str, tool: str, every: int, count: int | None = None) -> Iterator[Told]:
    """What a worker says of each item; one that dies or hangs is started again behind the item at fault."""
    done = 0
    while count is None or done < count:
        status = "crash"
        ended = True
        for told in _lines([what, folder, tool, str(every), str(done)], LIMITS[what]):
            if told is None:
                status = "timeout"
                break
            ended = told.get("end", False)
            if ended:
                break
            yield told
            done += 1
        if count is None and ended and status != "timeout":
            return
        if count is None or done < count:
            seconds = LIMITS[what] if status == "timeout" else 0.0
            yield {"case": "", "status": status, "detail": f"over {LIMITS[what]:g} s", "seconds": seconds}
            done += 1


def _lines(arguments: Sequence[str], limit: float) -> Iterator[Told | None]:
    """The lines of one process, None if it takes longer than `limit` for one, {"end": True} if it ended well."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.prove_worker", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    try:
        first = True
        while True:
            timer = threading.Timer(limit + (STARTING if first and arguments[0] == "make" else 5.0), stop)
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            first = False
            if late.is_set():
                yield None
                return
            if not line:
                yield {"end": process.wait() == 0}
                return
            yield json.loads(line)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def judge(found: dict[str, dict[str, list[Told]]]) -> Iterator[str]:
    """What the aims miss."""
    for tool, provers in found.items():
        told = provers["graphopt"]
        share = sum(_proved(t) or t["status"] == OWN_VALUES for t in told) / max(len(told), 1)
        if share < SHARE:
            yield f"{tool}: {share:.1%} proved or compared, aimed at {SHARE:.0%}"
        if told and (worst := max(t["seconds"] for t in told)) >= WORST:
            yield f"{tool}: the worst pair took {worst:.1f} s, aimed at {WORST:g} s"


def _proved(told: Told) -> bool:
    return str(told["status"]).startswith("pro")


def _table(found: dict[str, dict[str, list[Told]]]) -> Table:
    table = Table(title="Pairs of models: before and after another tool")
    for column in ("pairs of", "prover"):
        table.add_column(column, no_wrap=True)
    columns = (
        "pairs", "proved", "by lifted numbers", "integers drawn", "values compared", "not", "share",
        "others", "proved", "share", "median ms", "p95 ms", "worst s",
    )  # fmt: skip
    for column in columns:
        table.add_column(column, justify="right")
    for tool, provers in found.items():
        ours = [t["status"] == OWN_VALUES or t.get("constant", False) for t in provers["graphopt"]]
        for prover, told in provers.items():
            table.add_row(tool, prover, *_row(told, ours))
    return table


def _row(told: Sequence[Told], constant: Sequence[bool]) -> list[str]:
    """`constant` says of which pairs the outputs follow from constants; the second share is of the others."""
    count = Counter(str(t["status"]) for t in told)
    proved = sum(_proved(t) for t in told)
    settled = proved + count[OWN_VALUES]
    others = [t for t, fixed in zip(told, constant, strict=True) if not fixed]
    of_others = sum(_proved(t) for t in others)
    seconds: Any = np.asarray([t["seconds"] for t in told] or [0.0])
    return [
        str(len(told)),
        str(proved),
        str(sum(n for s, n in count.items() if s.startswith("proof~const"))),
        str(sum(n for s, n in count.items() if "integers drawn" in s)),
        str(count[OWN_VALUES]),
        str(len(told) - settled),
        f"{settled / max(len(told), 1):.1%}",
        str(len(others)),
        str(of_others),
        f"{of_others / max(len(others), 1):.1%}",
        f"{1e3 * np.median(seconds):.1f}",
        f"{1e3 * np.quantile(seconds, 0.95):.0f}",
        f"{seconds.max():.1f}",
    ]


if __name__ == "__main__":
    typer.run(main)
