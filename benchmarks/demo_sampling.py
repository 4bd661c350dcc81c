"""The second half of the demo: a grid of digits sampled before and after, with quality, error, calls and time.

    python -m benchmarks.demo_sampling [--picture FILE] [--samples N] [--threads N]
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from diffusers import DPMSolverMultistepScheduler
from rich.console import Console
from rich.table import Table

import graphopt
from benchmarks.console import wide_console
from benchmarks.interleave import always, interleave, paired_ratio
from graphopt.tools.digits.data import CLASSES, NULL_CLASS, SIDE
from graphopt.tools.digits.grid import write_grids
from graphopt.tools.digits.models import load_unet, scheduler
from graphopt.tools.digits.quality import accuracy, frechet_distance
from graphopt.tools.digits.sampling import GUIDANCE, noise, sample

BATCH = 50
STEPS = 20
PASSES = ("hoist", "fuse-attention", "clean-up")
SHOWN = 100
Sample = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def main(
    picture: Annotated[Path, typer.Option(help="Where the grids are written.")] = Path("digits.png"),
    samples: Annotated[int, typer.Option(help="Digits to sample, a multiple of 50.")] = 500,
    threads: Annotated[int, typer.Option(help="Threads of torch and of onnxruntime.")] = 1,
) -> None:
    """Sample digits with diffusers and with the optimised program."""
    run(wide_console(), picture, samples, threads)


def run(console: Console, picture: Path, samples: int, threads: int) -> bool:
    """Print what became of the sampler; True if both sample the same."""
    torch.set_num_threads(threads)
    console.rule(f"[bold]digits[/]  (a U-Net with cross-attention, {STEPS} DPM++ steps, guidance {GUIDANCE})")
    model = load_unet()
    program = program_of(model)
    optimised = graphopt.optimize(program, passes=list(PASSES), target="onnxruntime")
    console.print(optimised.report)
    console.print(optimised.program.dump(), highlight=False)
    compiled = optimised.lower("onnxruntime", threads=threads)
    negative = torch.full((BATCH,), NULL_CLASS)
    ways: dict[str, Sample] = {
        "diffusers + torch": lambda x, y: sample(model, x, y, solver(), STEPS),
        "graphopt": lambda x, y: compiled(x, class_labels=y, negative_class_labels=negative),
    }
    before, after = (draw(way, samples) for way in ways.values())
    error = float(np.abs(after - before).max() / np.abs(before).max())
    start, labels = noise(BATCH, 0), torch.arange(BATCH) % CLASSES
    timings = interleave({name: always(lambda w=way: w(start, labels)) for name, way in ways.items()}, rounds=9)
    table = Table(box=None)
    columns = ("", f"ms for {BATCH} digits", "denoiser calls", "label embeddings", "Frechet distance", "right class")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    wanted = np.arange(samples) % CLASSES
    for name, images in zip(ways, (before, after), strict=True):
        embedded = STEPS if name != "graphopt" else 1
        table.add_row(
            name,
            f"{1e3 * timings[name].median:.0f}",
            str(STEPS),
            str(embedded),
            f"{frechet_distance(images):.3f}",
            f"{accuracy(images, wanted):.3f}",
        )
    console.print(table)
    ratio = paired_ratio(*timings.values())
    console.print(f"diffusers + torch / graphopt: [bold]{ratio}[/] (quartiles), {threads} thread(s)")
    console.print(f"Largest difference of {samples} samples: {error:.1e} of the largest pixel.")
    write_grids(picture, before[:SHOWN], after[:SHOWN])
    console.print(f"The first {SHOWN} of both, left diffusers and right graphopt: {picture}")
    return error <= 1e-4


def solver() -> Any:
    return DPMSolverMultistepScheduler.from_config(scheduler().config)


def program_of(model: torch.nn.Module) -> graphopt.Program:
    """The sampler of a batch of digits as a program."""
    example = {
        "sample": torch.zeros(BATCH, 1, SIDE, SIDE),
        "timestep": torch.tensor(1),
        "class_labels": torch.zeros(BATCH, dtype=torch.int64),
    }
    return graphopt.Sampler(model, solver(), STEPS, example_inputs=example, guidance=GUIDANCE)


def draw(way: Sample, samples: int) -> np.ndarray[Any, Any]:
    """`samples` digits, of each class equally many, from the noise of one seed."""
    labels = torch.arange(samples) % CLASSES
    pairs = zip(noise(samples, 0).split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([way(x, y) for x, y in pairs]).numpy()


if __name__ == "__main__":
    typer.run(main)
