"""The pass `drop-zero-channels`: what is zero whatever the input, or multiplied by zeros only, need not be computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import FreeAxis, free_axes
from graphopt.axes.terms import Mask
from graphopt.axes.zeros import Silence
from graphopt.ir.graph import Value
from graphopt.pipeline.context import Context
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.journal import Journal


@dataclass(frozen=True)
class DropZeroChannels(GraphPass):
    """Removes channels, heads and hidden units that contribute nothing: their results are zero for every input, as the
    slices that compute them are, or all that reads them multiplies them by zeros.

    With S the indices of an axis at which some stored tensors have zero slices: if zeros in these tensors alone make
    every sum over the axis zero at S, then sum_i a_i b_i = sum_(i not in S) a_i b_i, and S can go. Preconditions: the
    axis is free (see `prune`), and no statistic of a norm and no softmax is taken over it, as these count their terms.
    Such channels come of unstructured pruning, of training with group sparsity, and of masks that were folded into
    weights.

    Contract: rounding. Sums lose terms that are zero, so only the order of addition may change. In float64 the part of
    the graph that an axis touches computes the same before and after, and a wrong choice of slices must be seen.

    Source: zero-invariant groups, Chen et al. 2021 (Only Train Once, arXiv 2107.07467), section 3.
    """

    name: ClassVar[str] = "drop-zero-channels"
    contract: ClassVar[str] = "Rounding: sums lose terms that are zero"

    def run(self, context: Context) -> None:
        axes = Axes(context.model.main)
        checked = context.verify in ("match", "model")
        for axis in free_axes(axes):
            keep = _needed(axes, axis)
            if keep.all() or context.ledger.exhausted:
                continue
            nodes = tuple(axes.graph.node_name(n) for n in axes.current(axis.nodes))
            left = context.apply("zero-channels", nodes, partial(_shorten, axes, axis, keep, checked, context.verify))
            if left is not None:
                context.notes.append(f"{axis.name}: {axis.size} → {left}, the others contribute nothing")


def _shorten(axes: Axes, axis: FreeAxis, keep: Mask, checked: bool, level: str) -> tuple[int, Evidence]:
    evidence = shorten_checked(axes, axis, keep, Journal(axes.graph), check=checked, lossless=True)
    unchecked = Evidence("types" if level == "structure" else "none")
    return int(keep.sum()), evidence if checked else unchecked


def _needed(axes: Axes, axis: FreeAxis) -> Mask:
    """The indices that contribute something; the first one if none does, since an axis keeps one."""
    by_pattern: defaultdict[tuple[bool, ...], list[int]] = defaultdict(list)
    values = list(dict.fromkeys(m.value for m in axis.members))
    zero = np.stack([_zero_slices(axes, axis, v) for v in values])
    for index, pattern in enumerate(zip(*zero.tolist(), strict=True)):
        if any(pattern):
            by_pattern[pattern].append(index)
    keep = np.ones(axis.size, bool)
    nodes = axes.current(axis.nodes)
    for pattern, indices in by_pattern.items():
        tensors = {value for value, is_zero in zip(values, pattern, strict=True) if is_zero}
        if not Silence(axes, axis.leaf, nodes, tensors.__contains__).coupling:
            keep[indices] = False
    if not keep.any():
        keep[0] = True
    return keep


def _zero_slices(axes: Axes, axis: FreeAxis, value: Value) -> Any:
    """For each index of the axis, whether a stored tensor is zero in its slices, in every dimension that has it."""
    stored = axes.graph.constant(value)
    assert stored is not None
    data = np.abs(stored.numpy().astype(np.float64))
    found = np.ones(axis.size, bool)
    for dim in _dims_with(axes, axis, value):
        places = axes.space.places(axes.dims(value)[dim], axis.leaf)
        largest = np.moveaxis(data, dim, 0).reshape(len(places), -1).max(axis=1, initial=0.0)
        own = places >= 0
        taken = np.bincount(places[own], ~(largest[own] == 0.0), minlength=axis.size)
        found &= taken == 0
    return found


def _dims_with(axes: Axes, axis: FreeAxis, value: Value) -> Sequence[int]:
    return [m.dim for m in axis.members if m.value == value]
