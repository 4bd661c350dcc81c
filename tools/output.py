"""How subcommands write: results to standard output, everything else to standard error, JSON with sorted
keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, RenderableType

from graphopt.errors import GraphoptError

WIDTH = 120
"""Columns of tables that go to a file or a pipe."""
NARROW = 80
"""Columns of a terminal below which tables do not fit."""


class OutputError(GraphoptError):
    """The result cannot be written where it was asked for."""


def print_json(data: Any) -> None:
    """`data` to standard output as JSON with sorted keys; it holds no NaN and no infinity."""
    typer.echo(json.dumps(data, indent=2, sort_keys=True, allow_nan=False))


def print_result(renderable: RenderableType) -> None:
    """A table of rich to standard output, `WIDTH` columns wide where there is no terminal, or one so narrow that rich
    would cut numbers off or leave columns out; it breaks the lines itself. Cells with names or paths must be
    `rich.text.Text`: rich reads markup in plain ones."""
    console = Console(highlight=False)
    if not console.is_terminal or console.width < NARROW:
        console = Console(highlight=False, width=WIDTH)
    console.print(renderable)


def print_note(text: str) -> None:
    """A line for people to standard error."""
    typer.echo(text, err=True)


def require_writable(output: Path, *inputs: Path | None) -> None:
    """Raises OutputError if `output` would overwrite one of the files `inputs` or weights of theirs, ModelError if no
    file can be written there."""
    from graphopt.ir.model import check_folder
    from graphopt.ir.onnx.save import data_files_at

    check_folder(output)
    given = [path for path in inputs if path is not None and path.exists()]
    if output.exists() and any(output.samefile(path) for path in given):
        raise OutputError(f"{output} is an input, which is never overwritten; choose another name for the output")
    replaced = [p for p in (output, output.with_name(f"{output.name}.data")) if p.exists()]
    for data in (data for path in given for data in sorted(data_files_at(path))) if replaced else ():
        if any(data.exists() and data.samefile(path) for path in replaced):
            raise OutputError(f"{data} holds weights of an input, which is never overwritten; choose another name")
