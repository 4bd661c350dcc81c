"""What a tiny model is, and seeded example inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Example = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs."""


@dataclass(frozen=True)
class TinyModel:
    """A model with random weights, small enough to be pruned in a second."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...] | dict[str, Any]]
    """Positional inputs as a tuple, or keyword inputs as a dict."""

    def build(self) -> tuple[nn.Module, Example]:
        """The module in evaluation mode, and its example inputs: the same ones every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module, inputs = self.make().eval(), self.inputs()
        return module, (inputs, {}) if isinstance(inputs, tuple) else ((), inputs)


def table(*models: TinyModel) -> Mapping[str, TinyModel]:
    return {model.name: model for model in models}


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_ids(batch: int = 2, length: int = 6, vocabulary: int = 64, seed: int = 1) -> Tensor:
    """int64 from 2 on, since 0 and 1 are often padding."""
    return torch.randint(2, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def positional(*shape: int) -> Callable[[], tuple[Any, ...]]:
    """One float input."""
    return lambda: (normal(*shape),)


def image(size: int = 32, channels: int = 3) -> Callable[[], dict[str, Any]]:
    """What vision models of transformers take."""
    return lambda: {"pixel_values": normal(2, channels, size, size)}


def text(length: int = 6) -> Callable[[], dict[str, Any]]:
    """What language models of transformers take."""
    return lambda: {"input_ids": token_ids(length=length)}
