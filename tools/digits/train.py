"""Trains the digit models and writes what the package ships.

    python -m graphopt.tools.digits.train --out DIR [--only unet] [--threads 1] [--data FOLDER]

On one core the U-Net takes about 18 minutes, the DiT 15 and the classifier one. Seeds are fixed: the same machine,
versions and number of threads give the same weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from graphopt.tools.digits import models
from graphopt.tools.digits.data import NULL_CLASS, Digits, load, split
from graphopt.tools.digits.quality import accuracy, class_features, save_moments
from graphopt.tools.fetch import DEFAULT_FOLDER
from graphopt.verify.frechet import moments


class Part(StrEnum):
    """What can be trained by itself."""

    CLASSIFIER = "classifier"
    UNET = "unet"
    DIT = "dit"


@dataclass(frozen=True)
class Recipe:
    """How one denoiser is trained."""

    kind: type[Any]
    learning_rate: float
    iterations: int
    seed: int
    batch: int = 64
    warm_up: int = 200
    label_drop: float = 0.1
    ema: float = 0.999


RECIPES = {
    Part.UNET: Recipe(models.DigitUNet, learning_rate=2e-3, iterations=4400, seed=1),
    Part.DIT: Recipe(models.DigitDiT, learning_rate=1.5e-3, iterations=7000, seed=2),
}
CLASSIFIER_EPOCHS = 40


def main(
    out: Annotated[Path, typer.Option(help="Folder for the weights.")],
    only: Annotated[list[Part] | None, typer.Option(help="Train this one; repeatable; all by default.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
    data: Annotated[Path, typer.Option(help="Folder of fetched data.")] = DEFAULT_FOLDER,
) -> None:
    """Train the models and write their weights, rounded to float16."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    training, held_out = split(load(data))
    out.mkdir(parents=True, exist_ok=True)
    for part in only or list(Part):
        if part is Part.CLASSIFIER:
            write_classifier(training, held_out, out)
        else:
            models.save(train_denoiser(part, training), out / f"{part}.safetensors")


def write_classifier(training: Digits, held_out: Digits, out: Path) -> None:
    """Train and write the classifier, and the moments of the held-out digits in its features as stored."""
    models.save(train_classifier(training), out / "classifier.safetensors")
    stored = models.load_classifier(out)
    typer.echo(f"classifier: accuracy {accuracy(held_out.images, held_out.labels, stored):.4f} on held-out digits")
    save_moments(moments(class_features(held_out.images, stored)), out / "reference.safetensors")


def train_classifier(training: Digits, seed: int = 0) -> models.DigitClassifier:
    """A classifier of clean digits; shifts, turns and sizes are varied in training."""
    torch.manual_seed(seed)
    model = models.DigitClassifier(models.config("classifier"))
    images, labels = torch.from_numpy(training.images), torch.from_numpy(training.labels)
    batches = CLASSIFIER_EPOCHS * math.ceil(len(labels) / 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=batches)
    for rows in _batches(len(labels), 64, batches):
        logits = model(vary(images[rows]))
        loss = torch.nn.functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
        _step(loss, model, optimizer, schedule)
    model.eval()
    return model


def vary(images: torch.Tensor) -> torch.Tensor:
    """`images` (n, 1, 16, 16), each turned by up to 12 degrees, scaled by up to 12 % and shifted by up to 1.5 px."""
    turn, size, across, down = torch.rand(4, len(images)) * 2 - 1
    angle, scale = turn * math.radians(12), 1 + 0.12 * size
    shift = 1.5 / (images.shape[-1] / 2)
    rows = [
        torch.stack([scale * angle.cos(), -scale * angle.sin(), shift * across], -1),
        torch.stack([scale * angle.sin(), scale * angle.cos(), shift * down], -1),
    ]
    grid = torch.nn.functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images + 1, grid, align_corners=False) - 1


def train_denoiser(part: Part, training: Digits) -> torch.nn.Module:
    """The moving average of a denoiser's weights over its training on v."""
    recipe = RECIPES[part]
    torch.manual_seed(recipe.seed)
    # In eval mode throughout: the only thing training mode would add is the DiT's own label drop, which is drawn
    # apart for each block.
    model = recipe.kind(models.config(part)).eval()
    zero_start(model)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: _cosine(i, recipe))
    running = 1.0
    for i, loss in enumerate(_losses(model, training, recipe)):
        _step(loss, model, optimizer, schedule)
        _follow(average, model, min(recipe.ema, (1 + i) / (10 + i)))
        running += 0.005 * (loss.item() - running)
        if (i + 1) % 200 == 0:
            typer.echo(f"{part}: {i + 1}/{recipe.iterations} v-loss {running:.4f}")
    return average


def _losses(model: torch.nn.Module, training: Digits, recipe: Recipe) -> Iterator[torch.Tensor]:
    images, labels = torch.from_numpy(training.images), torch.from_numpy(training.labels)
    scheduler = models.scheduler()
    times = scheduler.config.num_train_timesteps
    for rows in _batches(len(labels), recipe.batch, recipe.iterations):
        clean, n = images[rows], len(rows)
        noise = torch.randn_like(clean)
        # One time in each of n equal strata: the same expectation as uniform times, with less variance.
        time = ((torch.arange(n) + torch.rand(n)) * times / n).long()
        label = torch.where(torch.rand(n) < recipe.label_drop, NULL_CLASS, labels[rows])
        velocity = scheduler.get_velocity(clean, noise, time)
        yield (model(scheduler.add_noise(clean, noise, time), time, label) - velocity).square().mean()


def zero_start(model: torch.nn.Module) -> None:
    """Set to zero what closes a denoiser, and a DiT's gates (AdaLN-zero), so that training starts at v = 0."""
    closing = ("unet.conv_out", "transformer.proj_out_2")
    for name, module in model.named_modules():
        if name in closing or name.endswith("norm1.linear"):
            for parameter in module.parameters():
                torch.nn.init.zeros_(parameter)


def _batches(length: int, size: int, count: int) -> Iterator[torch.Tensor]:
    """`count` batches of row numbers, in a new order each time that all rows were seen."""
    order = torch.randperm(length)
    for _ in range(count):
        if len(order) < size:
            order = torch.cat([order, torch.randperm(length)])
        batch, order = order[:size], order[size:]
        yield batch


def _step(loss: torch.Tensor, model: torch.nn.Module, optimizer: Any, schedule: Any) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def _follow(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)


def _cosine(iteration: int, recipe: Recipe) -> float:
    warm = min(1.0, (iteration + 1) / recipe.warm_up)
    return warm * 0.5 * (1 + math.cos(math.pi * iteration / recipe.iterations))


if __name__ == "__main__":
    typer.run(main)
