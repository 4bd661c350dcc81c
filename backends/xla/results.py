"""Which results of a torch program are computed, and not part of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch

T = TypeVar("T")


def computed(graph: torch.fx.Graph, results: Iterable[T]) -> list[T]:
    """Those of the results of `graph` that it computes. Numbers and texts that a model returns are part of its program,
    and XLA would make arrays of them or refuse them."""
    return [
        result
        for result, value in zip(results, graph.output_node().args[0], strict=True)
        if isinstance(value, torch.fx.Node)
    ]
