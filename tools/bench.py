"""`graphopt bench`: run models in turn on onnxruntime and compare their times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.errors import GraphoptError, PipelineError
from graphopt.tools.output import print_json, print_result

if TYPE_CHECKING:
    from rich.console import RenderableType

    from graphopt.backends.inputs import InputType

DEFAULT_BATCH, DEFAULT_SIZE = 1, 16
"""What a size that the model leaves open is taken to be: in front, and elsewhere."""


class Optimization(StrEnum):
    all = "all"
    extended = "extended"
    basic = "basic"
    off = "off"


class BenchError(GraphoptError):
    """The models cannot be timed side by side."""


def bench(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="Models; all are compared to the first.")
    ],
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of each run.")] = 1,
    dim: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=N", help="Size of an open dimension; may be repeated."),
    ] = None,
    optimization: Annotated[
        Optimization, typer.Option(help="onnxruntime's own graph optimisations.")
    ] = Optimization.all,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the inputs.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time models in turn on onnxruntime.

    All are compared with the first, round by round. Every model gets the same seeded inputs. The first round
    is dropped; speed-ups are medians of the ratios within the rounds, so that whatever else the machine does
    falls on all models alike. Dimensions that the models leave open are 1 in front and 16 elsewhere unless
    --dim says otherwise; one without a name is called INPUT.AXIS, as in --dim x.2=64.

    JSON keys: threads, rounds, optimization, inputs (name to dtype and shape), models: a list of file,
    median, low, high (milliseconds; the median and the quartiles), speedup, speedup_low, speedup_high (times
    as fast as the first), and difference (largest difference from the first's outputs relative to their
    largest value, null if the outputs cannot be compared).
    """
    from graphopt.compiler import lower

    sizes = _sizes(dim or ())
    settings = {"threads": threads, "inter_threads": 1, "optimization": optimization.value}
    models: list[Any] = [lower(file, "onnxruntime", **settings) for file in files]
    _require_same_inputs(files, [model.input_types for model in models])
    feeds = make_feeds(models[0].input_types, sizes, seed)
    results = [_first_run(file, model, feeds) for file, model in zip(files, models, strict=True)]
    samples = interleave([_job(model, feeds) for model in models], rounds)
    rows = [
        _row(file, own, samples[0]) | {"difference": difference_of(results[0], result)}
        for file, own, result in zip(files, samples, results, strict=True)
    ]
    inputs = {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in feeds.items()}
    if as_json:
        print_json(
            {
                "threads": threads,
                "rounds": rounds,
                "optimization": optimization.value,
                "inputs": inputs,
                "models": rows,
            }
        )
    else:
        print_result(_table(rows))


def interleave(
    jobs: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds of each job in each round; one round more is run first and dropped. Every other round runs
    backwards."""
    samples: list[list[float]] = [[] for _ in jobs]
    order = range(len(jobs))
    for number in range(rounds + 1):
        for i in reversed(order) if number % 2 else order:
            started = clock()
            jobs[i]()
            if number > 0:
                samples[i].append(clock() - started)
    return samples


def make_feeds(types: Sequence[InputType], sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
    """An array for each input: floats normal, integers and booleans 0 or 1.

    Raises:
        BenchError: a size for a dimension that no input has, an input that is no tensor of known rank, or inputs for
            which there is no memory.
    """
    from graphopt.ir.weights import FLOATS
    from graphopt.tools.inputs import make_inputs

    shapes = {t.name: _named_dimensions(t) for t in types}
    named = open_dimensions(types)
    unknown = sorted(set(sizes) - set(named))
    if unknown:
        known = ", ".join(named) or "none"
        raise BenchError(f"no input has a dimension {unknown[0]!r}; open dimensions: {known}")
    front = {shape[0] for shape in shapes.values() if shape}
    chosen = {name: DEFAULT_BATCH if name in front else DEFAULT_SIZE for name in named} | dict(sizes)
    specs = {}
    for type_ in types:
        shape = [d if isinstance(d, int) else chosen[d] for d in shapes[type_.name]]
        kind = {"gen": "normal"} if type_.dtype in FLOATS else {"gen": "randint", "low": 0, "high": 2}
        specs[type_.name] = {"dtype": type_.dtype, "shape": shape, **kind}
    try:
        return make_inputs(specs, seed)
    except (MemoryError, ValueError) as error:  # numpy raises the latter for more elements than it can count
        asked = ", ".join(f"{name} {spec['shape']}" for name, spec in specs.items())
        raise BenchError(
            f"inputs of the shapes {asked} cannot be made ({error}); choose smaller sizes with --dim NAME=N"
        ) from error


def open_dimensions(types: Sequence[InputType]) -> list[str]:
    """Names of the dimensions whose size the model leaves open; one without a name is called INPUT.AXIS."""
    return sorted({d for t in types for d in _named_dimensions(t) if isinstance(d, str)})


def _named_dimensions(type_: InputType) -> list[int | str]:
    if type_.dtype is None or type_.shape is None:
        raise BenchError(f"no inputs can be made for {type_.name!r}, which is {type_}")
    return [f"{type_.name}.{axis}" if d is None else d for axis, d in enumerate(type_.shape)]


def _sizes(texts: Sequence[str]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not number.isdecimal():
            raise PipelineError(f"--dim {text}: expected NAME=N with N a non-negative integer")
        if sizes.setdefault(name, int(number)) != int(number):
            raise PipelineError(f"--dim {text}: {name} is {sizes[name]} already; give one size for it")
    return sizes


def _require_same_inputs(files: Sequence[Path], types: Sequence[Sequence[InputType]]) -> None:
    described = [{t.name: t.dtype for t in own} for own in types]
    for file, own in zip(files, described, strict=True):
        if own != described[0]:
            raise BenchError(f"{file} takes other inputs than {files[0]}: {own} instead of {described[0]}")


def _first_run(file: Path, model: Any, feeds: Mapping[str, Any]) -> list[Any]:
    from graphopt.backends.ort_compiled import RunError

    try:
        results: list[Any] = model(feeds)
    except RunError as error:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
        known = ", ".join(open_dimensions(model.input_types)) or "none"
        raise BenchError(
            f"{file} does not run on inputs of the shapes {shapes}; choose others with --dim NAME=N (open "
            f"dimensions: {known}). {error}"
        ) from error
    return results


def _job(model: Any, feeds: Mapping[str, Any]) -> Callable[[], object]:
    return lambda: model(feeds)


def _row(file: Path, own: Sequence[float], first: Sequence[float]) -> dict[str, Any]:
    low, median, high = (1000 * s for s in _quartiles(own))
    slowest, speedup, fastest = _quartiles([a / b for a, b in zip(first, own, strict=True)])
    return {
        "file": str(file),
        "median": median,
        "low": low,
        "high": high,
        "speedup": speedup,
        "speedup_low": slowest,
        "speedup_high": fastest,
    }


def _quartiles(samples: Sequence[float]) -> tuple[float, float, float]:
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return low, median, high


def difference_of(first: Sequence[Any], other: Sequence[Any]) -> float | None:
    """Largest difference relative to the largest value, over all outputs; None unless all are tensors of equal shape
    and a number says how they differ, which no number does of text, nor of NaN or infinities at other places."""
    import numpy as np

    worst = 0.0
    if len(first) != len(other):
        return None
    for a, b in zip(first, other, strict=True):
        if (
            not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray))
            or a.shape != b.shape
            or a.dtype != b.dtype
        ):
            return None
        if a.dtype.kind in "OU":
            if not np.array_equal(a, b):
                return None
        elif a.size:
            wide, other_wide = a.astype(np.float64), b.astype(np.float64)
            apart = wide != other_wide
            apart &= ~(np.isnan(wide) & np.isnan(other_wide))
            if not (np.isfinite(wide[apart]).all() and np.isfinite(other_wide[apart]).all()):
                return None
            scale = float(np.max(np.abs(wide), where=np.isfinite(wide), initial=0.0))
            worst = max(worst, float(np.max(np.abs(wide[apart] - other_wide[apart]), initial=0.0)) / (scale or 1.0))
    return worst


def _table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", overflow="fold")
    for column in ("median ms", "quartiles", "speed-up", "quartiles", "difference"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
        table.add_row(
            Text(row["file"]),
            f"{row['median']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['speedup']:.2f}",
            f"{row['speedup_low']:.2f} to {row['speedup_high']:.2f}",
            difference,
        )
    return table
