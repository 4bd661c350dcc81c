"""What leaves the sampling loop of published denoisers, without their weights.

    python -m benchmarks.hoist [--rows N] [MODEL ...]

Builds the published configurations of diffusers on the meta device, traces them, and runs `hoist`. Prints what share of
the parameters leaves the loop, nodes and FLOPs by the stage at which they are known, the bytes that are kept for the
steps with the cost model and without it, and the time taken. Everything is float32; nothing is executed.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.table import Table

import graphopt
from benchmarks.console import wide_console
from graphopt.passes.hoist import Hoist
from graphopt.pipeline.report_table import scaled
from graphopt.program.body import Body
from graphopt.program.stages import Stage, StageSize, input_stages, stages, summary, type_bytes


@dataclass(frozen=True)
class Published:
    """A denoiser as it was published."""

    make: Callable[[Any], Any]
    """From the module `diffusers`."""
    inputs: Callable[[Any], dict[str, Any]] | None = None
    """Example inputs from the module `torch`; None where the config decides them."""
    expected: float = 0.0
    """Share of the parameters that a dependence analysis made by hand found."""


def _sdxl(d: Any) -> Any:
    return d.UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, use_linear_projection=True,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20],
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def _pixart(d: Any) -> Any:
    return d.PixArtTransformer2DModel(
        sample_size=128, interpolation_scale=2, use_additional_conditions=False, caption_channels=4096
    )


def _dit(d: Any) -> Any:
    return d.DiTTransformer2DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32,
        num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
    )  # fmt: skip


def _sd3(d: Any) -> Any:
    return d.SD3Transformer2DModel(
        sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
        caption_projection_dim=1536, pooled_projection_dim=2048, out_channels=16, pos_embed_max_size=192,
    )  # fmt: skip


def _wan(d: Any) -> Any:
    return d.WanTransformer3DModel(num_attention_heads=12, attention_head_dim=128, ffn_dim=8960, num_layers=30)


def _wan_inputs(torch: Any) -> dict[str, Any]:
    """832 x 480 pixels, 81 frames."""
    return {
        "hidden_states": torch.empty(1, 16, 21, 60, 104),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, 512, 4096),
    }


MODELS: Mapping[str, Published] = {
    "SD 1.5": Published(lambda d: d.UNet2DConditionModel(sample_size=64, cross_attention_dim=768), expected=0.05),
    "SDXL": Published(_sdxl, expected=0.14),
    "PixArt-Sigma": Published(_pixart, expected=0.15),
    "DiT-XL/2": Published(_dit, expected=0.40),
    "SD3-medium": Published(_sd3, expected=0.33),
    "FLUX.1-dev": Published(lambda d: d.FluxTransformer2DModel(guidance_embeds=True), expected=0.28),
    "Wan2.1-1.3B": Published(_wan, _wan_inputs, expected=0.12),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one denoiser."""

    parameters: int
    left_loop: float
    """Share of the parameters that no step reads any more."""
    fixed: float
    """Share of those that no input decides, as a table of position embeddings that is cropped: any constant folding
    frees them, so the hand count has them not."""
    stages: Mapping[Stage, StageSize]
    weighed: tuple[int, int]
    """Bytes kept by the prologue, and by all rows of the table."""
    unweighed: tuple[int, int]
    trace_seconds: float
    hoist_seconds: float


def measure(model: Published, rows: int) -> Outcome:
    """Trace one denoiser on the meta device and hoist it with and without the cost model."""
    import diffusers
    import torch

    started = time.perf_counter()
    with torch.device("meta"):
        module = model.make(diffusers).eval()
        example = None if model.inputs is None else model.inputs(torch)
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    program = graphopt.Sampler(module, scheduler, rows, example_inputs=example)
    body = program.bodies["denoiser"]
    before = _parameters(body)
    sizes = summary(stages(body.step.model.main, input_stages(body.step)))
    traced = time.perf_counter()
    weighed = graphopt.optimize(program, [Hoist()], verify="structure").program.bodies["denoiser"]
    hoisted = time.perf_counter()
    unweighed = graphopt.optimize(program, [Hoist(weigh=False)], verify="structure").program.bodies["denoiser"]
    return Outcome(
        parameters=before,
        left_loop=1 - _parameters(weighed) / before,
        fixed=sizes[Stage.MODEL].parameters / before,
        stages=sizes,
        weighed=_kept(weighed, rows),
        unweighed=_kept(unweighed, rows),
        trace_seconds=traced - started,
        hoist_seconds=hoisted - traced,
    )


def _parameters(body: Body) -> int:
    return sum(elements for _, elements, _ in body.step.model.weights())


def _kept(body: Body, rows: int) -> tuple[int, int]:
    graphs = [None if unit is None else unit.model.main for unit in (body.prologue, body.table)]
    sizes = [0 if g is None else sum(type_bytes(g.type(v)) or 0 for v in g.outputs()) for g in graphs]
    return sizes[0], sizes[1] * rows


def table(outcomes: Mapping[str, Outcome], rows: int) -> Table:
    """One line a model."""
    shown = Table(title=f"What leaves the loop of {rows} steps (float32; kept = prologue + table of all rows)")
    shown.add_column("model", no_wrap=True)
    for title in ("parameters", "leave", "M", "others", "by hand", "nodes M T C TC step"):
        shown.add_column(title, justify="right")
    for title in ("FLOPs M+C, T+TC", "MB kept", "MB kept unweighed", "trace, hoist"):
        shown.add_column(title, justify="right")
    for name, outcome in outcomes.items():
        shown.add_row(
            name,
            scaled(outcome.parameters),
            f"{outcome.left_loop:.1%}",
            f"{outcome.fixed:.1%}",
            f"{outcome.left_loop - outcome.fixed:.1%}",
            f"{MODELS[name].expected:.0%}",
            " ".join(str(s.nodes) for s in outcome.stages.values()),
            _flops(outcome.stages),
            _bytes(outcome.weighed),
            _bytes(outcome.unweighed),
            f"{outcome.trace_seconds:.0f}, {outcome.hoist_seconds:.1f} s",
        )
    shown.caption = (
        "leave = M + others; M known with the model, T with the timestep, C with the conditions, TC with both; "
        f"peak memory {scaled(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)}B"
    )
    return shown


def _flops(sizes: Mapping[Stage, StageSize]) -> str:
    total = sum(s.flops or 0 for s in sizes.values())

    def share(*which: Stage) -> float:
        return sum(sizes[s].flops or 0 for s in which) / total

    early = share(Stage.MODEL, Stage.REQUEST)
    return f"{early:.2%}, {share(Stage.SCHEDULE, Stage.SCHEDULE_REQUEST):.2%}"


def _bytes(kept: tuple[int, int]) -> str:
    return " + ".join(f"{size / 1e6:.1f}" for size in kept)


def main(
    models: Annotated[list[str] | None, typer.Argument(help="Names as printed; all if none is given.")] = None,
    rows: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """Print the table; exit code 1 if a share is more than a hundredth away from the hand count."""
    console = wide_console()
    outcomes: dict[str, Outcome] = {}
    for name in models or MODELS:
        if name not in MODELS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(MODELS)}")
        outcomes[name] = measure(MODELS[name], rows)
        gc.collect()
    console.print(table(outcomes, rows))
    if any(abs(o.left_loop - o.fixed - MODELS[n].expected) > 0.01 for n, o in outcomes.items()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
