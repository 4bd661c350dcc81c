"""The ONNX backend tests, optimised and checked: what graphopt gets wrong, and what other tools do.

    python -m benchmarks.corpus [--tool TOOL ...] [--peers] [--json FILE]

About 5,300 small models (see `corpus_cases`). Each is optimised in a process of the tool's own, so that a crash
costs one case. A case is right if the checker still accepts the model, nothing of its interface or metadata is
lost, the file grows by no more than 1 % and 200 bytes, and onnxruntime, its optimisations off on both sides, gives
outputs of the same types, integers equal and floats within 1e-3 relative and 1e-4 absolute. What onnxruntime cannot
run at all is only checked for its structure. Exit code 1 if graphopt fails a case.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from benchmarks.console import wide_console
from benchmarks.corpus_cases import corpus
from benchmarks.corpus_worker import TOOLS, Verdict

FAILURES = ("wrong", "invalid", "unloadable", "exception", "crash", "timeout", "larger", "lost")
SERIOUS = FAILURES[:-2]
"""What nobody can call a matter of taste."""
WORKERS = 2


def main(
    tool: Annotated[list[str] | None, typer.Option(help="Only these tools.")] = None,
    peers: Annotated[bool, typer.Option(help="Run the other tools too.")] = False,
    limit: Annotated[float, typer.Option(help="Seconds that a tool may take for one model.")] = 60.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every verdict there.")] = None,
) -> None:
    """Optimise every model of the ONNX backend tests and check the results."""
    tools = tool or (list(TOOLS) if peers else ["graphopt"])
    names = [case.name for case in corpus()]
    found = {name: run_tool(name, names, limit) for name in tools}
    if json_file is not None:
        told = {name: [asdict(v) for v in verdicts] for name, verdicts in found.items()}
        json_file.write_text(json.dumps(told, indent=1), encoding="utf-8")
    console = wide_console()
    console.print(_table(found))
    failed = [v for v in found.get("graphopt", []) if v.status in FAILURES]
    for verdict in failed:
        console.print(f"[red]{verdict.status}[/] {verdict.case}: {verdict.detail}", highlight=False)
    if failed:
        raise typer.Exit(1)


def run_tool(tool: str, names: list[str], limit: float) -> list[Verdict]:
    """The verdicts on all cases, in their order; two processes at a time, each taking every other case."""
    with ThreadPoolExecutor(WORKERS) as pool:
        shares = [pool.submit(_share, tool, names, first, limit) for first in range(WORKERS)]
        position = {name: i for i, name in enumerate(names)}
        return sorted((v for s in shares for v in s.result()), key=lambda v: position[v.case])


def _share(tool: str, names: list[str], first: int, limit: float) -> list[Verdict]:
    """Every `WORKERS`-th case from `first` on; a process that dies is started again behind the case at fault."""
    verdicts: list[Verdict] = []
    position = first
    while position < len(names):
        status, detail = "crash", "the process ended"
        for verdict in _lines(tool, position, limit):
            if verdict is None:
                status, detail = "timeout", f"over {limit:g} s"
                break
            verdicts.append(verdict)
            position += WORKERS
        if position < len(names):
            verdicts.append(Verdict(names[position], status, detail))
            position += WORKERS
    return verdicts


def _lines(tool: str, first: int, limit: float) -> Iterator[Verdict | None]:
    """The verdicts of one process, None if it takes longer than `limit` for one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.corpus_worker", tool, str(first), str(WORKERS)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        process.kill()

    try:
        while True:
            timer = threading.Timer(limit, stop)
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            if late.is_set():
                yield None
                return
            if not line:
                return
            yield Verdict(**json.loads(line))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _table(found: dict[str, list[Verdict]]) -> Table:
    table = Table(title="ONNX backend tests, as they are and with inputs made constant")
    table.add_column("tool", no_wrap=True)
    columns = ("right", "not run", *FAILURES, "bad per 1000", "nodes before", "after", "seconds")
    for column in columns:
        table.add_column(column, justify="right")
    for tool, verdicts in found.items():
        count = Counter(v.status for v in verdicts)
        bad = sum(count[s] for s in SERIOUS)
        good = [v for v in verdicts if v.status in ("ok", "larger", "lost")]
        table.add_row(
            tool,
            str(count["ok"]),
            str(count["not run"]),
            *(str(count[s]) for s in FAILURES),
            f"{1000 * bad / max(len(verdicts), 1):.1f}",
            str(sum(v.before for v in good)),
            str(sum(v.after for v in good)),
            f"{sum(v.seconds for v in verdicts):.0f}",
        )
    return table


if __name__ == "__main__":
    typer.run(main)
