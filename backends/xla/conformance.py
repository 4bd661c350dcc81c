"""Every op of a program on XLA against torch, in isolation and on numbers: kernels that are silently wrong exist.

The program is run once in torch on a CPU; each op that is met with new sizes, dtypes and attributes is run in JAX too,
on the very operands that it had in torch.

Bound: 256 eps of the largest value of the result, eps that of its dtype and at most float32's, and 4 eps of a dtype
with fewer bits than float32; integers, booleans, infinities and NaNs have to be the same. Equal numbers may be put into
different order by sorts and selections: positions are compared by what they point at, which is the other result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import torch
from torch.export.exported_program import ExportedProgram
from torch.utils import _pytree as pytree

from graphopt.backends.xla.arrays import exact_types, from_jax, to_jax
from graphopt.backends.xla.function import POSITIONS, arguments, weights_of
from graphopt.backends.xla.kernels import kernel_of
from graphopt.errors import UnsupportedError

FACTOR = 256
"""Times eps of the largest value: what sums over a few thousand terms in another order may differ by."""
FINAL = 4
"""Times eps of a dtype of fewer bits than float32, in which results are rounded while sums are float32."""
PORTION = 1 << 28
"""Bytes of operands from where on the ops that were met are compared; they are compiled together, which takes a fifth
of the time that it takes one by one."""


def check_ops(program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> int:
    """Compare; how many ops were, of distinct sizes, dtypes and attributes.

    Raises:
        UnsupportedError: an op differs, naming it, its operands and by how much.
    """
    conformance = Conformance()
    conformance.run(program, inputs)
    conformance.compare()
    return len(conformance.seen)


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
            reason = difference(reference, from_jax(array))
            if reason is not None:
                raise UnsupportedError(f"{self} differs from torch: {reason}; run the model on another backend")

    def __str__(self) -> str:
        sizes = ", ".join(str(tuple(x.shape)) for x in self.operands)
        return f"backend 'xla': {self.node.name} ({self.node.target}) of operands {sizes}"


class Conformance:
    """The ops of one program or of several: each that is met with other sizes, dtypes or attributes is compared."""

    def __init__(self) -> None:
        self.seen: set[Any] = set()
        """What tells compared ops apart."""
        self._cases: list[_Case] = []

    def run(self, program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """What `program` gives in torch; its ops are collected, and compared from a number of bytes on."""
        args = arguments(program.graph_signature.input_specs, weights_of(program), inputs)
        return list(_Collector(program.graph_module, self).run(*args, enable_io_processing=False))

    def add(self, case: _Case) -> None:
        """Collect an op, unless its like was."""
        signature = (case.node.target, *map(_key, case.leaves), str(case.structure))
        if signature in self.seen:
            return
        self.seen.add(signature)
        self._cases.append(case)
        if sum(x.nbytes for case in self._cases for x in case.operands) > PORTION:
            self.compare()

    def compare(self) -> None:
        """Compare what was collected, and forget it.

        Raises:
            UnsupportedError: an op differs, naming it, its operands and by how much.
        """
        cases, self._cases = self._cases, []

        def run(feeds: Sequence[Sequence[Any]]) -> list[list[Any]]:
            return [case.run(feed) for case, feed in zip(cases, feeds, strict=True)]

        with exact_types(), jax.default_device(jax.devices("cpu")[0]):
            own = jax.jit(run)([[to_jax(x) for x in case.operands] for case in cases])
        for case, results in zip(cases, own, strict=True):
            case.require_equal(results)


class _Collector(torch.fx.Interpreter):  # type: ignore[misc]
    """Runs a program in torch and hands over its ops."""

    def __init__(self, module: torch.fx.GraphModule, conformance: Conformance) -> None:
        super().__init__(module)
        self._conformance = conformance

    def run_node(self, node: torch.fx.Node) -> Any:
        with torch.no_grad():
            expected = super().run_node(node)
        kernel = kernel_of(node.target) if node.op == "call_function" else None
        if kernel is not None and any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(expected)):
            leaves, structure = pytree.tree_flatten(self.fetch_args_kwargs_from_env(node))
            results = list(expected) if isinstance(expected, list | tuple) else [expected]
            self._conformance.add(_Case(node, leaves, structure, results))
        return expected


def _key(leaf: Any) -> Any:
    return (leaf.dtype, tuple(leaf.shape)) if isinstance(leaf, torch.Tensor) else repr(leaf)


def difference(expected: torch.Tensor, got: torch.Tensor) -> str | None:
    """In what `got` differs from `expected` beyond the bound; None if in nothing."""
    if tuple(expected.shape) != tuple(got.shape):
        return f"sizes {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if expected.numel() == 0:
        return None
    if not (expected.is_floating_point() or expected.is_complex()):
        wrong = int((expected != got.to(expected.dtype)).sum())
        return f"{wrong} of {expected.numel()} numbers" if wrong else None
    kind = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.detach().to(kind).numpy(), got.to(kind).numpy()
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return "infinities or NaNs elsewhere"
    scale = float(np.max(np.abs(a[finite]), initial=0.0))
    worst = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    eps, single = torch.finfo(expected.dtype).eps, torch.finfo(torch.float32).eps
    allowed = (FACTOR * min(eps, single) + (FINAL * eps if eps > single else 0)) * scale
    return None if worst <= allowed else f"by {worst:.3g}, allowed {allowed:.3g}"
