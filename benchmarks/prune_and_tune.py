"""Pruning the digits U-Net and training what is left: Frechet distance before, after, and after tuning.

    python -m benchmarks.prune_and_tune [--flops 0.5] [--seconds 60] [--importance activation] [--seeds 3]

Shows how a pruned model is fine-tuned: `optimize(...).model` is a torch module whose parameters have the names that
they had, so an optimizer takes it as any other. It is traced, so batches keep the size of the example inputs.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

import graphopt
from benchmarks.console import wide_console
from graphopt.errors import GraphoptError
from graphopt.passes.prune import Prune
from graphopt.tools.digits.data import CLASSES, NULL_CLASS, Digits, load, split
from graphopt.tools.digits.models import load_unet, parameter_count, scheduler
from graphopt.tools.digits.quality import accuracy, frechet_distance
from graphopt.tools.digits.sampling import noise, sample
from graphopt.tools.fetch import DEFAULT_FOLDER

BATCH = 100
STEPS = 20
EMA = 0.995
Batch = dict[str, torch.Tensor]


def main(
    flops: Annotated[float, typer.Option(help="Share of FLOPs that goes.")] = 0.5,
    seconds: Annotated[float, typer.Option(help="How long to train, in wall-clock seconds.")] = 60.0,
    importance: Annotated[str, typer.Option(help="As in the pass prune.")] = "activation",
    samples: Annotated[int, typer.Option(help="Samples per seed, a multiple of 100.")] = 500,
    seeds: Annotated[int, typer.Option(help="How many seeds of noise.")] = 3,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
) -> None:
    """Print the quality of the original, of what pruning leaves, and of that after training."""
    torch.set_num_threads(threads)
    console = wide_console()
    try:
        training, _ = split(load(DEFAULT_FOLDER))
    except GraphoptError as error:
        console.print(f"[red]{type(error).__name__}[/] {error}", highlight=False)
        raise typer.Exit(1) from None
    torch.manual_seed(0)
    original = load_unet()
    batches = [noisy(training)[0] for _ in range(6)]
    pass_ = Prune(flops=flops, importance=importance)  # type: ignore[arg-type]  # checked by the pass
    result = graphopt.optimize(
        original, [pass_], example_inputs=batches[0], budget=float("inf"), calibration=batches, target=None
    )
    record = result.report.passes[0]
    before, after = record.before.flops or 0, record.after.flops or 0
    console.print(f"FLOPs {before:,} to {after:,} ({after / before - 1:+.1%}), {len(result.report.kept)} axes pruned")
    pruned: Any = result.model
    rows = Table(title=f"digits U-Net, DDIM-{STEPS}, {samples} samples, {seeds} seeds, no guidance")
    for column in ("model", "parameters", "Frechet distance", "class accuracy"):
        rows.add_column(column, justify="left" if column == "model" else "right")
    rows.add_row("original", *quality(original, samples, seeds))
    rows.add_row(f"pruned by {flops:.0%} of FLOPs", *quality(pruned, samples, seeds))
    steps = tune(pruned, training, seconds)
    rows.add_row(f"trained for {seconds:.0f} s ({steps} steps of {BATCH})", *quality(pruned, samples, seeds))
    console.print(rows)


def noisy(digits: Digits, size: int = BATCH) -> tuple[Batch, torch.Tensor]:
    """A batch as the denoiser is trained on, and the velocity that it should predict."""
    rows = torch.randint(len(digits), (size,)).numpy()
    clean, labels = torch.from_numpy(digits.images[rows]), torch.from_numpy(digits.labels[rows])
    diffusion = scheduler()
    steps = diffusion.config.num_train_timesteps
    moments = ((torch.arange(size) + torch.rand(size)) * steps / size).long()
    drawn = torch.randn_like(clean)
    labels = torch.where(torch.rand(size) < 0.1, NULL_CLASS, labels)
    inputs = {"sample": diffusion.add_noise(clean, drawn, moments), "timestep": moments, "class_labels": labels}
    return inputs, diffusion.get_velocity(clean, drawn, moments)


def tune(model: torch.nn.Module, training: Digits, seconds: float) -> int:
    """Train `model` in place and leave the moving average of its weights in it; returns the number of steps."""
    parameters = [p.requires_grad_() for p in model.parameters() if p.is_floating_point()]
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01)
    started, steps = time.monotonic(), 0
    while (spent := (time.monotonic() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (steps + 1) / 50) * 0.5 * (1 + np.cos(np.pi * spent))
        inputs, velocity = noisy(training)
        loss = (model(**inputs) - velocity).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        steps += 1
        with torch.no_grad():
            for kept, new in zip(average, parameters, strict=True):
                kept.lerp_(new, 1 - min(EMA, (1 + steps) / (10 + steps)))
    with torch.no_grad():
        for parameter, kept in zip(parameters, average, strict=True):
            parameter.copy_(kept)
    return steps


def quality(model: torch.nn.Module, samples: int, seeds: int) -> tuple[str, str, str]:
    """Parameters, and mean and range over the seeds of Frechet distance and class accuracy."""
    labels = torch.arange(samples) % CLASSES
    distances, accuracies = [], []
    for seed in range(seeds):
        pairs = zip(noise(samples, seed).split(BATCH), labels.split(BATCH), strict=True)
        with torch.no_grad():
            drawn = [sample(_every_row(model), x, y, scheduler(), STEPS, guidance=1) for x, y in pairs]
        images = torch.cat(drawn).numpy()
        distances.append(frechet_distance(images))
        accuracies.append(accuracy(images, labels.numpy()))
    spread = f"{np.mean(distances):.2f} ({min(distances):.2f} to {max(distances):.2f})"
    return f"{parameter_count(model):,}", spread, f"{np.mean(accuracies):.3f}"


def _every_row(model: torch.nn.Module) -> Any:
    """The model with one timestep for each row, as it was traced."""
    return lambda x, moment, labels: model(sample=x, timestep=moment.expand(len(x)), class_labels=labels)


if __name__ == "__main__":
    typer.run(main)
