"""Every op of a program on XLA against torch, in isolation and on numbers: kernels that are silently wrong exist.

The program is run once in torch on a CPU; each op that is met with new sizes, dtypes and attributes is run in JAX too,
on the very operands that it had in torch, and compared within the bound of `bound`. Equal numbers may be put into
different order by sorts and selections: positions are compared by what they point at, which is the other result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export.exported_program import ExportedProgram
from torch.utils import _pytree as pytree

from graphopt.backends.xla.arrays import run_once
from graphopt.backends.xla.bound import difference
from graphopt.backends.xla.function import POSITIONS, arguments, weights_of
from graphopt.backends.xla.kernels import kernel_of
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.tensors import to_numpy

PORTION = 1 << 28
"""Bytes of operands from where on the ops that were met are compared; they are compiled together, which takes a fifth
of the time that it takes one by one."""


def check_ops(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> int:
    """Compare; how many ops were, of distinct sizes, dtypes and attributes.

    Raises:
        UnsupportedError: an op differs, naming it, its operands and by how much.
    """
    checker = _Checker(program.graph_module)
    args = arguments(program.graph_signature.input_specs, weights_of(program), inputs)
    checker.run(*args, enable_io_processing=False)
    checker.compare()
    return len(checker.seen)


@dataclass(frozen=True)
class _Case:
    """One op with its operands and what torch makes of them."""

    node: torch.fx.Node
    leaves: list[Any]
    structure: Any
    expected: list[Any]

    @property
    def places(self) -> list[int]:
        return [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]

    @property
    def operands(self) -> list[torch.Tensor]:
        return [self.leaves[i] for i in self.places]

    def run(self, arrays: Sequence[Any]) -> list[Any]:
        """The op in JAX."""
        filled = list(self.leaves)
        for place, array in zip(self.places, arrays, strict=True):
            filled[place] = array
        args, kwargs = pytree.tree_unflatten(filled, self.structure)
        kernel = kernel_of(self.node.target)
        assert kernel is not None
        try:
            own = kernel(*args, **kwargs)
        except Exception as error:  # kernels raise whatever JAX does
            raise UnsupportedError(f"{self} fails in JAX: {error}") from error
        return list(own) if isinstance(own, list | tuple) else [own]

    def require_equal(self, own: Sequence[Any]) -> None:
        positions = getattr(getattr(self.node.target, "overloadpacket", None), "__name__", "") in POSITIONS
        for number, (reference, array) in enumerate(zip(self.expected, own, strict=False)):
            if not isinstance(reference, torch.Tensor) or (positions and number > 0):
                continue
            reason = difference(to_numpy(reference), np.asarray(array))
            if reason is not None:
                raise UnsupportedError(f"{self} differs from torch: {reason}; run the model on another backend")

    def __str__(self) -> str:
        sizes = ", ".join(str(tuple(x.shape)) for x in self.operands)
        return f"backend 'xla': {self.node.name} ({self.node.target}) of operands {sizes}"


class _Checker(torch.fx.Interpreter):  # type: ignore[misc]
    """Runs a program in torch and collects its ops."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: set[Any] = set()
        self.cases: list[_Case] = []

    def run_node(self, node: torch.fx.Node) -> Any:
        with torch.no_grad():
            expected = super().run_node(node)
        kernel = kernel_of(node.target) if node.op == "call_function" else None
        if kernel is None or not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(expected)):
            return expected
        leaves, structure = pytree.tree_flatten(self.fetch_args_kwargs_from_env(node))
        signature = (node.target, *map(_key, leaves), str(structure))
        if signature not in self.seen:
            self.seen.add(signature)
            results = list(expected) if isinstance(expected, list | tuple) else [expected]
            self.cases.append(_Case(node, leaves, structure, results))
            if sum(x.nbytes for case in self.cases for x in case.operands) > PORTION:
                self.compare()
        return expected

    def compare(self) -> None:
        """Compare what was collected, and forget it."""
        cases, self.cases = self.cases, []

        def run(feeds: Sequence[Sequence[Any]]) -> list[list[Any]]:
            return [case.run(feed) for case, feed in zip(cases, feeds, strict=True)]

        own = run_once(run, [[to_numpy(x) for x in case.operands] for case in cases])
        for case, results in zip(cases, own, strict=True):
            case.require_equal(results)


def _key(leaf: Any) -> Any:
    return (leaf.dtype, tuple(leaf.shape)) if isinstance(leaf, torch.Tensor) else repr(leaf)
