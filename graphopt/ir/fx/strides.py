"""Whether anything in a graph reads how tensors lie in memory, which rewrites are free to change otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphopt.ir.graph import CannotEmit, Graph

_READERS = ("as_strided", "as_strided_scatter", "view_as_complex", "view.dtype")
"""ATen's ops whose result depends on the strides of their operands, or that take some strides only."""


def reads_strides(region: Graph) -> bool:
    """Whether an op of `region` or of its bodies may depend on strides; of ops of other libraries nothing is known."""
    return any(_may_read(n.target) or any(map(reads_strides, region.subgraphs(n))) for n in region.nodes())


def _may_read(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = str(target)
    return target.namespace not in ("aten", "prims") or name.removeprefix("aten.").startswith(_READERS)


def check_strides(old: fx.Node, new: fx.Node) -> None:
    """Raises CannotEmit if `new` lies otherwise in memory than `old`."""
    before, after = _strides(old), _strides(new)
    if before != after:
        raise CannotEmit(
            f"{old.name} has strides {before} and would have {after}, and something in the graph reads strides"
        )


def _strides(node: fx.Node) -> tuple[str, ...]:
    """As text: to compare symbolic numbers would add guards."""
    value = node.meta.get("val")
    return tuple(map(str, value.stride())) if isinstance(value, torch.Tensor) and not value.is_sparse else ()
