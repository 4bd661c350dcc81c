"""Whether anything in a graph reads how tensors lie in memory, which rewrites are free to change otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from graphopt.ir.graph import CannotEmit

NOTHING, ORDER, STRIDES = range(3)
"""What an operator reads: nothing, the order of the axes in memory, or the strides themselves."""
_OF_STRIDES = ("as_strided", "as_strided_scatter", "view_as_complex", "view.dtype")
"""ATen's ops whose result depends on the strides of their operands, or that take some strides only."""


def read_by(target: Any) -> int:
    """What an operator may read. Those of other libraries take the order that they were traced with, as torch's own
    compiler has it."""
    if not isinstance(target, torch._ops.OpOverload):
        return NOTHING
    if target.namespace not in ("aten", "prims"):
        return ORDER
    return STRIDES if str(target).removeprefix("aten.").startswith(_OF_STRIDES) else NOTHING


def check_kept(read: int, old: fx.Node, new: fx.Node) -> None:
    """Raises CannotEmit if `new` lies otherwise in memory than `old` where that is `read`."""
    before, after = (node.meta.get("val") for node in (old, new))
    if not all(isinstance(value, torch.Tensor) and not value.is_sparse for value in (before, after)):
        return
    kept = _strides(before) == _strides(after) or (read == ORDER and _order(before) == _order(after) is not None)
    if not kept:
        raise CannotEmit(
            f"{old.name} has strides {_strides(before)} and would have {_strides(after)}, and something in the graph "
            "reads strides"
        )


def _strides(value: torch.Tensor) -> list[str]:
    """As text: to compare symbolic numbers would add guards."""
    return [str(stride) for stride in value.stride()]


def _order(value: torch.Tensor) -> list[int] | None:
    """The axes from the outermost in memory to the innermost; None where strides are symbolic."""
    strides = value.stride()
    if not all(type(stride) is int for stride in strides):
        return None
    return sorted(range(len(strides)), key=lambda axis: -strides[axis])
