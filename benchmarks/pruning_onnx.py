"""Whether a model's ONNX file has the axes that the torch model has.

Axes are the same if they have the same size, are both exact or both coupled, and are at the same places of the same
tensors. The exporter is asked to leave what is computed from weights, or by counting, in the file: else it writes a
tied matrix twice, the standardised weight in the place of the weight, and tables of numbers where the model counts.
A tensor of the file is the torch model's that has its name, or else the same numbers; those that only one side has are
not compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from onnxscript.optimizer import fold_constants, inline, remove_unused_nodes
from onnxscript.rewriter import rewrite

import graphopt
from benchmarks.pruning_inputs import Example
from graphopt.axes.analysis import Axes
from graphopt.axes.free import FreeAxis, free_axes, read_tensors
from graphopt.ir.model import Model
from graphopt.ir.weights import Array


@dataclass(frozen=True)
class Compared:
    """How many axes a torch model and its ONNX file both have, and each alone."""

    same: int
    only_torch: int
    only_onnx: int


def exported(module: torch.nn.Module, example: Example) -> tuple[Model, tuple[str, ...]]:
    """`module` as torch's exporter writes it. If it fails at the attention of transformers' models, their eager form is
    taken, and a line says so; `module` is changed then. Raises whatever the exporter raises."""
    try:
        return _export(module, example), ()
    except Exception as error:  # the exporter wraps whatever goes wrong in several classes of its own
        if not hasattr(module, "set_attn_implementation"):
            raise
        module.set_attn_implementation("eager")
        return _export(module, example), (f"ONNX: exported with eager attention, since otherwise: {root_cause(error)}",)


def _export(module: torch.nn.Module, example: Example) -> Model:
    args, kwargs = example
    made: Any = torch.onnx.export(module, args, kwargs=kwargs or None, dynamo=True, verbose=False, optimize=False)
    weights = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    inline(made.model)
    for _ in range(2):  # what the exporter does too, but for storing equal tensors once
        fold_constants(made.model, onnx_shape_inference=True, should_fold=partial(_may_fold, weights))
        rewrite(made.model)
        remove_unused_nodes(made.model)
    return graphopt.load(made.model_proto)


def _may_fold(weights: Set[str], node: Any) -> bool | None:
    """Not what computes with a weight, nor what counts: those are the model's own, and a file in which they are numbers
    is another model. The rest as the exporter does: shapes, above all, and the order of the gates of an LSTM."""
    made = node.metadata_props.get("pkg.torch.onnx.fx_node", "")
    if "aten.lstm" in made:
        return None
    counts = "aten.arange" in made
    reads_weight = any(value is not None and value.name in weights for value in node.inputs)
    return False if reads_weight or counts else None


def root_cause(error: BaseException) -> str:
    """The first line of what it was caused by."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"


def compare(torch_model: Model, onnx_model: Model) -> tuple[Compared, tuple[str, ...]]:
    """How many axes both have, and a line for each that only one has."""
    ours, theirs = _Side(torch_model), _Side(onnx_model)
    theirs.call_as(ours)
    ours.leave_out_what_is_not_in(theirs)
    left, right = ours.keys(), theirs.keys()
    same = Counter(left.values()) & Counter(right.values())
    alone = [list(_beyond(side, same)) for side in (left, right)]
    details = [f"torch alone: {ours.told(axis, theirs)}" for axis in alone[0]]
    details += [f"ONNX alone: {theirs.told(axis, ours)}" for axis in alone[1]]
    return Compared(same.total(), len(alone[0]), len(alone[1])), tuple(details)


Key = tuple[int, bool, frozenset[Any] | FreeAxis]


def _beyond(keys: Mapping[FreeAxis, Key], common: Counter[Key]) -> Iterator[FreeAxis]:
    """Those of which the other side has none left."""
    left = Counter(common)
    for axis, key in keys.items():
        if not left[key]:
            yield axis
        left[key] -= left[key] > 0


class _Side:
    """The axes of one of the two, and what the tensors that have them are called on both."""

    def __init__(self, model: Model) -> None:
        self.axes = Axes(model.main)
        self.found = free_axes(self.axes)
        self._graph: Any = model.main
        self._values = {self._graph.name(v): v for v in read_tensors(self.axes)}
        self._called: dict[str, str | None] = {name: name for name in self._values}
        """What a tensor of this side is called on both; None if it is this side's alone."""

    def array(self, name: str) -> Array:
        return self._graph.constant(self._values[name]).numpy()  # type: ignore[no-any-return]

    def call_as(self, other: _Side) -> None:
        """Call tensors as `other` does: by name, or else by the numbers in them."""
        by_numbers = {_numbers(other.array(name)): name for name in reversed(other._values)}
        for name in self._values:
            known = name in other._values and self.array(name).size == other.array(name).size
            self._called[name] = name if known else by_numbers.get(_numbers(self.array(name)))

    def leave_out_what_is_not_in(self, other: _Side) -> None:
        there = set(other._called.values())
        self._called = {name: called if called in there else None for name, called in self._called.items()}

    def keys(self) -> dict[FreeAxis, Key]:
        """What makes an axis the same as another; one without a tensor that both have is the same as none."""
        return {axis: (axis.size, axis.exact, frozenset(self._places(axis)) or axis) for axis in self.found}

    def _places(self, axis: FreeAxis) -> Iterator[Any]:
        for member in axis.members:
            called = self._called[member.weight]
            if called is not None:
                term = self.axes.dims(member.value)[member.dim]
                yield called, self.axes.space.places(term, axis.leaf).tobytes()

    def told(self, axis: FreeAxis, other: _Side) -> str:
        """An axis that `other` lacks, and what is known of why."""
        return f"{axis.name} ({axis.size}, {'exact' if axis.exact else 'coupled'}){''.join(self._reasons(axis, other))}"

    def _reasons(self, axis: FreeAxis, other: _Side) -> Iterator[str]:
        own = [m.weight for m in axis.members if self._called[m.weight] is None]
        if own:
            yield f"; only here: {', '.join(own[:3])}"
        called = Counter(c for c in self._called.values() if c is not None)
        twice = [m.weight for m in axis.members if called[self._called[m.weight] or ""] > 1]
        if twice:
            yield f"; stored twice: {', '.join(sorted(set(twice)))}"
        frozen = other.why_frozen({self._called[m.weight] for m in axis.members} - {None}, axis.size)
        if frozen:
            yield f"; there: {', '.join(frozen)}"

    def why_frozen(self, names: Set[str | None], size: int) -> list[str]:
        """Why axes of this size of these tensors must stay."""
        terms = [t for n, v in self._values.items() if self._called[n] in names for t in self.axes.dims(v)]
        leaves = [leaf for term in terms for leaf in self.axes.space.leaves(term) if leaf.size == size]
        return sorted({leaf.frozen for leaf in leaves if leaf.frozen is not None})


def _numbers(array: Array) -> bytes:
    """The numbers in an array, in whatever order."""
    return np.sort(array, axis=None).tobytes()
