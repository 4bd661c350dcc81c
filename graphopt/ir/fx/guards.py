"""The conditions on open sizes that torch.export took for granted, as texts of Python: `L['x'].size()[0] % 3 != 0`.

torch keeps them in an attribute without a public name, from 2.9 on. What it makes of a program has them only as long as
the sizes remember where they came from, which those of a program that was read from a file do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_ATTRIBUTE = "_guards_code"


def guards_of(program: ExportedProgram) -> list[str]:
    return list(getattr(program, _ATTRIBUTE, ()))


def add_guards(program: ExportedProgram, texts: list[str]) -> None:
    setattr(program, _ATTRIBUTE, list(dict.fromkeys([*guards_of(program), *texts])))


def keep_guards(program: ExportedProgram, source: ExportedProgram) -> ExportedProgram:
    """`program`, which was made of `source`, with the conditions of `source`."""
    if guards := guards_of(source):
        setattr(program, _ATTRIBUTE, guards)
    return program
