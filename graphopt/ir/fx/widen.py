"""A fragment with its low-precision weights in float32: what it computes when run on float32 inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from graphopt.ir.fx.storage import FxGraph

_LOW = (torch.float16, torch.bfloat16)


def widen_to_float32(fragment: FxGraph) -> FxGraph:
    """`fragment`, which must be a private copy, with every float16 and bfloat16 weight as float32.

    torch's operators take their precision from their operands, so nothing else need change; explicit casts stay.
    """
    for node, weight in fragment.weights.items():
        if weight.tensor.dtype in _LOW:
            fragment.weights[node] = replace(weight, tensor=weight.tensor.detach().float())
    return fragment
