"""Quality of the shipped digit models: Frechet distance and class accuracy by sampler, over several seeds.

    python -m benchmarks.digits [--samples N] [--seeds N] [--guidance G] [--threads N] [--picture FILE] [--dest FOLDER]

Only equal numbers of samples compare: a Frechet distance falls as samples become more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from diffusers import DPMSolverMultistepScheduler
from rich.table import Table

from benchmarks.console import wide_console
from graphopt.errors import GraphoptError
from graphopt.tools.digits.data import CLASSES, Digits, load, split
from graphopt.tools.digits.grid import write_grids
from graphopt.tools.digits.models import load_dit, load_unet, parameter_count, scheduler
from graphopt.tools.digits.quality import accuracy, class_features, frechet_distance
from graphopt.tools.digits.sampling import GUIDANCE, noise, sample
from graphopt.tools.fetch import DEFAULT_FOLDER
from graphopt.verify.frechet import frechet, moments

SAMPLERS: dict[str, tuple[Callable[[], Any], int]] = {
    "DDIM-50": (scheduler, 50),
    "DDIM-20": (scheduler, 20),
    "DPM++2M-20": (lambda: DPMSolverMultistepScheduler.from_config(scheduler().config), 20),
}
BASE = "DDIM-50"
BATCH = 250


@dataclass(frozen=True)
class Figures:
    """What one sampler gave from one seed."""

    images: npt.NDArray[np.float32]
    distance: float
    accuracy: float


def main(
    samples: Annotated[int, typer.Option(help="Samples per seed, a multiple of 10.")] = 500,
    seeds: Annotated[int, typer.Option(help="How many seeds.")] = 3,
    guidance: Annotated[float, typer.Option(help="Strength of classifier-free guidance; 1 is none.")] = GUIDANCE,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    picture: Annotated[Path | None, typer.Option(help="Write DDIM-50 of the two models as a PNG.")] = None,
    dest: Annotated[Path, typer.Option(help="Folder of the real digits.")] = DEFAULT_FOLDER,
) -> None:
    """Print how good the samples of both models are, beside real digits."""
    torch.set_num_threads(threads)
    console = wide_console()
    try:
        console.print(real_digits(*split(load(dest)), samples))
    except GraphoptError as error:
        console.print(f"[red]{type(error).__name__}[/] {error}", highlight=False)
        raise typer.Exit(1) from None
    shown = []
    for name, model in (("U-Net", load_unet()), ("DiT", load_dit())):
        figures = {
            sampler: [measure(model, sampler, samples, seed, guidance) for seed in range(seeds)] for sampler in SAMPLERS
        }
        title = f"{name}, {parameter_count(model):,} parameters, {samples} samples, guidance {guidance:g}"
        console.print(table(title, figures))
        shown.append(figures[BASE][0].images[:100])
    if picture is not None:
        write_grids(picture, *shown)


def measure(model: torch.nn.Module, sampler: str, samples: int, seed: int, guidance: float) -> Figures:
    """`samples` digits, equally many of each class, from the noise of `seed`, and their quality."""
    make, steps = SAMPLERS[sampler]
    labels = torch.arange(samples) % CLASSES
    pairs = zip(noise(samples, seed).split(BATCH), labels.split(BATCH), strict=True)
    images = torch.cat([sample(model, x, y, make(), steps, guidance=guidance) for x, y in pairs]).numpy()
    return Figures(images, frechet_distance(images), accuracy(images, labels.numpy()))


def table(title: str, figures: dict[str, list[Figures]]) -> Table:
    """One row for each sampler: mean and range over the seeds; ratios are taken seed by seed, on the same noise."""
    result = Table(title=title)
    for column in ("sampler", "Frechet distance", f"ratio to {BASE}", "rel. MSE to it", "class accuracy"):
        result.add_column(column, justify="left" if column == "sampler" else "right")
    for sampler, found in figures.items():
        pairs = list(zip(found, figures[BASE], strict=True))
        result.add_row(
            sampler,
            _spread([x.distance for x in found]),
            _spread([x.distance / base.distance for x, base in pairs]),
            f"{np.mean([_relative_mse(x.images, base.images) for x, base in pairs]):.1e}",
            _spread([x.accuracy for x in found]),
        )
    return result


def real_digits(training: Digits, held_out: Digits, samples: int) -> Table:
    """What real digits score: the floor of every distance at this number of samples."""
    rng = np.random.default_rng(0)
    result = Table(title="real digits in the place of samples")
    for column in ("real digits", "against", "Frechet distance", "class accuracy"):
        result.add_column(column, justify="right" if column[0] in "Fc" else "left")
    drawn = training[np.sort(rng.permutation(len(training))[:samples])]
    score = accuracy(drawn.images, drawn.labels)
    result.add_row(f"{samples} for training", "1000 held out", f"{frechet_distance(drawn.images):.2f}", f"{score:.3f}")
    order = rng.permutation(len(held_out))
    one, other = (held_out[rows] for rows in np.array_split(order, 2))
    halves = frechet(moments(class_features(one.images)), moments(class_features(other.images)))
    score = accuracy(held_out.images, held_out.labels)
    result.add_row("500 held out", "500 others held out", f"{halves:.2f}", f"{score:.3f}")
    return result


def _relative_mse(images: npt.NDArray[np.float32], base: npt.NDArray[np.float32]) -> float:
    return float(np.square(images - base).mean() / np.square(base).mean())


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    typer.run(main)
