"""What a program computes from nothing, such as the frequencies of a timestep embedding: torch's numbers, not XLA's.

exp(-log(10000) i / n) rounded otherwise, by one unit in the last place, is multiplied by timesteps up to 999 before its
sine is taken, which then differs by 6e-5; TPUs compute exponentials more coarsely still.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch.fx.node import map_arg

from graphopt.backends.xla.torch_ops import is_random, is_unwritten

T = TypeVar("T")
LARGEST = 1 << 16
"""Elements up to which a result is stored in the compiled program."""


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


def computed(graph: torch.fx.Graph, results: Iterable[T]) -> list[T]:
    """Those of the results of `graph` that it computes. Numbers and texts that a model returns are part of its program,
    and XLA would make arrays of them or refuse them."""
    return [
        result
        for result, value in zip(results, graph.output_node().args[0], strict=True)
        if isinstance(value, torch.fx.Node)
    ]


def _is_pure(node: torch.fx.Node) -> bool:
    """Whether it is an op whose result follows from its operands; memory that nobody wrote is none."""
    target = getattr(node.target, "target", node.target)  # behind a VocabularyCall
    is_op = node.op == "call_function" and isinstance(target, torch._ops.OpOverload)
    return is_op and not is_random(target) and not is_unwritten(target)
