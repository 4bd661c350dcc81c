"""The ops of a program in torch_xla against torch: the check of `op_check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch_xla
from torch.export.exported_program import ExportedProgram

from graphopt.backends.xla.lazy_graph import fetched, on_device
from graphopt.backends.xla.op_check import Case, OpCheck
from graphopt.ir.fx.tensors import to_numpy


class LazyCheck(OpCheck):
    """Runs ops on the device of torch_xla; those of a portion are compiled together."""

    def is_op(self, node: torch.fx.Node) -> bool:
        return isinstance(node.target, torch._ops.OpOverload)

    def results(self, cases: Sequence[Case]) -> list[list[Any] | str]:
        recorded = [_recorded(case) for case in cases]
        pending = [x for own in recorded if not isinstance(own, str) for x in own if isinstance(x, torch.Tensor)]
        ready = iter(fetched(pending))
        return [own if isinstance(own, str) else [_array(x, ready) for x in own] for own in recorded]


def _array(result: Any, ready: Iterator[torch.Tensor]) -> Any:
    return to_numpy(next(ready)) if isinstance(result, torch.Tensor) else None


def check_ops(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> tuple[int, list[torch.Tensor]]:
    """How many ops were compared, of distinct sizes, dtypes and attributes, and what `program` gives in torch.

    Raises:
        UnsupportedError: ops differ, naming all of them, their operands and by how much.
    """
    check = LazyCheck()
    expected = check.run(program, inputs)
    check.compare()
    return len(check.seen), expected


def _recorded(case: Case) -> list[Any] | str:
    """The results of the op on the device, or why it has none there."""
    device = torch_xla.device()
    args, kwargs = case.called_with([x.to(device) for x in case.operands])
    try:
        own = on_device(case.target, args, kwargs)
    except Exception as error:  # torch_xla raises whatever it does
        return f"fails in torch_xla: {error}"
    results = list(own) if isinstance(own, list | tuple) else [own]
    for result, expected in zip(results, case.expected, strict=True):
        if isinstance(result, torch.Tensor) and isinstance(expected, torch.Tensor) and result.dtype != expected.dtype:
            return f"is {result.dtype} in torch_xla and {expected.dtype} in torch"
    return results
