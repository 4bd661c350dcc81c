"""Which bodies the rows of a sampling program call."""

from __future__ import annotations

from graphopt.program.body import Body
from graphopt.program.program import Program


def called_bodies(program: Program) -> dict[str, Body]:
    """The bodies that rows call, by name."""
    return {name: body for name, body in program.bodies.items() if name in program.calls}


def calling_rows(program: Program, name: str) -> list[int]:
    """The rows that call a body."""
    return [row for row, called in enumerate(program.calls) if called == name]
