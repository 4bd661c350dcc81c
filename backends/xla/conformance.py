"""The ops of a program in JAX against torch: the check of `op_check` with the kernels of `kernels` and `layout`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.export.exported_program import ExportedProgram

from graphopt.backends.xla import layout
from graphopt.backends.xla.arrays import run_once
from graphopt.backends.xla.kernels import kernel_of
from graphopt.backends.xla.op_check import Case, OpCheck
from graphopt.ir.fx.tensors import to_numpy


def check_ops(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> int:
    """Compare; how many ops were, of distinct sizes, dtypes and attributes.

    Raises:
        UnsupportedError: ops differ, naming all of them, their operands and by how much.
    """
    conformance = Conformance()
    conformance.run(program, inputs)
    conformance.compare()
    return len(conformance.seen)


class Conformance(OpCheck):
    """Runs ops in JAX, those that have a rule for arrays with channels last on such, too; those of a portion are
    compiled together."""

    def is_op(self, node: torch.fx.Node) -> bool:
        return kernel_of(node.target) is not None

    def results(self, cases: Sequence[Case]) -> list[list[Any] | str]:
        lasts = [case for case in cases if layout.moves(case.target, case.operands)]
        own = _run_all([(case, False) for case in cases] + [(case, True) for case in lasts])
        found = own[: len(cases)]
        for case, result in zip(lasts, own[len(cases) :], strict=True):
            reason = result if isinstance(result, str) else case.judge(result)
            if reason is not None:
                found[cases.index(case)] = f"{reason} (with channels last)"
        return found


def _run_all(variants: Sequence[tuple[Case, bool]]) -> list[list[Any] | str]:
    """Each op on the operands of its case, or on the same with channels last."""
    failures: dict[int, str] = {}

    def run(feeds: Sequence[Sequence[Any]]) -> list[list[Any]]:
        results = []
        for number, ((case, last), feed) in enumerate(zip(variants, feeds, strict=True)):
            own = _run(case, [layout.moved(x) for x in feed] if last else feed)
            if isinstance(own, str):
                failures[number] = own
            results.append([] if isinstance(own, str) else own)
        return results

    own = run_once(run, [[to_numpy(x) for x in case.operands] for case, _ in variants])
    arrays = [[None if o is None else np.asarray(o) for o in results] for results in own]
    return [failures.get(number) or results for number, results in enumerate(arrays)]


def _run(case: Case, arrays: Sequence[Any]) -> list[Any] | str:
    """The op in JAX, or how it fails there."""
    args, kwargs = case.called_with(arrays)
    kernel = kernel_of(case.target)
    assert kernel is not None
    try:
        own = layout.plain(layout.run(case.target, kernel, args, kwargs))
    except Exception as error:  # kernels raise whatever JAX does
        return f"fails in JAX: {error}"
    return list(own) if isinstance(own, list | tuple) else [own]
