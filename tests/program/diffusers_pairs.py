"""A pipeline beside its accelerated copy, and what they give for the same request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tiny_pipelines import ReferenceBackend

import graphopt
from graphopt.diffusers import accelerate

BOUND = 1e-5

def register_backend() -> None:
    """Make the backend known, also after somebody else has emptied the registry of this process."""
    graphopt.register(ReferenceBackend, replace=True)


@dataclass
class Pair:
    plain: Any
    fast: Any

    def use(self, scheduler: Any) -> None:
        """Swap the scheduler of both, as users do it."""
        self.plain.scheduler = scheduler
        self.fast.scheduler = scheduler

    def error(self, seed: int | None = 7, **request: Any) -> float:
        """The largest difference, relative to the largest value."""
        expected, got = images(self.plain, seed, **request), images(self.fast, seed, **request)
        assert expected.shape == got.shape and expected.dtype == got.dtype
        return relative(expected, got)

    @property
    def reason(self) -> str:
        """Why the last request ran step by step; empty if it did not."""
        return self.fast.graphopt_report.last.reason

    @property
    def compiled(self) -> int:
        return len(self.fast.graphopt_report.compiled)


def pair(pipe: Any, **options: Any) -> Pair:
    register_backend()
    return Pair(pipe, accelerate(pipe, **{"passes": "", "backend": "as-it-is", "verify": "off", **options}))


def images(pipe: Any, seed: int | None = 7, **request: Any) -> torch.Tensor:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    given = {"prompt": "red cat", "num_inference_steps": 4, "output_type": "latent", "generator": generator}
    result: torch.Tensor = pipe(**{**given, **request}).images
    return result


def relative(expected: torch.Tensor, got: torch.Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())
