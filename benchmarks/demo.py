"""The main job on real pretrained models: optimise, check, and measure; two graphs, then a whole sampler of digits.

    python -m benchmarks.demo [--dest FOLDER] [--threads N] [--seconds S] [--picture FILE]
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import demo_sampling
from benchmarks.compare import compare, run_plain, session
from benchmarks.console import wide_console
from benchmarks.interleave import always, interleave, paired_ratio
from benchmarks.measure import feeds_of
from graphopt.errors import GraphoptError
from graphopt.tools.fetch import DEFAULT_FOLDER, fetch
from graphopt.tools.manifest import Entry, zoo

MODELS = ("terrain_consistency_unet", "ppocrv2_cls")
PASSES = "clean-up,fuse-conv-bn,fuse-attention,clean-up"
DIGITS = 500


def main(
    dest: Annotated[Path, typer.Option(help="Folder of the models.")] = DEFAULT_FOLDER,
    threads: Annotated[int, typer.Option(help="Threads of every onnxruntime session.")] = 1,
    seconds: Annotated[float, typer.Option(help="How long each model is timed; 15 to 100 rounds.")] = 8.0,
    picture: Annotated[Path, typer.Option(help="Where the sampled digits are written.")] = Path("digits.png"),
) -> None:
    """Optimise two real models and a sampler, check that they compute the same, and time them."""
    console = wide_console()
    try:
        equal = _run(console, dest, threads, seconds)
        equal &= demo_sampling.run(console, picture, DIGITS, threads)
    except GraphoptError as error:
        console.print(f"[red]{type(error).__name__}[/] {error}", highlight=False)
        raise typer.Exit(1) from None
    if not equal:
        raise typer.Exit(1)


def _run(console: Console, dest: Path, threads: int, seconds: float) -> bool:
    console.print(f"Fetching {' and '.join(MODELS)} from PyPI (about 50 MB the first time) ...")
    paths = fetch(MODELS, dest)
    return all([_show(console, zoo()[name], paths[name], threads, seconds) for name in MODELS])


def _show(console: Console, entry: Entry, source: Path, threads: int, seconds: float) -> bool:
    """Print what graphopt makes of one model; True if its outputs equal the original's."""
    import graphopt

    console.rule(f"[bold]{entry.id}[/]  ({entry.package} {entry.version}, {entry.license})")
    optimized = graphopt.optimize(source, passes=PASSES, target="onnxruntime")
    console.print(optimized.report)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / source.name
        optimized.save(target)
        equal = _print_equality(console, entry, source, target)
        _print_speed(console, entry, source, target, threads, seconds)
    return equal


def _print_equality(console: Console, entry: Entry, source: Path, target: Path) -> bool:
    equal = True
    for number, feeds in enumerate(feeds_of(entry), start=1):
        found = compare(run_plain(target, feeds), run_plain(source, feeds), entry.compare)
        equal &= found.equal
        word = "[green]equal[/]" if found.equal else f"[red]differ[/]: {found.reason}"
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in feeds.items())
        console.print(f"Input set {number} ({shapes}): outputs {word}, worst error {found.error:.1e}")
    console.print(
        "Errors are relative to the largest output; both files ran on onnxruntime, its optimisations off.",
        style="dim",
    )
    return equal


def _print_speed(
    console: Console, entry: Entry, source: Path, target: Path, threads: int, seconds: float
) -> None:
    feeds = feeds_of(entry)[0]
    runs = {
        name: session(path, optimise=True, threads=threads)
        for name, path in (("original", source), ("optimised", target))
    }
    jobs = {name: always(lambda s=s: s.run(None, feeds)) for name, s in runs.items()}
    trial = interleave(jobs, rounds=3)
    affordable = int(seconds / sum(timing.median for timing in trial.values()))
    rounds = min(max(15, affordable), 100)
    timings = interleave(jobs, rounds=rounds)
    ratio = paired_ratio(timings["original"], timings["optimised"])
    milliseconds = {name: f"{1e3 * timing.median:.2f} ms" for name, timing in timings.items()}
    console.print(
        f"Time of one run, median of {rounds} in turn, {threads} thread(s): "
        f"{milliseconds['original']} original, {milliseconds['optimised']} optimised."
    )
    console.print(f"Original / optimised: [bold]{ratio}[/] (quartiles); above 1 the optimised one is faster.")
    console.print(
        "In both sessions onnxruntime's own optimisations were fully on, as by default. They fold batch norms"
        " too; the attentions of this form they do not fuse.",
        style="dim",
    )


if __name__ == "__main__":
    typer.run(main)
