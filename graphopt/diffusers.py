"""Pipelines of diffusers, accelerated: `pipe = graphopt.diffusers.accelerate(pipe)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphopt.errors import MissingExtraError

if TYPE_CHECKING:
    from graphopt.pipeline.pass_ import Pass


def accelerate(
    pipe: Any,
    passes: str | Sequence[str | Pass] = ("hoist", "fuse-attention", "clean-up"),
    *,
    backend: str = "onnxruntime",
    verify: str = "match",
    cache_size: int = 4,
    **backend_options: Any,
) -> Any:
    """A pipeline that is called as `pipe` is and gives the same results, faster.

    The denoising loop of a request runs as one compiled sampling program where it can be said as one. Where it cannot
    (a callback that sees or changes the latents, inpainting, a scheduler that is no table, ...), the pipeline's own
    loop calls the compiled denoiser. `pipe.graphopt_report` says how each request ran, and why.

    Args:
        pipe: a diffusers pipeline with a `unet` or `transformer` and a `scheduler`, on the CPU; a `transformer_2` for
            other timesteps (Wan 2.2) is compiled too. Not changed: its components are shared. Later changes of its
            weights or attention processors are noticed by both.
        passes: for the denoiser; see `graphopt.optimize`.
        backend: that runs it.
        verify: see `graphopt.optimize`.
        cache_size: how many denoisers are kept compiled; one is compiled for each combination of sizes, dtypes and
            guidance on or off, when it is first used.
        backend_options: see the backend.

    Returns:
        A pipeline of the same class with all components, whose scheduler may be set as ever.

    Raises:
        UnsupportedError: no such pipeline; or, when it is called, a denoiser whose arguments cannot be compiled.
        MissingExtraError: torch or diffusers is not installed.
    """
    try:
        import diffusers  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"pipelines need {error.name}: pip install graphopt[diffusers]") from error
    from graphopt.program.pipelines.accelerated import accelerated
    from graphopt.program.pipelines.compiled import Settings

    return accelerated(pipe, Settings(passes, backend, verify, backend_options), cache_size)
