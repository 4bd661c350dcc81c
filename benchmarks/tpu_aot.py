"""Denoisers and whole sampling loops compiled for TPUs that are not there: what libtpu says of them. Nothing is run.

    python -m benchmarks.tpu_aot [--chips NAME ...] [--models NAME ...]

Needs the extra tpu, and no TPU. Denoisers are configurations of diffusers' classes with random weights, the samplers
the shipped digit models with 10 steps of DDIM for 4 digits, after `hoist`. In bfloat16 they are what the pass `bf16`
makes of them, with the metric of its budget in the last column. FLOPs and bytes of a loop's body count once. The second
table has libtpu's own count before and after a pass: for `hoist`, of one step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import diffusers
import torch
import typer
from rich.table import Table

import graphopt
from benchmarks.backends import sd3, unet
from benchmarks.console import wide_console
from graphopt.backends.xla.ahead_report import NOT_RUN, AheadReport
from graphopt.tools.digits import models as digits

STEPS = 10
LABELS = [[1, 2, 3, 4], [5, 6, 7, 8]]
DIGITS = (torch.zeros(4, 1, 16, 16), torch.tensor(1), torch.tensor(LABELS[0]))
COLUMNS = ("MFLOP", "MB accessed", "MB peak", "MB arguments", "padding", "fusions", "copies", "loops", "host", "s")


def pixart() -> tuple[torch.nn.Module, dict[str, Any]]:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=8, attention_head_dim=32, in_channels=4, out_channels=8, num_layers=4,
        cross_attention_dim=256, sample_size=32, patch_size=2, caption_channels=128, use_additional_conditions=False,
    )  # fmt: skip
    inputs = {
        "hidden_states": torch.randn(2, 4, 32, 32),
        "encoder_hidden_states": torch.randn(2, 16, 128),
        "timestep": torch.tensor([5, 900]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }
    return model, inputs


def denoiser(make: Callable[[], Any], dtype: str) -> tuple[Any, Any, str]:
    """A model, the inputs to trace it with, and what bfloat16 costs."""
    torch.manual_seed(0)
    model, inputs = make()
    model = model.eval()
    if dtype == "float32":
        return model, ((), inputs), ""
    given = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    result = graphopt.optimize(
        model, "bf16", example_inputs=((), inputs), budget=float("inf"), calibration=[given, given]
    )
    return result, None, _spent(result.report)


def sampler(load: Callable[[], torch.nn.Module], dtype: str) -> tuple[Any, Any, str]:
    """The same of a sampling program."""
    passes = "hoist" if dtype == "float32" else "hoist,bf16"
    conditions = [{"class_labels": torch.tensor(labels)} for labels in LABELS]
    result = graphopt.optimize(_program(load), passes, budget=float("inf"), calibration=conditions)
    return result, None, "" if dtype == "float32" else _spent(result.report)


def _program(load: Callable[[], torch.nn.Module]) -> graphopt.Program:
    return graphopt.Sampler(load(), digits.scheduler(), STEPS, example_inputs=DIGITS)


def _spent(report: Any) -> str:
    spending = [record.spending for record in report.passes if record.spending is not None][-1]
    return f"{spending.metric} {spending.after:.1e}"


MODELS: dict[str, Callable[[str], tuple[Any, Any, str]]] = {
    "UNet2DCondition": lambda dtype: denoiser(unet, dtype),
    "PixArt": lambda dtype: denoiser(pixart, dtype),
    "SD3": lambda dtype: denoiser(sd3, dtype),
    "digits U-Net, loop": lambda dtype: sampler(digits.load_unet, dtype),
    "digits DiT, loop": lambda dtype: sampler(digits.load_dit, dtype),
}


def compiled(model: Any, examples: Any, chip: str) -> AheadReport:
    lowered: Any = graphopt.lower(model, "xla", example_inputs=examples, check=False)
    report: AheadReport = lowered.compile_for(chip).report
    return report


def cells(report: AheadReport) -> list[str]:
    memory = report.memory
    return [
        f"{report.flops / 1e6:,.1f}",
        f"{report.bytes_accessed / 1e6:,.1f}",
        f"{memory['peak'] / 1e6:,.2f}",
        f"{memory['arguments'] / 1e6:,.2f}",
        f"{report.padding.waste:.0%}",
        str(sum(report.fusions.values())),
        str(report.copy_count),
        str(report.loops),
        str(len(report.host_transfers)),
        f"{report.compile_seconds:.1f}",
    ]


def before_and_after() -> dict[str, tuple[tuple[Any, Any], tuple[Any, Any]]]:
    """By pass and model: what is compiled without and with the pass, each with its example inputs."""
    images = (torch.zeros(8, 1, 16, 16),)
    classifier = digits.load_classifier()
    folded = graphopt.optimize(classifier, "fuse-conv-bn", example_inputs=images)
    found: dict[str, Any] = {"fuse-conv-bn, digits classifier": ((classifier, images), (folded, None))}
    for name, load in (("U-Net", digits.load_unet), ("DiT", digits.load_dit)):
        program = _program(load)
        steps = [p.bodies["denoiser"].step.model for p in (program, graphopt.optimize(program, "hoist").program)]
        found[f"hoist, digits {name}, one step"] = ((steps[0], None), (steps[1], None))
    return found


def main(
    chips: Annotated[list[str] | None, typer.Option(help="Topologies; v5e:2x2 and v6e:2x2 unless given.")] = None,
    models: Annotated[list[str] | None, typer.Option(help=f"Of {'; '.join(MODELS)}.")] = None,
) -> None:
    """Print the tables."""
    chips, console = chips or ["v5e:2x2", "v6e:2x2"], wide_console()
    table = Table("model", "dtype", "chip", title=f"What libtpu makes of denoisers and loops ({NOT_RUN})")
    for column in (*COLUMNS, "cost of bfloat16"):
        table.add_column(column, justify="right")
    for name in models or MODELS:
        for dtype in ("float32", "bfloat16"):
            model, examples, cost = MODELS[name](dtype)
            for chip in chips:
                row = cells(compiled(model, examples, chip))
                typer.echo(f"{name}, {dtype}, {chip}: {' '.join(row)} {cost}", err=True)  # it takes minutes
                table.add_row(name, dtype, chip, *row, cost)
    console.print(table)
    passes = Table("pass", "chip", "", title=f"Before and after passes ({NOT_RUN})")
    for column in COLUMNS:
        passes.add_column(column, justify="right")
    for name, sides in before_and_after().items():
        for chip in chips:
            for when, side in zip(("before", "after"), sides, strict=True):
                passes.add_row(name, chip, when, *cells(compiled(*side, chip)))
    console.print(passes)


if __name__ == "__main__":
    typer.run(main)
