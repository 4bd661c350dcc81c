"""What a program computes from nothing, such as the frequencies of a timestep embedding: torch's numbers, not those of
the runtime that it is compiled for.

exp(-log(10000) i / n) rounded otherwise, by one unit in the last place, is multiplied by timesteps up to 999 before its
sine is taken, which then differs by 6e-5; TPUs compute exponentials more coarsely still.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.node import map_arg

LARGEST = 1 << 16
"""Elements up to which a result is stored in the compiled program."""
RANDOM = ("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "multinomial",
          "normal", "uniform", "exponential", "native_dropout", "dropout")  # fmt: skip
"""Ops that draw random numbers: other runtimes' generators give others than torch's, so that no check could hold them
equal."""


def constants_of(module: torch.fx.GraphModule) -> dict[torch.fx.Node, torch.Tensor]:
    """The results of ops that neither weights nor inputs reach, run in torch, as far as they are small."""
    found: dict[torch.fx.Node, torch.Tensor] = {}
    for node in module.graph.nodes:
        if _is_pure(node) and all(source in found for source in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), found.__getitem__)
            with torch.no_grad():
                result = node.target(*args, **kwargs)
            if isinstance(result, torch.Tensor) and result.numel() <= LARGEST:
                found[node] = result
    return found


def _is_pure(node: torch.fx.Node) -> bool:
    """Whether it is an op whose result follows from its operands; memory that nobody wrote is none."""
    target = getattr(node.target, "target", node.target)  # behind a VocabularyCall
    is_op = node.op == "call_function" and isinstance(target, torch._ops.OpOverload)
    return is_op and not is_random(target) and not is_unwritten(target)


def is_random(target: Any) -> bool:
    """Whether an op draws random numbers."""
    packet = getattr(target, "overloadpacket", None)
    return packet is not None and packet.__name__.rstrip("_") in RANDOM


def is_unwritten(target: Any) -> bool:
    """Whether an op gives memory that nobody has written, whose numbers mean nothing."""
    packet = getattr(target, "overloadpacket", None)
    return packet is not None and "empty" in packet.__name__
