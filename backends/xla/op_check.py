"""Every op of a program on XLA against torch, in isolation and on numbers: kernels that are silently wrong exist.

The program is run once in torch on a CPU; each op that is met with new sizes, dtypes and attributes is run on XLA too,
on the very operands that it had in torch, and compared within the bound of `bound`. Sorts and selections may put equal
numbers into different order: positions that differ have to point at equal numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.export.exported_program import ExportedProgram
from torch.utils import _pytree as pytree

from graphopt.backends.constants import is_unwritten
from graphopt.backends.xla.bound import difference
from graphopt.backends.xla.torch_ops import POSITIONS
from graphopt.backends.xla.weights import arguments, weights_of
from graphopt.errors import UnsupportedError
from graphopt.ir.fx.tensors import to_numpy

PORTION = 1 << 28
"""Bytes of operands from where on the ops that were met are compared; they are compiled together, which takes a fifth
of the time that it takes one by one."""


@dataclass(frozen=True)
class Verdict:
    """What came of one comparison."""

    nodes: list[torch.fx.Node]
    """The first is the one that was compared; the others have the same sizes, dtypes and attributes."""
    sizes: str
    reason: str | None
    """How it differs; None if it does not."""

    def __str__(self) -> str:
        return f"{self.nodes[0].name} ({self.nodes[0].target}) of operands {self.sizes} {self.reason or 'agrees'}"


@dataclass(frozen=True)
class Case:
    """One op with its operands and what torch makes of them."""

    nodes: list[torch.fx.Node]
    leaves: list[Any]
    structure: Any
    expected: list[Any]

    @property
    def target(self) -> Any:
        return self.nodes[0].target

    @property
    def places(self) -> list[int]:
        return [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]

    @property
    def operands(self) -> list[torch.Tensor]:
        return [self.leaves[i] for i in self.places]

    def called_with(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the op with `tensors`, of whatever kind, in the place of its operands."""
        filled = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = pytree.tree_unflatten(filled, self.structure)
        return args, kwargs

    def judge(self, own: Sequence[Any]) -> str | None:
        """How the results `own` differ from torch's."""
        pairs = [(to_numpy(e), np.asarray(o)) for e, o in zip(self.expected, own, strict=False)
                 if isinstance(e, torch.Tensor) and o is not None]  # fmt: skip
        if is_unwritten(self.target):
            pairs = [(np.zeros_like(e), np.zeros_like(o)) for e, o in pairs]
        for number, (reference, array) in enumerate(pairs):
            reason = difference(reference, array)
            if reason is not None and not (number > 0 and self._points_at(array, pairs[0][0])):
                return f"differs from torch: {reason}"
        return None

    def _points_at(self, positions: Any, chosen: Any) -> bool:
        """Whether `positions`, the second result of a sort or selection, are where `chosen`, its first, is."""
        args, kwargs = pytree.tree_unflatten(self.leaves, self.structure)
        is_op = isinstance(self.target, torch._ops.OpOverload)
        declared = self.target._schema.arguments if is_op else []
        names = [argument.name for argument in declared]
        if "dim" not in names or self.target.overloadpacket.__name__ not in POSITIONS:
            return False
        place = names.index("dim")
        axis = args[place] if place < len(args) else kwargs.get("dim", declared[place].default_value)
        x = to_numpy(args[0])
        if positions.ndim < x.ndim:
            positions, chosen = (np.expand_dims(a, axis) for a in (positions, chosen))
        return np.array_equal(np.take_along_axis(x, positions, axis), chosen, equal_nan=chosen.dtype.kind == "f")


class OpCheck(ABC):
    """The ops of one program or of several: each that is met with other sizes, dtypes or attributes is compared."""

    def __init__(self) -> None:
        self.seen: dict[Any, list[torch.fx.Node]] = {}
        """The nodes of each op, by what tells compared ops apart."""
        self._cases: list[Case] = []
        self._verdicts: list[Verdict] = []

    def run(self, program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> list[Any]:
        """What `program` gives in torch; its ops are collected, and judged from a number of bytes on."""
        args = arguments(program.graph_signature.input_specs, weights_of(program), inputs)
        return list(_Collector(program.graph_module, self).run(*args, enable_io_processing=False))

    @abstractmethod
    def is_op(self, node: torch.fx.Node) -> bool:
        """Whether `node` runs on XLA as an op of its own."""

    @abstractmethod
    def results(self, cases: Sequence[Case]) -> list[list[Any] | str]:
        """What XLA makes of each, as numpy arrays (None for a result that it has not), or how it fails there."""

    def add(self, node: torch.fx.Node, leaves: list[Any], structure: Any, expected: Any) -> None:
        """Collect an op, unless its like was."""
        target = getattr(node.target, "target", node.target)  # behind a VocabularyCall
        nodes = self.seen.setdefault((target, *map(_key, leaves), str(structure)), [])
        nodes.append(node)
        if len(nodes) == 1:
            results = list(expected) if isinstance(expected, list | tuple) else [expected]
            self._cases.append(Case(nodes, leaves, structure, results))
            if sum(x.nbytes for case in self._cases for x in case.operands) > PORTION:
                self._judge()

    def compare(self) -> None:
        """
        Raises:
            UnsupportedError: ops differ, naming all of them, their operands and by how much.
        """
        if wrong := [str(v) for v in self.verdicts() if v.reason is not None]:
            raise UnsupportedError(f"backend 'xla': {'; '.join(wrong)}; run the model on another backend")

    def verdicts(self) -> list[Verdict]:
        """What came of each op that was collected."""
        self._judge()
        return self._verdicts

    def _judge(self) -> None:
        """Compare what was collected, and forget its operands."""
        cases, self._cases = self._cases, []
        for case, own in zip(cases, self.results(cases), strict=True):
            sizes = ", ".join(str(tuple(x.shape)) for x in case.operands)
            self._verdicts.append(Verdict(case.nodes, sizes, own if isinstance(own, str) else case.judge(own)))


class _Collector(torch.fx.Interpreter):  # type: ignore[misc]
    """Runs a program in torch and hands over its ops."""

    def __init__(self, module: torch.fx.GraphModule, check: OpCheck) -> None:
        super().__init__(module)
        self._check = check

    def run_node(self, node: torch.fx.Node) -> Any:
        with torch.no_grad():
            expected = super().run_node(node)
        has_tensors = any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(expected))
        if node.op == "call_function" and has_tensors and self._check.is_op(node):
            leaves, structure = pytree.tree_flatten(self.fetch_args_kwargs_from_env(node))
            self._check.add(node, leaves, structure, expected)
        return expected


def _key(leaf: Any) -> Any:
    return (leaf.dtype, tuple(leaf.shape)) if isinstance(leaf, torch.Tensor) else repr(leaf)
