"""A program as text: what it takes, its rows, and which graph runs when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeVar

from graphopt.ir.text import model_text
from graphopt.pipeline.pipeline import size_of
from graphopt.pipeline.report_table import scaled
from graphopt.program.body import Body, Unit
from graphopt.program.program import Program
from graphopt.program.runner import scales_of

_T = TypeVar("_T")
_WHEN = {"prologue": "once a request", "table": "once a row, before the loop", "step": "in every row"}
_BATCHED = "in one call for all rows, before the loop"


def dump_program(program: Program, *, graphs: bool = False) -> str:
    """Inputs, guidance, rows and units; with `graphs` every graph as well, one line a node."""
    return "\n".join(_lines(program, graphs)) + "\n"


def _lines(program: Program, graphs: bool) -> Iterator[str]:
    yield f"program {program.name} ({program.storage}), {len(program.schedule)} rows"
    yield from _inputs(program)
    yield f"guidance: {_guidance(program)}"
    yield "calls: " + ", ".join(_call(program, name, numbers) for name, numbers in _runs(program.calls))
    for body_name, body in program.bodies.items():
        for name, unit in body.units():
            when = _BATCHED if name == "table" and body.batched else _WHEN[name]
            yield f"{body_name}/{name}, {when}: {_describe(unit, name, body)}"
    yield program.schedule.table()
    if graphs:
        for body_name, body in program.bodies.items():
            for name, unit in body.units():
                yield f"{body_name}/{name}"
                yield model_text(unit.model)


def _inputs(program: Program) -> Iterator[str]:
    interface = program.interface
    yield f"input noise : {interface.sample}"
    for condition in interface.conditions:
        both = " and its negative" if program.guidance is not None and condition.branched else ""
        yield f"input {condition.name}{both} : {condition.type}"


def _guidance(program: Program) -> str:
    guidance = program.guidance
    if guidance is None:
        return "none"
    how = "one call on twice the batch" if program.interface.doubled else "two calls"
    rescaled = f", rescaled by {guidance.rescale:g}" if guidance.rescale else ""
    scales = [(f"{s:g}", n) for s, n in _runs(scales_of(program, None))]
    scale = scales[0][0] if not guidance.varies else ", ".join(f"{s} in {_rows(n)}" for s, n in scales)
    return f"classifier-free, scale {scale}, {how}{rescaled}"


def _call(program: Program, name: str, rows: tuple[int, int]) -> str:
    """With the timesteps, where they may have decided which body it is."""
    times = [f"{program.schedule.timesteps[row]:g}" for row in dict.fromkeys(rows)]
    return f"{name} in {_rows(rows)}" + (f" (t {' to '.join(times)})" if len(program.bodies) > 1 else "")


def _runs(calls: Sequence[_T]) -> Iterator[tuple[_T, tuple[int, int]]]:
    """Consecutive rows for which something is the same, such as the body that they call."""
    for name, group in groupby(enumerate(calls), key=lambda item: item[1]):
        numbers = [row for row, _ in group]
        yield name, (numbers[0], numbers[-1])


def _rows(numbers: tuple[int, int]) -> str:
    first, last = numbers
    return f"row {first}" if first == last else f"rows {first} to {last}"


def _describe(unit: Unit, name: str, body: Body) -> str:
    size = size_of(unit.model)
    flops = "unknown FLOPs" if size.flops is None else f"{scaled(size.flops)}FLOPs"
    text = f"{size.nodes:,} nodes, {size.parameters:,} parameters, {flops}, reads {_reads(unit)}"
    if name == "step":
        return text
    kept = sum(f.kind == name for _, other in body.units() for f in other.feeds)
    return f"{text}; {kept} of its results are read later"


def _reads(unit: Unit) -> str:
    """The inputs; of the many results of another unit only their number."""
    named = [str(f) for f in unit.feeds if f.kind not in ("prologue", "table")]
    for kind in ("prologue", "table"):
        count = sum(f.kind == kind for f in unit.feeds)
        if count:
            named.append(f"{count} results of the {kind}")
    return ", ".join(named) or "nothing"
