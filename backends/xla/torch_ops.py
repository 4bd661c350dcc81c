"""What is known of torch's ops on XLA, whichever way they get there."""

from __future__ import annotations

from typing import Any

import torch
from torch._decomp import get_decompositions

RANDOM = ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial",
          "normal", "uniform", "exponential", "native_dropout", "dropout")  # fmt: skip
"""Ops that draw random numbers: XLA's generators give others than torch's, so that no check could hold them equal."""

POSITIONS = frozenset({"topk", "sort", "argsort", "argmax", "argmin", "max", "min", "kthvalue", "median", "mode",
                       "cummax", "cummin", "nonzero", "max_pool2d_with_indices"})  # fmt: skip
"""Ops whose integer results are positions in an axis."""


def is_random(target: Any) -> bool:
    """Whether an op draws random numbers."""
    packet = getattr(target, "overloadpacket", None)
    return packet is not None and packet.__name__.rstrip("_") in RANDOM


def is_unwritten(target: Any) -> bool:
    """Whether an op gives memory that nobody has written, whose numbers mean nothing."""
    packet = getattr(target, "overloadpacket", None)
    return packet is not None and "empty" in packet.__name__


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
