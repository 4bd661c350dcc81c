"""How subcommands write: results to standard output, everything else to standard error, JSON with sorted
keys."""

from __future__ import annotations

import json
from typing import Any

import typer
from rich.console import Console, RenderableType

WIDTH = 120
"""Columns of tables that go to a file or a pipe."""


def print_json(data: Any) -> None:
    """`data` to standard output as JSON with sorted keys; it holds no NaN and no infinity."""
    typer.echo(json.dumps(data, indent=2, sort_keys=True, allow_nan=False))


def print_result(renderable: RenderableType) -> None:
    """A table of rich to standard output, `WIDTH` columns wide where there is no terminal. Cells with names
    or paths must be `rich.text.Text`: rich reads markup in plain ones."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(renderable)


def print_note(text: str) -> None:
    """A line for people to standard error."""
    typer.echo(text, err=True)
