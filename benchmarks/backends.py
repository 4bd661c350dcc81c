"""One denoiser on every backend: torch as it is, torch.compile, onnxruntime and XLA, on one core of a CPU.

    python -m benchmarks.backends [--rounds N] [--models NAME ...]

Configurations of diffusers' classes with random weights. Times are processor time, medians of rounds in which all take
turns; ratios are medians of the rounds' ratios of torch to the backend. torch.compile needs a C++ compiler.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import diffusers
import torch
import typer
from rich.table import Table

import graphopt
from benchmarks.console import wide_console

Inputs = dict[str, Any]


def unet() -> tuple[torch.nn.Module, Inputs]:
    model = diffusers.UNet2DConditionModel(
        sample_size=32, layers_per_block=1, block_out_channels=(64, 128), norm_num_groups=8, cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=8,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    inputs = {
        "sample": torch.randn(2, 4, 32, 32),
        "timestep": torch.tensor([3, 900]),
        "encoder_hidden_states": torch.randn(2, 16, 64),
    }
    return model, inputs


def sd3() -> tuple[torch.nn.Module, Inputs]:
    model = diffusers.SD3Transformer2DModel(
        sample_size=32, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=32, num_attention_heads=8,
        joint_attention_dim=128, caption_projection_dim=256, pooled_projection_dim=128, out_channels=4,
        pos_embed_max_size=32,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 32, 32),
        "encoder_hidden_states": torch.randn(2, 16, 128),
        "pooled_projections": torch.randn(2, 128),
        "timestep": torch.tensor([5.0, 900.0]),
    }
    return model, inputs


MODELS: dict[str, Callable[[], tuple[torch.nn.Module, Inputs]]] = {"UNet2DConditionModel": unet, "SD3": sd3}


def backends(model: torch.nn.Module, inputs: Inputs) -> dict[str, Callable[..., Any]]:
    examples = ((), inputs)
    return {
        "torch": model,
        "torch.compile": torch.compile(model),
        "onnxruntime": graphopt.lower(model, "onnxruntime", example_inputs=examples, threads=1),
        "xla": graphopt.lower(model, "xla", example_inputs=examples),
    }


def measured(model: torch.nn.Module, inputs: Inputs, rounds: int) -> dict[str, dict[str, float]]:
    """Of every backend: median ms, the median ratio of torch to it, and its largest difference from torch."""
    runs = backends(model, inputs)
    expected = _first(model(**inputs))
    errors = {}
    for name, run in runs.items():  # Compiles what is compiled at the first call.
        errors[name] = float((_first(run(**inputs)) - expected).abs().max() / expected.abs().max())
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 2):
        for name, run in runs.items():
            started = time.process_time()
            run(**inputs)
            times[name].append(1000 * (time.process_time() - started))
    return {
        name: {
            "ms": statistics.median(times[name][2:]),
            "ratio": statistics.median(a / b for a, b in zip(times["torch"][2:], times[name][2:], strict=True)),
            "error": errors[name],
        }
        for name in runs
    }


def _first(result: Any) -> torch.Tensor:
    found: torch.Tensor = torch.utils._pytree.tree_leaves(result)[0]
    return found


def main(
    rounds: Annotated[int, typer.Option(help="Rounds in which all take turns.")] = 11,
    models: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(MODELS)}.")] = None,
) -> None:
    """Print the table."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    table = Table("model", title="ms on one core, torch / backend, largest difference from torch")
    for column in ("backend", "ms", "ratio", "difference"):
        table.add_column(column, justify="right")
    with torch.no_grad():
        for name in models or MODELS:
            torch.manual_seed(0)
            model, inputs = MODELS[name]()
            for backend, row in measured(model.eval(), inputs, rounds).items():
                table.add_row(name, backend, f"{row['ms']:.4g}", f"{row['ratio']:.2f}", f"{row['error']:.1e}")
    wide_console().print(table)


if __name__ == "__main__":
    typer.run(main)
