"""The text of a compiled HLO module, as far as a report needs it: which instructions run, and how arrays lie in memory.

A layout says in which order dimensions lie, and in which tiles: f32[2,9]{1,0:T(8,128)} lies in tiles of 8 by 128, so
that it takes the memory of 8 by 128 numbers. Further tiles divide the first one: T(8,128)(2,1) puts pairs of rows of
16 bits into words. Source: https://openxla.org/xla/tiled_layout and https://openxla.org/xla/shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILES = re.compile(r"T((?:\([\d,*]*\))+)")
_SPACE = re.compile(r"S\((\d+)\)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r" ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:body|condition|to_apply|true_computation|false_computation|branch_computations)="
                     r"(\{[^}]*\}|%?[\w.\-]+)")  # fmt: skip
_NO_BYTES = ("token", "opaque")
_ALIASES = frozenset({"tuple", "get-tuple-element", "bitcast", "parameter", "while", "conditional", "call",
                      "optimization-barrier", "after-all", "partition-id", "replica-id"})  # fmt: skip
"""Instructions whose results are memory of others, or none."""


@dataclass(frozen=True)
class Buffer:
    """An array as it lies in memory."""

    dtype: str
    """As in HLO: "f32", "bf16", "pred"."""
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    """Dimensions from the one that varies fastest on."""
    tiles: tuple[tuple[str, ...], ...] = ()
    """The numbers of each tile as they are written, the fastest dimension last; "*" joins a dimension with the next."""
    space: int = 0
    """Memory space: 0 is the device's main memory, 1 on the chip, 5 the host's."""

    @property
    def bits(self) -> int:
        """Of one element."""
        if self.dtype in _NO_BYTES:
            return 0
        digits = re.search(r"\d+", self.dtype)
        return 8 if digits is None else int(digits[0])

    @property
    def logical_bytes(self) -> int:
        """Without padding."""
        return -(-math.prod(self.sizes) * self.bits // 8)

    @property
    def padded_bytes(self) -> int:
        """As it lies in memory, whole tiles."""
        sizes = [self.sizes[d] for d in reversed(self.order)]
        for tile in self.tiles:
            sizes = _tiled(sizes, tile)
        return -(-math.prod(sizes) * self.bits // 8)

    @property
    def layout(self) -> str:
        """The tiles as text, as in "T(8,128)(2,1)"; "linear" without any."""
        return "T" + "".join(f"({','.join(t)})" for t in self.tiles) if self.tiles else "linear"

    def __str__(self) -> str:
        order = ",".join(map(str, self.order))
        return f"{self.dtype}[{','.join(map(str, self.sizes))}]{{{order}:{self.layout}}}"


def _tiled(sizes: Sequence[int], tile: Sequence[str]) -> list[int]:
    """The sizes of what lies in tiles: tiles in each dimension, then the numbers of the tile."""
    sizes = [1] * (len(tile) - len(sizes)) + list(sizes)
    lead, covered = sizes[: len(sizes) - len(tile)], sizes[len(sizes) - len(tile) :]
    counts, numbers, joined = [], [], 1
    for size, text in zip(covered, tile, strict=True):
        joined *= size
        if text != "*":
            number = int(text)
            counts.append(-(-joined // number))
            numbers.append(number)
            joined = 1
    return [*lead, *counts, *numbers]


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    results: tuple[Buffer, ...]
    text: str
    """All of the line after the name."""

    @property
    def allocates(self) -> bool:
        """Whether its results are memory of their own. What is started has them once it is done."""
        return self.opcode not in _ALIASES and not self.opcode.endswith("-start")


@dataclass(frozen=True)
class Hlo:
    """A compiled module."""

    entry: str
    computations: dict[str, list[Instruction]]

    @property
    def arguments(self) -> list[Buffer]:
        """What the module is given, in no particular order."""
        return [b for i in self.computations[self.entry] if i.opcode == "parameter" for b in i.results]

    def scheduled(self) -> Iterator[Instruction]:
        """The instructions that run one after the other: those of the entry and of bodies of loops and branches, not
        those inside of fusions, whose results lie nowhere."""
        pending, seen = [self.entry], {self.entry}
        while pending:
            for instruction in self.computations[pending.pop()]:
                yield instruction
                if instruction.opcode not in ("while", "conditional", "call"):
                    continue
                for name in _called(instruction.text):
                    if name in self.computations and name not in seen:
                        seen.add(name)
                        pending.append(name)

    def buffers(self) -> list[Buffer]:
        """The arguments and what the scheduled instructions write, each once."""
        written = [b for i in self.scheduled() if i.allocates for b in i.results]
        return self.arguments + written


def _called(text: str) -> Iterator[str]:
    for found in _CALLED.finditer(text):
        yield from (name.strip(" %{}") for name in found[1].split(","))


def parse(text: str) -> Hlo:
    """The module that `text` says, as XLA's HloModule::ToString writes it.

    Raises:
        ValueError: it has no entry computation.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header is not None:
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            instruction = _instruction(line)
            if instruction is not None:
                current.append(instruction)
    if entry is None:
        raise ValueError("the text is no HLO module: it has no ENTRY computation")
    return Hlo(entry, computations)


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    opcode = _OPCODE.search(found[2]) if found is not None else None
    if found is None or opcode is None:
        return None
    return Instruction(found[1], opcode[1], tuple(arrays(found[2][: opcode.start()])), found[2])


def arrays(text: str) -> Iterator[Buffer]:
    """The arrays of a type, which may be a tuple."""
    for found in _ARRAY.finditer(text):
        if found[1] in _NO_BYTES:
            continue
        sizes = tuple(int(s) for s in found[2].split(",") if s)
        order = tuple(int(s) for s in (found[3] or "").split(",") if s) or tuple(reversed(range(len(sizes))))
        tiles = _TILES.search(found[4] or "")
        space = _SPACE.search(found[4] or "")
        yield Buffer(
            found[1],
            sizes,
            order,
            tuple(tuple(t.split(",")) for t in re.findall(r"\(([^)]*)\)", tiles[1])) if tiles else (),
            int(space[1]) if space else 0,
        )
