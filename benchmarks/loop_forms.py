"""Times the two forms in which onnxruntime runs a sampling program, interleaved: one Loop, and a session for each row.

    python -m benchmarks.loop_forms [tiny] [small] [digits-unet] [digits-dit] [sd-like] [--rounds N] [--threads N]
        [--cpu]

Beside them diffusers' own loop around a session of the exported denoiser. All start from the same noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from diffusers import UNet2DConditionModel
from rich.table import Table

import graphopt
from benchmarks.console import wide_console
from benchmarks.interleave import Timing, always, interleave, paired_ratio
from benchmarks.sampling import CASES, Case, loop, program_of, relative, request
from graphopt.program.program import Program

Run = Callable[[], torch.Tensor]


def _unet(name: str, size: int, channels: tuple[int, int], width: int) -> Case:
    torch.manual_seed(0)
    module = UNet2DConditionModel(
        sample_size=size, block_out_channels=channels, layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width, attention_head_dim=4,
    )  # fmt: skip
    noise, text, negative = torch.randn(1, 4, size, size), torch.randn(1, 77, width), torch.randn(1, 77, width)
    return Case(name, module.eval(), "encoder_hidden_states", noise, text, negative)


ALL: dict[str, Callable[[], Case]] = {
    "tiny": lambda: _unet("tiny", 8, (8, 16), 12),
    "small": lambda: _unet("small", 16, (32, 64), 32),
    **CASES,
}


def forms(case: Case, threads: int) -> dict[str, Run]:
    program = program_of(case).convert("onnxruntime")
    hoisted = graphopt.optimize(program, passes=["hoist"], target="onnxruntime").program
    runs = {"diffusers + onnxruntime": _in_diffusers(case, program, threads)}
    for form in ("loop", "sessions"):
        runs[form] = _compiled(case, program, form, threads)
        runs[f"{form}, hoisted"] = _compiled(case, hoisted, form, threads)
    return runs


def _compiled(case: Case, program: Program, form: str, threads: int) -> Run:
    return request(case, program.lower("onnxruntime", form=form, threads=threads))


def _in_diffusers(case: Case, program: Program, threads: int) -> Run:
    step = program.bodies["denoiser"].step
    session = graphopt.lower(step.model, "onnxruntime", threads=threads)
    both, dtype = case.both.numpy(), program.interface.timestep.dtype

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        known = {"sample": x.numpy(), "timestep": t.numpy().astype(dtype), "condition": both}
        return torch.from_numpy(session(*(known[feed.kind] for feed in step.feeds))[0])

    return lambda: loop(case, predict)


def main(
    cases: Annotated[list[str] | None, typer.Argument(help=f"Among {', '.join(ALL)}; all without one.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed samplings of each candidate.")] = 9,
    threads: Annotated[int, typer.Option(help="Threads of every session.")] = 1,
    cpu: Annotated[bool, typer.Option("--cpu", help="Count CPU seconds of this process.")] = False,
) -> None:
    """Print median times and ratios of the forms."""
    torch.set_num_threads(threads)
    console = wide_console()
    for name in cases or list(ALL):
        case = ALL[name]()
        candidates = forms(case, threads)
        expected = candidates["diffusers + onnxruntime"]()
        errors = {n: relative(expected, run()) for n, run in candidates.items()}
        clock = time.process_time if cpu else time.perf_counter
        timings = interleave({n: always(run) for n, run in candidates.items()}, rounds=rounds, clock=clock)
        console.print(table(case, timings, errors))


def table(case: Case, timings: dict[str, Timing], errors: dict[str, float]) -> Table:
    parameters = sum(p.numel() for p in case.module.parameters())
    shown = Table(title=f"{case.name}: {parameters / 1e6:.2f} M parameters, guidance in one batch", box=None)
    for column in ("", "ms a sampling", "time relative to sessions", "largest difference"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, timing in timings.items():
        ratio = paired_ratio(timing, timings["sessions"])
        shown.add_row(name, f"{1e3 * timing.median:.1f}", f"{ratio}", f"{errors[name]:.1e}")
    return shown


if __name__ == "__main__":
    typer.run(main)
