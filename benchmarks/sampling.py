"""Times whole sampling loops: 20 DPM++ steps with guidance, beside what people run today, interleaved.

    python -m benchmarks.sampling [sd-like] [digits-unet] [digits-dit] [--rounds N] [--threads N] [--no-compile]
        [--no-xla]

Peers: (i) diffusers' loop around the torch module, (ii) the same around torch.compile, (iii) the same around a plain
onnxruntime session of the exported module, and for the digits' U-Net a StableDiffusionPipeline around such a session
of the U-Net within. Ours: exact passes only, compiled with `program.lower("onnxruntime")`, and
with `program.lower("xla")`: on one device, and with more than one thread on two, one for each branch of the guidance.
XLA takes as many threads for an op of a device as the environment's NPROC says, 1 unless it is set. Everyone has a
process of its own and starts from the same noise; the largest difference to (i) is printed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import typer
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from rich.table import Table

import graphopt
from benchmarks.alone import Alone, interleave_alone
from benchmarks.console import wide_console
from benchmarks.interleave import Timing, paired_ratio
from graphopt.program.guidance import Guidance
from graphopt.tools.digits.data import NULL_CLASS
from graphopt.tools.digits.models import load_dit, load_unet
from graphopt.tools.digits.sampling import noise

STEPS = 20
SCALE = 7.5
LAYERS = ("fuse-upsampling", "split-concats", "absorb-projections")
PASSES = (*LAYERS, "share-guidance", "hoist", "batch-tables", "fuse-attention", "clean-up")
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A denoiser, called as module(sample, timestep, condition), and one request."""

    name: str
    module: torch.nn.Module
    condition_name: str
    noise: torch.Tensor
    condition: torch.Tensor
    negative: torch.Tensor
    lead: int = 20
    """Samplings before each timed one. After the others had the caches, the first take up to twice as long."""

    @property
    def both(self) -> torch.Tensor:
        return torch.cat([self.negative, self.condition])


def sd_like() -> Case:
    """142 M parameters, 63 GFLOPs a call with guidance: Stable Diffusion's U-Net at 128 channels and 32×32."""
    torch.manual_seed(0)
    module = UNet2DConditionModel(sample_size=32, block_out_channels=(128, 256, 512, 512), cross_attention_dim=768)
    noise, text, negative = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 768), torch.randn(1, 77, 768)
    return Case("sd-like", module.eval(), "encoder_hidden_states", noise, text, negative, lead=1)


def digits_unet() -> Case:
    """The pretrained U-Net that graphopt ships."""
    return _digits("digits-unet", load_unet())


def digits_dit() -> Case:
    """The pretrained DiT that graphopt ships."""
    return _digits("digits-dit", load_dit())


def _digits(name: str, module: torch.nn.Module) -> Case:
    return Case(name, module, "class_labels", noise(1, 0), torch.tensor([3]), torch.tensor([NULL_CLASS]))


CASES = {"sd-like": sd_like, "digits-unet": digits_unet, "digits-dit": digits_dit}


def scheduler() -> Any:
    return DPMSolverMultistepScheduler()


def loop(case: Case, predict: Predict) -> torch.Tensor:
    """What a diffusers pipeline does between its text encoder and its decoder."""
    steps = scheduler()
    steps.set_timesteps(STEPS)
    sample = case.noise * steps.init_noise_sigma
    with torch.no_grad():
        for t in steps.timesteps:
            seen = steps.scale_model_input(torch.cat([sample, sample]), t)
            without, with_ = predict(seen, t).chunk(2)
            guided = without + SCALE * (with_ - without)
            sample = steps.step(guided, t, sample, return_dict=False)[0]
    return sample


def eager(case: Case, threads: int) -> Callable[[], torch.Tensor]:
    both = case.both
    return lambda: loop(case, lambda x, t: _prediction(case.module(x, t, both)))


def _prediction(result: Any) -> torch.Tensor:
    """The denoiser's output: a tensor, or the first of what diffusers returns."""
    return result if isinstance(result, torch.Tensor) else result[0]


def compiled(case: Case, threads: int) -> Callable[[], torch.Tensor]:
    both, module = case.both, torch.compile(case.module)
    return lambda: loop(case, lambda x, t: _prediction(module(x, t, both)))


def plain_onnxruntime(case: Case, threads: int) -> Callable[[], torch.Tensor]:
    """The module through torch's exporter, in a session with all of onnxruntime's own optimisations."""
    both, session = case.both, session_of(case.module, case, case.both, threads)
    return lambda: loop(case, lambda x, t: session(x, t, both))


def session_of(module: torch.nn.Module, case: Case, both: torch.Tensor, threads: int) -> Callable[..., torch.Tensor]:
    """An onnxruntime session of `module`, called as it is."""
    import onnxruntime

    example = (torch.cat([case.noise] * 2), torch.tensor(1), both)
    exported: Any = torch.onnx.export(module, example, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(exported.model_proto.SerializeToString(), options)
    names = [i.name for i in session.get_inputs()]

    def run(*given: torch.Tensor) -> torch.Tensor:
        feeds = dict(zip(names, (x.numpy() for x in given), strict=True))
        return torch.from_numpy(session.run(None, feeds)[0])

    return run


class SessionUNet(torch.nn.Module):
    """What a diffusers pipeline takes for its U-Net, computed by an onnxruntime session."""

    def __init__(self, unet: UNet2DConditionModel, case: Case, both: torch.Tensor, threads: int) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, torch.float32, torch.device("cpu")
        self._session = session_of(unet, case, both, threads)

    def forward(self, sample: torch.Tensor, t: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> Any:
        return (self._session(sample, t, encoder_hidden_states),)


def pipeline(case: Case, threads: int) -> Callable[[], torch.Tensor]:
    """A StableDiffusionPipeline, without text encoder and decoder, around the U-Net of the digits in a session."""
    module: Any = case.module
    with torch.no_grad():
        negative, text = module.condition(case.negative), module.condition(case.condition)
    unet = SessionUNet(module.unet, case, torch.cat([negative, text]), threads)
    others = dict.fromkeys(("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    pipe = StableDiffusionPipeline(unet=unet, scheduler=scheduler(), requires_safety_checker=False, **others)
    pipe.set_progress_bar_config(disable=True)
    size = dict(zip(("height", "width"), case.noise.shape[2:], strict=True))
    given = {"prompt_embeds": text, "negative_prompt_embeds": negative, "latents": case.noise, "output_type": "latent"}
    return lambda: pipe(**given, **size, num_inference_steps=STEPS, guidance_scale=SCALE, return_dict=False)[0]


def ours(case: Case, threads: int, passes: Sequence[str] = PASSES) -> Callable[[], torch.Tensor]:
    optimized = graphopt.optimize(program_of(case), passes=list(passes), target="onnxruntime")
    return request(case, optimized.lower("onnxruntime", threads=threads))


def ours_as_it_is(case: Case, threads: int) -> Callable[[], torch.Tensor]:
    return ours(case, threads, ())


def ours_by_xla(case: Case, threads: int) -> Callable[[], torch.Tensor]:
    let_xla_have(1)
    optimized = graphopt.optimize(program_of(case), passes=[*LAYERS, "share-guidance", "hoist", "batch-tables"])
    return request(case, optimized.lower("xla"))


def ours_by_two_devices(case: Case, threads: int) -> Callable[[], torch.Tensor]:
    """Each branch of the guidance on a device of its own, so that they share nothing."""
    let_xla_have(2)
    program = program_of(case, Guidance(SCALE, "calls"))
    optimized = graphopt.optimize(program, passes=[*LAYERS, "hoist", "batch-tables"])
    return request(case, optimized.lower("xla", devices=2, branches=2))


def program_of(case: Case, guidance: Guidance | float = SCALE) -> Any:
    example = {"sample": case.noise, "timestep": torch.tensor(1), case.condition_name: case.condition}
    return graphopt.Sampler(case.module, scheduler(), STEPS, example_inputs=example, guidance=guidance)


def let_xla_have(devices: int) -> None:
    """Before JAX starts: so many devices of the CPU, and ops that wait for no threads but their own."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    os.environ.setdefault("NPROC", "1")


def request(case: Case, run: Any) -> Callable[[], torch.Tensor]:
    given = {case.condition_name: case.condition, f"negative_{case.condition_name}": case.negative}
    return lambda: run(case.noise, **given)


WAYS: dict[str, Callable[[Case, int], Callable[[], torch.Tensor]]] = {
    "diffusers + torch": eager,
    "diffusers + torch.compile": compiled,
    "diffusers + onnxruntime": plain_onnxruntime,
    "StableDiffusionPipeline + onnxruntime": pipeline,
    "graphopt, no pass": ours_as_it_is,
    "graphopt": ours,
    "graphopt, xla": ours_by_xla,
    "graphopt, xla, two devices": ours_by_two_devices,
}
REFERENCE = next(iter(WAYS))


def made(way: str, case: str, threads: int) -> Callable[[], Any]:
    """One way of sampling a case, as a job that gives the sample as an array."""
    torch.set_num_threads(threads)
    run = WAYS[way](CASES[case](), threads)
    return lambda: run().numpy()


def ways(case: str, threads: int, compile_: bool, xla: bool) -> list[str]:
    """Those that are run."""
    left_out = {
        "diffusers + torch.compile": not compile_,
        "StableDiffusionPipeline + onnxruntime": case != "digits-unet",
        "graphopt, xla": not xla,
        "graphopt, xla, two devices": not xla or threads == 1,
    }
    return [way for way in WAYS if not left_out.get(way, False)]


def main(
    cases: Annotated[list[str] | None, typer.Argument(help=f"Among {', '.join(CASES)}; all without one.")] = None,
    rounds: Annotated[int, typer.Option(help="Timed samplings of each candidate.")] = 7,
    threads: Annotated[int, typer.Option(help="Threads of torch and of every session.")] = 2,
    compile_: Annotated[bool, typer.Option("--compile/--no-compile", help="Run torch.compile too.")] = True,
    xla: Annotated[bool, typer.Option(help="Run the backend xla too.")] = True,
) -> None:
    """Print median times and ratios of whole sampling loops."""
    console = wide_console()
    for name in cases or list(CASES):
        case = CASES[name]()
        with ExitStack() as processes:
            jobs = {
                way: processes.enter_context(closing(Alone(made, way, name, threads)))
                for way in ways(name, threads, compile_, xla)
            }
            samples = {way: job() for way, job in jobs.items()}
            timings = interleave_alone(jobs, rounds=rounds, lead=case.lead)
        errors = {way: relative(samples[REFERENCE], sample) for way, sample in samples.items()}
        console.print(table(case, timings, errors, rounds, threads))


def relative(expected: Any, got: Any) -> float:
    return float(abs(got - expected).max() / abs(expected).max())


def table(case: Case, timings: dict[str, Timing], errors: dict[str, float], rounds: int, threads: int) -> Table:
    parameters = sum(p.numel() for p in case.module.parameters())
    shown = Table(
        title=f"{case.name}: {parameters / 1e6:.1f} M parameters, {STEPS} DPM++ steps with guidance, median of "
        f"{rounds} rounds, {threads} thread(s)",
        box=None,
    )
    fastest = min((way for way in timings if way.startswith("graphopt")), key=lambda way: timings[way].median)
    for column in ("", "ms a sampling", "times as long as graphopt", f"as {fastest}", "largest error"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, timing in timings.items():
        ratios = ["" if name == own else str(paired_ratio(timing, timings[own])) for own in ("graphopt", fastest)]
        shown.add_row(name, f"{1e3 * timing.median:.1f}", *ratios, f"{errors[name]:.1e}")
    return shown


if __name__ == "__main__":
    typer.run(main)
