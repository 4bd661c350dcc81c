"""What a model would cost with shortened axes, without shortening them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from graphopt.axes.analysis import Axes, Kept
from graphopt.axes.free import FreeAxis
from graphopt.axes.terms import Axis, Mask
from graphopt.ir.graph import TensorType, Value
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.pipeline.flops import count_flops, node_flops
from graphopt.verify.execute import model_runner

ROUNDS = 7
"""How often each of two models is run to compare their times."""

Keep = Mapping[str, Mask]
"""Which indices of each axis stay, by the axis's name."""


class Sizes:
    """FLOPs and parameters of a graph as functions of what its axes keep."""

    def __init__(self, model: Model, axes: Axes, found: Sequence[FreeAxis], feed: Sequence[Array]) -> None:
        """`feed` has the inputs for which FLOPs are counted, where sizes are symbolic."""
        self._model = model
        self._axes = axes
        self._found = found
        self._feed = feed
        stored = {m.value: axes.graph.constant(m.value) for axis in found for m in axis.members}
        self._stored = {data.identity: value for value, data in stored.items() if data is not None}

    def flops(self, keep: Keep) -> int | None:
        """Floating-point operations of one run; None if they cannot be told."""
        resized: Any = _Resized(self._axes, Kept(self._axes.space, self._leaves(keep)), self._types)
        return count_flops(resized)

    @cached_property
    def _types(self) -> dict[Value, TensorType]:
        """The types, for the feed, of what nodes read and compute whose FLOPs cannot be told from the graph alone."""
        graph = self._axes.graph
        calls = [graph.raw_call(node) for node in self._axes.nodes if node_flops(graph, node) is None]
        values = dict.fromkeys(v for call in calls for v in (*call.operands, *call.outputs) if v is not None)
        unknown = [v for v in values if graph.producer(v) is not None and not _is_static(graph.type(v))]
        if not unknown:
            return {}
        run = model_runner(self._model.extract(self._axes.nodes, graph.inputs(), unknown))
        inputs = zip(graph.inputs(), self._feed, strict=True)
        found = zip(unknown, run(self._feed), strict=True)
        return {v: TensorType(a.dtype.name, a.shape) for v, a in (*inputs, *found)}

    def removed_parameters(self, keep: Keep) -> int:
        """How many numbers are stored no more."""
        kept = Kept(self._axes.space, self._leaves(keep))
        removed = 0
        for value in self._stored.values():
            whole, left = 1, 1
            for term in self._axes.dims(value):
                size = self._axes.space.size(term)
                assert isinstance(size, int)
                whole *= size
                left *= kept.count(term) if kept.touches(term) else size
            removed += whole - left
        return removed

    def _leaves(self, keep: Keep) -> dict[Axis, Mask]:
        return {axis.leaf: keep[axis.name] for axis in self._found if axis.name in keep}


class _Resized:
    """A graph seen with other sizes: everything but types is the graph's own."""

    def __init__(self, axes: Axes, kept: Kept, types: Mapping[Value, TensorType]) -> None:
        self._axes = axes
        self._kept = kept
        self._types = types

    def __getattr__(self, name: str) -> Any:
        return getattr(self._axes.graph, name)

    def type(self, value: Value) -> TensorType | None:
        known, dims = self._types.get(value) or self._axes.graph.type(value), self._axes.dims_or_none(value)
        if known is None or known.shape is None or dims is None:
            return known
        pairs = zip(known.shape, dims, strict=True)
        return TensorType(known.dtype, tuple(self._kept.count(t) if self._kept.touches(t) else n for n, t in pairs))


def _is_static(type_: TensorType | None) -> bool:
    return type_ is not None and type_.is_static


def time_ratio(candidate: Model, original: Model, feed: Sequence[Array]) -> float:
    """Time of one run of `candidate` in units of that of `original`: median over interleaved runs, with the runtime's
    own optimisations."""
    runners = [model_runner(m, optimised=True) for m in (original, candidate)]
    ratios = []
    for _ in range(ROUNDS):
        before, after = (_seconds(run, feed) for run in runners)
        ratios.append(after / before)
    return statistics.median(ratios)


def _seconds(run: Any, feed: Sequence[Array]) -> float:
    started = time.perf_counter()
    run(feed)
    return time.perf_counter() - started
