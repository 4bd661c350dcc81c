"""How much each index of an axis matters: scores of mean 1, so that axes of different layers can be compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.axes.analysis import Axes
from graphopt.axes.free import FreeAxis
from graphopt.axes.terms import Axis, Term
from graphopt.ir.graph import Call, Literal, Value
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.verify.execute import model_runner

Scores: TypeAlias = npt.NDArray[np.float64]


def magnitude(axes: Axes, axis: FreeAxis, data: Callable[[Value], Array] | None = None) -> Scores:
    """The squared norm of each index's slices, averaged over the matrices and kernels that have the axis, each of them
    scaled to mean 1 (group magnitude: Fang et al. 2023, arXiv 2301.12900)."""
    found = [
        _scaled(_per_index(axes, term, axis, np.square(_moved(_data(axes, m.value, data), m.dim))))
        for m in axis.members
        if (term := axes.dims(m.value)[m.dim]) and len(axes.dims(m.value)) > 1
    ]
    return _mean(found, axis.size)


def taylor(axes: Axes, axis: FreeAxis, gradients: Mapping[str, Array]) -> Scores:
    """The squared first-order change of a loss if an index's slices become zero: (sum of gradient times weight)^2, the
    sum being over all tensors that have the axis (Molchanov et al. 2019, arXiv 1906.10771)."""
    total = np.zeros(axis.size)
    for member in axis.members:
        gradient = gradients.get(member.weight)
        if gradient is not None:
            product = gradient.astype(np.float64) * _data(axes, member.value)
            total += _per_index(axes, axes.dims(member.value)[member.dim], axis, _moved(product, member.dim))
    return _scaled(np.square(total))


def activation(axes: Axes, axis: FreeAxis, squares: Mapping[Value, Array]) -> Scores:
    """The mean square that each index contributes where the axis is summed over: that of the activation times the
    squared norm of the weights it meets (Sun et al. 2024, arXiv 2306.11695, per index instead of per weight)."""
    found = []
    for value, dim, weight in met(axes, axis):
        term = axes.dims(value)[dim]
        scores = _per_index(axes, term, axis, squares[value].reshape(-1, 1))
        if weight is not None:
            other, place = weight
            norms = np.square(_moved(_data(axes, other), place))
            scores = scores * _per_index(axes, axes.dims(other)[place], axis, norms)
        found.append(_scaled(scores))
    return _mean(found, axis.size)


def met(axes: Axes, axis: FreeAxis) -> list[tuple[Value, int, tuple[Value, int] | None]]:
    """The activations that are summed over the axis: value and dimension, and those of the weight that they meet."""
    graph, found = axes.graph, []
    for node in axes.current(axis.nodes):
        call = graph.call(node)
        if not isinstance(call, Call):
            continue
        for sum_ in axes.contractions.get(node, ()):
            if axis.leaf not in set(axes.space.leaves(sum_.term)):
                continue
            operands = [call.operands[i] for i in sum_.operands]
            weight = next((_place(axes, o, axis.leaf) for o in operands if _is_stored(axes, o)), None)
            for operand in operands:
                place = None if _is_stored(axes, operand) else _place(axes, operand, axis.leaf)
                if place is not None:
                    found.append((*place, weight))
    return found


def mean_squares(model: Model, axes: Axes, found: Sequence[FreeAxis], feeds: Sequence[Sequence[Array]],
                 weights: Sequence[float]) -> dict[Value, Array]:  # fmt: skip
    """The mean square of the activations that any axis is summed over, for each index of the dimension in which it has
    the axis, over the batches weighted."""
    wanted = dict.fromkeys((value, dim) for axis in found for value, dim, _ in met(axes, axis))
    main = axes.graph
    computed = [v for v, _ in wanted if main.producer(v) is not None]
    probe = model.extract(list(main.nodes()), main.inputs(), list(dict.fromkeys(computed)))
    run = model_runner(probe)
    sums: defaultdict[Value, float | Array] = defaultdict(float)
    for feed, weight in zip(feeds, weights, strict=True):
        results = dict(zip(dict.fromkeys(computed), run(feed), strict=True))
        results |= {v: f for v, f in zip(main.inputs(), feed, strict=True)}
        for value, dim in wanted:
            moved = _moved(results[value].astype(np.float64), dim)
            sums[value] = sums[value] + weight * np.square(moved).reshape(len(moved), -1).mean(axis=1)
    return {value: np.asarray(total) / len(feeds) for value, total in sums.items()}


def random(axis: FreeAxis, seed: int) -> Scores:
    """Scores that say nothing: what any importance should beat."""
    import zlib

    return np.random.default_rng([seed, zlib.crc32(axis.name.encode())]).random(axis.size) * 2


# ---- per index -------------------------------------------------------------------------------------------------------


def _per_index(axes: Axes, term: Term, axis: FreeAxis, rows: Array) -> Scores:
    """Sums of `rows`, one for each index of `term`, by the index of the axis that they belong to."""
    places = axes.space.places(term, axis.leaf)
    totals = rows.reshape(len(rows), -1).sum(axis=1)
    own = places >= 0
    return np.bincount(places[own], totals[own], minlength=axis.size).astype(np.float64)


def _moved(array: Array, dim: int) -> Array:
    return np.moveaxis(array, dim, 0)


def _data(axes: Axes, value: Value, data: Callable[[Value], Array] | None = None) -> Array:
    if data is not None:
        return data(value)
    stored = axes.graph.constant(value)
    assert stored is not None
    return stored.numpy().astype(np.float64)


def _is_stored(axes: Axes, value: Value | None) -> bool:
    return value is None or isinstance(value, Literal) or axes.graph.constant(value) is not None


def _place(axes: Axes, value: Value | None, leaf: Axis) -> tuple[Value, int] | None:
    if value is None or isinstance(value, Literal) or axes.is_copied(value):
        return None
    for dim, term in enumerate(axes.dims_or_none(value) or ()):
        if leaf in set(axes.space.leaves(term)):
            return value, dim
    return None


def _scaled(scores: Scores) -> Scores:
    mean = float(scores.mean())
    return scores / mean if mean > 0 else np.ones_like(scores)


def _mean(found: Sequence[Scores], size: int) -> Scores:
    return np.mean(found, axis=0) if found else np.ones(size)
