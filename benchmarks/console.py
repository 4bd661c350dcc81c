"""The console that the benchmarks print to."""

from __future__ import annotations

from rich.console import Console


def wide_console() -> Console:
    """Standard output, 150 columns wide where it is no terminal, so that tables in a log are whole."""
    console = Console()
    return console if console.is_terminal else Console(width=150)
