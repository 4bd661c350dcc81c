"""The pass `fold-constant-channels`: what is the same for every input belongs into the bias of what reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from graphopt.axes.analysis import Axes
from graphopt.axes.check import check_native
from graphopt.axes.constants import Constants, Numbers
from graphopt.axes.free import FreeAxis, free_axes
from graphopt.axes.region import Region, first_run, run_now, stored
from graphopt.axes.zeros import Silence
from graphopt.ir.graph import Call, Graph, Literal, Node, TensorType, Value
from graphopt.ir.weights import FLOATS, Array, ArrayRef
from graphopt.pipeline.context import Context
from graphopt.pipeline.pass_ import GraphPass
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.journal import Journal
from graphopt.verify.compare import relative_error

TOLERANCE = 1e-10
"""Relative error between before and after in float64, before the new weights and biases are rounded."""
READERS = ("linear", "matmul", "conv")


@dataclass(frozen=True)
class FoldConstantChannels(GraphPass):
    """Adds what constant channels contribute to the bias of what reads them, and multiplies them by zeros; then
    `drop-zero-channels` removes them.

    With S the indices of an axis at which x does not depend on the input, x_i = c_i: sum_i x_i w_i + b =
    sum_(i not in S) x_i w_i + (b + sum_(i in S) c_i w_i). A channel is constant where its filter is zero, or the scale
    of its norm, and what elementwise ops make of constants is; that is what unstructured pruning and sparse training
    leave behind. Preconditions: the axis is free (see `prune`) and without indices in S no statistic changes; every
    layer that sums over it can be given a bias, is no convolution that pads (its border would be another), and has a
    weight of its own. Inputs are finite.

    Contract: rounding. In float64 the part of the graph that the axis touches computes the same before and after, and
    what is stored computes it natively.

    Source: zero-invariant groups, Chen et al. 2021 (Only Train Once, arXiv 2107.07467), section 3, whose groups have to
    be zero; a constant is zero up to a bias.
    """

    name: ClassVar[str] = "fold-constant-channels"
    contract: ClassVar[str] = "Rounding: a sum is split in two, one of which is computed once"

    def run(self, context: Context) -> None:
        done: set[str] = set()
        while self._fold_next(context, done):
            pass

    def _fold_next(self, context: Context, done: set[str]) -> bool:
        """Fold the next axis that has constant indices; the graph may have other nodes then."""
        axes = Axes(context.model.main)
        for axis in free_axes(axes):
            if context.ledger.exhausted:
                return False
            if axis.name in done:
                continue
            done.add(axis.name)
            folds = _folds(axes, axis)
            if not folds:
                continue
            names = tuple(axes.graph.node_name(fold.call.node) for fold in folds)
            if context.apply("constant-channels", names, partial(_fold, axes, axis, folds, context.verify)) is not None:
                count = int(np.any([fold.constant for fold in folds], axis=0).sum())
                context.notes.append(
                    f"{axis.name}: {count} of {axis.size} are constant, folded into {', '.join(names)}"
                )
                return True
        return False


class Fold(NamedTuple):
    """What becomes of a layer that sums over an axis."""

    call: Call
    constant: Array
    """[size], truth values: the indices that are folded."""
    weight: Value
    new_weight: Array
    """In float64, as all new numbers."""
    delta: Numbers
    """[out]: what is added to the bias."""


def _folds(axes: Axes, axis: FreeAxis) -> list[Fold]:
    """All layers that sum over the axis, if that makes indices superfluous; else none."""
    constants = Constants(axes, axis.leaf, axis.nodes)
    found = [fold for node in axis.nodes if (fold := _fold_of(axes, axis, constants, node)) is not None]
    weights = {fold.weight for fold in found}
    return [] if not found or Silence(axes, axis.leaf, axis.nodes, weights.__contains__).coupling else found


def _fold_of(axes: Axes, axis: FreeAxis, constants: Constants, node: Node) -> Fold | None:
    """How one layer can do without the constant indices, if it can."""
    graph = axes.graph
    call = graph.call(node)
    sums = [c for c in axes.contractions.get(node, ()) if axis.leaf in axes.space.leaves(c.term)]
    if not isinstance(call, Call) or not sums or call.op not in READERS or any(call.fields.get("pads") or ()):
        return None
    x, weight = call.operands[:2]
    if x is None or weight is None or isinstance(x, Literal) or not _is_own(axes, weight, node):
        return None
    rows, data = constants.rows(weight, node), stored(graph, weight)
    numbers = constants.numbers(x, node)
    if rows is None or data.dtype not in FLOATS or constants.dim(x, node) is None:
        return None
    constant = np.isfinite(numbers) & rows.any(axis=1)
    if not constant.any() or _bias(axes, call) == "other":
        return None
    places, dim = constants.places(weight, node), constants.dim(weight, node)
    assert dim is not None
    gone = (places >= 0) & constant[places]
    factors = np.where(gone, np.where(constant, numbers, 0.0)[places], 0.0)
    wide = np.asarray(data.numpy(), np.float64)
    lines = np.moveaxis(wide, dim, -1)  # [out, *kernel, in]
    delta = (lines @ factors).reshape(lines.shape[0], -1).sum(axis=1)
    kept = np.moveaxis(lines * ~gone, -1, dim)
    return Fold(call, constant, weight, np.ascontiguousarray(kept), delta)


def _is_own(axes: Axes, value: Value, node: Node) -> bool:
    """Whether a stored tensor is read by `node` alone."""
    graph = axes.graph
    data = graph.constant(value)
    return data is not None and list(graph.users(value)) == [node] and not graph.is_output(value)


def _bias(axes: Axes, call: Call) -> str:
    """Where a bias can be added: to its "own", as a "new" one, or in no such way ("other")."""
    bias = call.operands[2] if len(call.operands) > 2 else None
    if bias is None:
        return "new"
    data = None if isinstance(bias, Literal) else axes.graph.constant(bias)
    return "own" if data is not None and data.ndim == 1 and _is_own(axes, bias, call.node) else "other"


def _fold(axes: Axes, axis: FreeAxis, folds: Sequence[Fold], level: str) -> tuple[bool, Evidence]:
    checked = level in ("match", "model")
    with Journal(axes.graph) as journal:
        ran = first_run(axes, axis.nodes, 0, partial(_run_as_stored, axis.nodes)) if checked else None
        edit = _Edit(axes, journal)
        for fold in folds:
            edit.write(fold)
        unchecked = Evidence("types" if level == "structure" else "none")
        return True, unchecked if ran is None else _compared(ran[0], axis, ran[1], edit)


class _Edit:
    """Weights and biases written, and what stands for nodes and values then."""

    def __init__(self, axes: Axes, journal: Journal) -> None:
        self._graph = axes.graph
        self._axes = axes
        self._journal = journal
        self.ideal: dict[Value, Array] = {}
        """What is stored, as it was before it was rounded."""
        self.nodes: dict[Node, tuple[Node, ...]] = {}
        self.values: dict[Value, Value] = {}

    def write(self, fold: Fold) -> None:
        call = fold.call
        self._store(fold.weight, fold.new_weight)
        if _bias(self._axes, call) == "own":
            bias = call.operands[2]
            assert bias is not None
            self._store(bias, np.asarray(stored(self._graph, bias).numpy(), np.float64) + fold.delta)
            return
        rounded = _rounded(self._graph, fold.weight, fold.delta)
        added = self._journal.add_constant(rounded, f"{self._graph.name(fold.weight)}_bias")
        self.ideal[added] = fold.delta
        (old,) = call.outputs
        assert old is not None
        types = [self._graph.type(old)]
        if call.op == "matmul":
            self._add_after(call, old, added, types)
            return
        operands = [*call.operands[:2], added]
        (new,) = self._journal.insert(call.op, operands, call.fields, before=call.node, types=types)
        self._replace(call.node, old, new, (self._journal.inserted[-1],))
        self._journal.doom([call.node])

    def _add_after(self, call: Call, old: Value, added: Value, types: Sequence[TensorType | None]) -> None:
        """A product has no bias: it is written anew, and a sum after it."""
        (product,) = self._journal.insert("matmul", call.operands, {}, before=call.node, types=types)
        (new,) = self._journal.insert("add", [product, added], {}, before=call.node, types=types)
        self._replace(call.node, old, new, tuple(self._journal.inserted[-2:]))
        self._journal.doom([call.node])

    def _replace(self, node: Node, old: Value, new: Value, nodes: tuple[Node, ...]) -> None:
        self._journal.replace(old, new)
        self.values[old] = new
        self.nodes[node] = nodes

    def _store(self, value: Value, wide: Array) -> None:
        self._journal.store(value, _rounded(self._graph, value, wide))
        self.ideal[value] = wide


def _rounded(graph: Graph, like: Value, wide: Array) -> ArrayRef:
    """`wide` in the dtype of a stored tensor. Raises Rejected if a number becomes infinite by that."""
    dtype = stored(graph, like).numpy().dtype
    with np.errstate(over="ignore"):
        rounded = wide.astype(dtype)
    if not np.array_equal(np.isfinite(rounded), np.isfinite(wide)):
        raise Rejected(f"a number for {graph.name(like)} is larger than any {dtype.name}", Evidence("none"))
    return ArrayRef(rounded)


def _run_as_stored(nodes: Sequence[Node], region: Region) -> list[Array]:
    return run_now(region, nodes, _weights(region), region.outputs)


def _weights(region: Region) -> dict[Value, Array]:
    """The stored tensors in float64, as they are."""
    found = {v: stored(region.graph, v).numpy() for v in region.weights}
    return {v: a.astype(np.float64) if a.dtype.name in FLOATS else a for v, a in found.items()}


def _compared(region: Region, axis: FreeAxis, before: Sequence[Array], edit: _Edit) -> Evidence:
    nodes = [now for node in axis.nodes for now in edit.nodes.get(node, (node,))]
    outputs = [edit.values.get(o, o) for o in region.outputs]
    after = run_now(region, nodes, _weights(region) | edit.ideal, outputs)
    error = max((relative_error(a, b) for a, b in zip(before, after, strict=True)), default=0.0)
    if not error <= TOLERANCE:
        raise Rejected(
            f"before and after differ by {error:.1e} in float64 (allowed {TOLERANCE:.0e})",
            Evidence("executed", 1, error / TOLERANCE, error),
        )
    check_native(region, nodes, outputs)
    return Evidence("executed", 2, error / TOLERANCE, error)
