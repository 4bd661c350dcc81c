"""The fenced blocks of the guides, and how each kind of them is run.

* ```python blocks of one file are one module, run block by block; a ```text block that follows one is what it
  prints;
* in ```console blocks, lines that start with "$ graphopt" are run; the lines below a command are what it
  prints;
* printed numbers with a decimal point or an exponent are measurements and may differ; "..." stands for anything.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from graphopt.tools.main import app

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_MEASURED = re.compile(r"-?\b\d+(\.\d+(e[-+]?\d+)?|e[-+]?\d+)\b")
_BLANKS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    line: int
    """Number of its first line in the document."""
    text: str


@dataclass(frozen=True)
class Command:
    """A command line of a console block and what it is shown to print."""

    line: str
    output: str


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of `document`, in order."""
    content = document.read_text(encoding="utf-8")
    return [
        Block(found[1], content.count("\n", 0, found.start(2)) + 1, found[2]) for found in _FENCE.finditer(content)
    ]


def run_python(document: Path, folder: Path) -> Iterator[tuple[Block, str, str | None]]:
    """Run the python blocks of `document`; yields each with what it printed and what it is shown to print.

    The code stands in a file in `folder`, on the lines that it has in the document.
    """
    found = blocks(document)
    file = folder / "example.py"
    file.write_text(_module_text([b for b in found if b.language == "python"]), encoding="utf-8")
    module = types.ModuleType("example")
    sys.modules["example"] = module
    try:
        for position, block in enumerate(found):
            if block.language == "python":
                code = compile("\n" * (block.line - 1) + block.text, str(file), "exec")
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(code, module.__dict__)
                following = [b.text for b in found[position + 1 : position + 2] if b.language == "text"]
                yield block, printed.getvalue(), following[0] if following else None
    finally:
        del sys.modules["example"]


def _module_text(python: list[Block]) -> str:
    lines: list[str] = []
    for block in python:
        lines += [""] * (block.line - 1 - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n"


def commands(document: Path) -> Iterator[Command]:
    """The command lines of the console blocks of `document`."""
    for block in blocks(document):
        if block.language == "console":
            text = block.text.replace("\\\n", " ")
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                line, _, output = part.partition("\n")
                yield Command(line, output)


def run_command(line: str) -> tuple[int, str]:
    """Exit code and standard output of a `graphopt` command line."""
    program, *arguments = shlex.split(line)
    assert program == "graphopt", f"only graphopt is shown in console blocks: {line}"
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout


def is_as_shown(shown: str, printed: str) -> bool:
    """Whether `printed` is what a document shows, blanks and measurements aside."""
    return doctest.OutputChecker().check_output(_comparable(shown), _comparable(printed), _BLANKS)


def _comparable(text: str) -> str:
    return _MEASURED.sub("#", text).strip() + "\n"
