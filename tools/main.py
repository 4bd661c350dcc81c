"""The command `graphopt`: one subcommand per file, errors as one line, exit codes for scripts.

Exit codes: 0 done, 1 graphopt refused or failed (the reason is on standard error), 2 wrong usage.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from graphopt.errors import GraphoptError
from graphopt.tools.bench import bench
from graphopt.tools.compile_command import compile_command
from graphopt.tools.dump import dump
from graphopt.tools.experts import experts
from graphopt.tools.explain import explain
from graphopt.tools.fetch_command import fetch_command
from graphopt.tools.output import print_note
from graphopt.tools.passes_command import passes_command
from graphopt.tools.prove_rule_command import prove_rule_command
from graphopt.tools.run import run
from graphopt.tools.verify_command import verify_command

app = typer.Typer(
    name="graphopt",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(run)
app.command("passes")(passes_command)
app.command("prove-rule")(prove_rule_command)
app.command("dump")(dump)
app.command("explain")(explain)
app.command("experts")(experts)
app.command("bench")(bench)
app.command("compile")(compile_command)
app.command("fetch")(fetch_command)
app.command("verify")(verify_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"graphopt {version('graphopt')}")
        raise typer.Exit


@app.callback()
def graphopt(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """A compiler for inference graphs whose every rewrite is verified.

    Results go to standard output, everything else to standard error; every command has --json. Exit codes: 0
    done, 1 refused or failed, 2 wrong usage.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits the process.

    Args:
        arguments: what follows the program's name; None takes the process's own.
    """
    _escape_what_streams_cannot_encode()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="graphopt")
    except (GraphoptError, OSError) as error:
        print_note(f"error: {error}")
        sys.exit(1)


def _escape_what_streams_cannot_encode() -> None:
    """Names of nodes and files hold any character, and standard output has the encoding of the locale: a result with a
    few escapes is better than none."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
