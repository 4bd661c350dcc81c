"""What low rank buys and costs: time of a feed-forward layer, whitened beside plain factors, and budgets that are met.

    python -m benchmarks.low_rank [--rounds N] [--dest FOLDER]

Errors are on held-out data: half of the batches, which neither factors nor ranks were chosen on. Times are of
onnxruntime with its own optimisations, one thread, interleaved; medians and quartiles of the ratios.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.table import Table

import graphopt
from benchmarks.console import wide_console
from benchmarks.prune_and_tune import noisy
from graphopt.tools.digits.data import Digits, load, split
from graphopt.tools.digits.models import load_classifier, load_dit, load_unet
from graphopt.tools.fetch import DEFAULT_FOLDER

WIDTH, HIDDEN = 1024, 4096
BATCH = 25
INFINITE = float("inf")


class FeedForward(torch.nn.Module):
    """The feed-forward layer of a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, HIDDEN)
        self.down = torch.nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.gelu(self.up(x)))


def main(
    rounds: Annotated[int, typer.Option(help="Interleaved rounds of timing.")] = 15,
    dest: Annotated[Path, typer.Option(help="Folder of the real digits.")] = DEFAULT_FOLDER,
) -> None:
    """Print the four tables."""
    console = wide_console()
    console.print(latency(rounds))
    torch.manual_seed(0)
    _, held_out = split(load(dest))
    models = digit_models(held_out)
    console.print(whitened_beside_plain(models))
    console.print(refitted_beside_not(models))
    console.print(within_budgets(models))


def latency(rounds: int) -> Table:
    """The feed-forward layer dense and at a quarter of its width."""
    table = Table(title=f"feed-forward layer {WIDTH} -> {HIDDEN} -> {WIDTH}, onnxruntime, 1 thread")
    for column in ("rows", "dense ms", f"rank {WIDTH // 4} ms", "dense / low rank (quartiles)", "predicted = measured"):
        table.add_column(column, justify="right")
    for rows in (64, 512):
        torch.manual_seed(0)
        module = FeedForward().eval()
        data = [(torch.randn(rows, WIDTH),) for _ in range(2)]
        model = torch.onnx.export(module, data[0], dynamo=True, verbose=False).model_proto
        result = graphopt.optimize(
            model, [f"low-rank{{rank={WIDTH // 4}}}"], budget=INFINITE, calibration=[(x.numpy(),) for (x,) in data]
        )
        runs = graphopt.lower(model, threads=1), result.lower(threads=1)
        times, ratios = interleaved(runs, data[0][0].numpy(), rounds)
        low, middle, high = statistics.quantiles(ratios, n=4)
        agreement = ", ".join(_errors(result))
        table.add_row(
            str(rows), f"{times[0]:.2f}", f"{times[1]:.2f}", f"{middle:.2f} ({low:.2f} to {high:.2f})", agreement
        )
    return table


def interleaved(runs: tuple[Any, Any], x: np.ndarray[Any, Any], rounds: int) -> tuple[tuple[float, float], list[float]]:
    """Median milliseconds of both, and their ratio in each round; processor time, which other work does not stretch."""
    found: list[tuple[float, float]] = []
    for _ in range(rounds + 2):
        pair = []
        for run in runs:
            started = time.process_time()
            run(x)
            pair.append(1000 * (time.process_time() - started))
        found.append((pair[0], pair[1]))
    kept = found[2:]
    medians = statistics.median(a for a, _ in kept), statistics.median(b for _, b in kept)
    return medians, [a / b for a, b in kept]


def digit_models(digits: Digits) -> dict[str, tuple[torch.nn.Module, list[Any], tuple[str, ...]]]:
    """The shipped models with batches of real data and metrics that suit them, the best first."""
    images = [(torch.from_numpy(digits.images[i : i + BATCH]),) for i in range(0, len(digits), BATCH)]
    noised = [noisy(digits, BATCH)[0] for _ in range(24)]
    return {
        "classifier": (load_classifier(), images, ("kl", "relative-error")),
        "U-Net": (load_unet(), noised, ("relative-error",)),
        "DiT": (load_dit(), noised, ("relative-error",)),
    }


def whitened_beside_plain(models: dict[str, tuple[torch.nn.Module, list[Any], tuple[str, ...]]]) -> Table:
    """The same ranks for every layer, factors chosen with the data (and refitted) and without."""
    table = Table(title="every layer at equal rank, linear layers and convolutions by channels, held-out data")
    for column in ("model", "metric", "rank", "layers", "with data", "plain", "plain / with data"):
        table.add_column(column, justify="left" if column in ("model", "metric") else "right")
    rows = [(name, *given, metric) for name, (*given, metrics) in models.items() for metric in metrics]
    for name, module, data, metric in rows:
        for rank in (8, 16):
            spent, layers = [], 0
            for whiten in ("true", "false"):
                spec = f"low-rank{{rank={rank} conv=channels whiten={whiten}}}"
                result = optimised(module, data, spec, graphopt.Budget(metric, INFINITE))
                spending = result.report.passes[0].spending
                spent.append(spending.after)
                layers = len(result.report.kept)
            if layers:
                row = (f"{spent[0]:.3g}", f"{spent[1]:.3g}", f"{spent[1] / spent[0]:.2f}")
                table.add_row(name, metric, str(rank), str(layers), *row)
    return table


def refitted_beside_not(models: dict[str, tuple[torch.nn.Module, list[Any], tuple[str, ...]]]) -> Table:
    """Half of the parameters of every convolution of the U-Net, each kind of chain with a refit and without."""
    table = Table(title="U-Net, every layer at half of its parameters, held-out data")
    for column in ("chains", "layers", "refitted", "with refit", "without", "without / with"):
        table.add_column(column, justify="left" if column == "chains" else "right")
    module, data, (metric, *_) = models["U-Net"]
    for conv in ("channels", "spatial", "tucker", "best"):
        results = [
            optimised(module, data, f"low-rank{{ratio=0.5 conv={conv} refit={on}}}", graphopt.Budget(metric, INFINITE))
            for on in ("true", "false")
        ]
        spent = [result.report.passes[0].spending.after for result in results]
        refitted = sum("refitted to the split model" in note for note in results[0].report.passes[0].notes)
        row = (f"{spent[0]:.4g}", f"{spent[1]:.4g}", f"{spent[1] / spent[0]:.3f}")
        table.add_row(conv, str(len(results[0].report.kept)), str(refitted), *row)
    return table


def within_budgets(models: dict[str, tuple[torch.nn.Module, list[Any], tuple[str, ...]]]) -> Table:
    """Ranks by budget alone."""
    table = Table(title="ranks chosen by the budget, all kinds of chains, held-out data")
    for column in ("model", "metric", "budget", "spent", "layers", "FLOPs", "parameters", "worst predicted - measured"):
        table.add_column(column, justify="left" if column in ("model", "metric") else "right")
    for name, (module, data, (metric, *_)) in models.items():
        for limit in (0.01, 0.05):
            result = optimised(module, data, "low-rank", graphopt.Budget(metric, limit))
            record = result.report.passes[0]
            worst = max((abs(a / b - 1) for a, b in map(_pair, _errors(result))), default=0.0)
            table.add_row(
                name, metric, f"{limit:g}", f"{record.spending.after:.3g}", str(len(result.report.kept)),
                _share(record.before.flops, record.after.flops),
                _share(record.before.parameters, record.after.parameters), f"{worst:.1e}",
            )  # fmt: skip
    return table


def optimised(module: torch.nn.Module, data: list[Any], spec: str, budget: Any) -> Any:
    return graphopt.optimize(module, [spec], example_inputs=data[0], budget=budget, calibration=data)


def _errors(result: Any) -> list[str]:
    """Predicted and measured error of each layer, as the report prints them."""
    lines = [n for n in result.report.passes[0].notes if "predicted error" in n]
    return [" = ".join(_numbers(line)) for line in lines]


def _numbers(line: str) -> list[str]:
    predicted, measured = line.split("predicted error ")[-1].split(", measured ")
    return [predicted.split()[-1], measured.split(",")[0]]


def _pair(text: str) -> tuple[float, float]:
    a, b = text.split(" = ")
    return float(a), float(b)


def _share(before: int | None, after: int | None) -> str:
    return "unknown" if not before or after is None else f"{after / before - 1:+.1%}"


if __name__ == "__main__":
    typer.run(main)
