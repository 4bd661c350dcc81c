"""`graphopt run`: optimise a model file."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphopt.errors import PipelineError
from graphopt.pipeline.spec import DEFAULT_PASSES
from graphopt.tools.output import OutputError, print_json, print_note, print_result, require_writable

if TYPE_CHECKING:
    from graphopt.compiler import Optimized
    from graphopt.pipeline.instrument import Instrument
    from graphopt.verify.budget import Budget


class Level(StrEnum):
    off = "off"
    structure = "structure"
    match = "match"
    model = "model"


class ReportForm(StrEnum):
    table = "table"
    json = "json"


def run(
    file: Annotated[Path, typer.Argument(help="The model, an .onnx file. It is never modified.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write the result; without it nothing is written."),
    ] = None,
    pipeline: Annotated[
        str, typer.Option("--passes", "-p", help="Pipeline text, as in 'fuse-conv-bn,clean-up{rounds=2}'.")
    ] = DEFAULT_PASSES,
    verify: Annotated[
        Level,
        typer.Option(
            help="Check each application (match), the whole model too (model), types only (structure) or "
            "nothing (off)."
        ),
    ] = Level.match,
    target: Annotated[
        str | None,
        typer.Option(help="Backend that the result is for; without it only standard ops are written."),
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove", help="Prove by algebra what verification lets through, where that can be done.")
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(metavar="LIMIT", help="What approximate passes may spend together; 'inf' only measures."),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(help="What the budget is stated in: relative-error (the default), cosine, kl, top-1, ..."),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Real inputs: an .npz file of arrays by input name, samples along axis 0."),
    ] = None,
    report: Annotated[ReportForm, typer.Option(help="Form of the report.")] = ReportForm.table,
    limit: Annotated[int | None, typer.Option(min=0, help="Keep at most this many applications.")] = None,
    skip: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Leave out this application; may be repeated.")
    ] = None,
    print_after: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Print the model's text after this pass; may be repeated."),
    ] = None,
    print_after_change: Annotated[
        bool, typer.Option("--print-after-change", help="Print what changed after each pass.")
    ] = False,
    dump_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the model's text after each pass into DIR.")
    ] = None,
    repro: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write what reproduces each undone application into DIR."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --report json.")] = False,
    progress: Annotated[
        bool | None, typer.Option("--progress/--no-progress", help="Progress bar; by default on a terminal.")
    ] = None,
) -> None:
    """Optimise FILE and report what was done.

    Every application of a rule is verified by itself and undone alone if it fails. With --verify model the
    result as a whole is compared with the original too; if they disagree, the application that is to blame
    is found by bisection and named, and nothing is written.

    Approximate passes need --budget and --calibration. They tune on one half of the samples, and the metric on the
    other half may not exceed the limit. With --verify model the first batch of the samples is run end to end.

    The output is written under a temporary name and moved into place. It may not be an input.

    JSON keys: input, output, model, pipeline, verify, coverage, seconds, notes, and passes: a list with, for
    each pass, pass, where, before, after (nodes, parameters, bytes, flops), rules, applications, seconds, notes,
    spending (of an approximate pass: metric, limit, which is a number or "inf", before, after, changes). The evidence
    of an application has, with --prove, proof: level, reason, log2_error, functions, laws, weights,
    sampled, reduced, seed, milliseconds.
    """
    from graphopt.compiler import optimize
    from graphopt.tools.calibration import read_calibration

    if output is not None:
        require_writable(output, file, calibration)
    result = optimize(
        file,
        pipeline,
        target=target,
        verify=verify.value,
        prove=prove,
        budget=_budget(budget, metric),
        calibration=None if calibration is None else read_calibration(calibration),
        limit=limit,
        skip=skip or (),
        instruments=_instruments(print_after, print_after_change, dump_dir, progress),
        repro=repro,
    )
    if output is not None:
        _save(result, output)
    if as_json or report is ReportForm.json:
        written = None if output is None else str(output)
        print_json(result.report.to_dict() | {"input": str(file), "output": written})
    else:
        print_result(result.report)


def _budget(limit: float | None, metric: str | None) -> Budget | None:
    from graphopt.verify.budget import Budget

    if limit is None:
        if metric is not None:
            raise PipelineError(f"--metric {metric} says in what a budget is stated; give its limit too: --budget 0.01")
        return None
    return Budget("relative-error" if metric is None else metric, limit)


def _instruments(
    print_after: list[str] | None, print_after_change: bool, dump_dir: Path | None, progress: bool | None
) -> list[Instrument]:
    from graphopt.pipeline.instrument import DumpDir, PrintAfter, PrintAfterChange, Progress
    from graphopt.pipeline.registry import passes

    for name in print_after or ():
        passes().owner(name)  # an unknown name is an error, with the nearest ones
    chosen: list[Instrument] = []
    if print_after:
        chosen.append(PrintAfter(print_after))
    if print_after_change:
        chosen.append(PrintAfterChange())
    if dump_dir is not None:
        chosen.append(DumpDir(dump_dir))
    if progress or (progress is None and sys.stderr.isatty()):
        chosen.append(Progress())
    return chosen


def _save(result: Optimized, output: Path) -> None:
    try:
        result.save(output)
    except OSError as error:
        raise OutputError(f"{output}: cannot be written: {error.strerror or error}") from error
    print_note(f"wrote {output}")
