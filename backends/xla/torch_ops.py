"""What is known of torch's ops on XLA, whichever way they get there."""

from __future__ import annotations

from typing import Any

import torch
from torch._decomp import get_decompositions

from graphopt.backends.constants import is_random

POSITIONS = frozenset({"topk", "sort", "argsort", "argmax", "argmin", "max", "min", "kthvalue", "median", "mode",
                       "cummax", "cummin", "nonzero", "max_pool2d_with_indices"})  # fmt: skip
"""Ops whose integer results are positions in an axis."""


def draws(node: torch.fx.Node) -> bool:
    """Whether `node` draws random numbers: by its op, or as attention with dropout."""
    place = 4  # of dropout_p in scaled_dot_product_attention
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return bool(node.args[place] if len(node.args) > place else node.kwargs.get("dropout_p", 0.0))
    return is_random(node.target)


def rules(targets: set[Any]) -> dict[Any, Any]:
    """How torch takes those of `targets` apart that it can."""
    ops = [t for t in targets if isinstance(t, torch._ops.OpOverload)]
    composite = {op: rule for op, rule in torch.export.default_decompositions().items() if op in targets}
    return {**get_decompositions(ops), **composite}


def described(target: Any) -> str:
    """How a message names it."""
    hint = " (XLA draws other numbers than torch: give the noise as an input)" if is_random(target) else ""
    return f"{target}{hint}"
