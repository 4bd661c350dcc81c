"""The part of a graph that an axis touches, run in float64: as it was with zeros in what goes, and as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.axes.analysis import Axes, Kept
from graphopt.axes.shorten import literals
from graphopt.axes.terms import Mask
from graphopt.ir.graph import Call, CannotEmit, Graph, Literal, Node, Value
from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64
from graphopt.ir.weights import FLOATS, Array, TensorRef
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.verify.fragment import Fragment, Side, reads
from graphopt.verify.inputs import NoInputs, draw, size_choices


@dataclass(frozen=True)
class Region:
    """The part as it is before anything is changed, with seeded inputs."""

    graph: Graph
    calls: tuple[Call, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    feeds: tuple[Array, ...]
    weights: Mapping[Value, Array]
    """Stored tensors in float64, perturbed: so no zero of a model hides a fault."""


def regions_of(axes: Axes, nodes: Sequence[Node], seed: int) -> Iterator[Region]:
    """The part of the graph that consists of `nodes`, all of them readable, in topological order; with inputs of one
    size after the other where sizes are symbolic, of which it may not accept all.

    Raises:
        Rejected: no inputs can be made for it.
    """
    graph = axes.graph
    calls = tuple(call for node in nodes if isinstance(call := graph.call(node), Call))
    own = set(nodes)
    computed = [o for call in calls for o in call.outputs if o is not None]
    read = dict.fromkeys(v for node in nodes for v in reads(graph, node) if graph.constant(v) is None)
    inputs = tuple(v for v in read if graph.producer(v) not in own)
    outputs = tuple(v for v in computed if graph.is_output(v) or any(u not in own for u in graph.users(v)))
    fragment = Fragment(graph, inputs, Side(tuple(nodes), outputs), Side((), ()))
    weights = _weights(axes, calls, np.random.default_rng(seed))
    filled = {v: made.fields["value"] for v in inputs if (made := axes.copied_fill(v)) is not None}
    try:
        for sizes in size_choices(fragment, calls):
            drawn = zip(inputs, draw(fragment, sizes, calls, "normal", seed), strict=True)
            feeds = tuple(x if (fill := filled.get(v)) is None else np.full_like(x, fill) for v, x in drawn)
            yield Region(graph, calls, inputs, outputs, feeds, weights)
    except NoInputs as error:
        raise Rejected(f"it cannot be run to be compared: {error}", Evidence("none")) from error


def first_run(
    axes: Axes, nodes: Sequence[Node], seed: int, run: Callable[[Region], list[Array]]
) -> tuple[Region, list[Array]]:
    """The part of the graph that consists of `nodes`, with inputs of the first sizes that it accepts, and what `run`
    computes with them.

    Raises:
        Rejected: it accepts none.
    """
    failure: Exception | None = None
    for region in regions_of(axes, nodes, seed):
        try:
            return region, run(region)
        except (ValueError, IndexError) as error:
            failure = failure or error
    raise Rejected(f"it cannot be run to be compared: {failure}", Evidence("none"))


def _weights(axes: Axes, calls: Sequence[Call], rng: np.random.Generator) -> dict[Value, Array]:
    """Every stored tensor that is read, perturbed once however many names it has."""
    found: dict[Value, Array] = {}
    by_identity: dict[object, Array] = {}
    for value in (o for call in calls for o in call.operands):
        data = None if value is None or isinstance(value, Literal) else axes.graph.constant(value)
        if data is None:
            continue
        if data.identity not in by_identity:
            array = data.numpy()
            by_identity[data.identity] = widened(array) if axes.is_copied(value) else _perturbed(array, rng)
        found[value] = by_identity[data.identity]
    return found


def _perturbed(data: Array, rng: np.random.Generator) -> Array:
    """Float data moved by about half its size, positive data kept positive; integers and single numbers as they are."""
    wide = widened(data)
    if data.dtype.name not in FLOATS or data.size < 2:
        return wide
    if bool((wide > 0).all()):
        return wide * np.exp(0.5 * rng.standard_normal(wide.shape))
    scale = float(np.sqrt(np.mean(np.square(wide))))
    return wide + 0.5 * (scale if np.isfinite(scale) and scale > 0 else 1.0) * rng.standard_normal(wide.shape)


def widened(array: Array) -> Array:
    """Real numbers in float64, everything else as it is."""
    return array.astype(np.float64) if array.dtype.name in FLOATS else array


def stored(graph: Graph, value: Value) -> TensorRef:
    """The data of a value that is known to be constant."""
    data = graph.constant(value)
    assert data is not None
    return data


# ---- what stays of a tensor ------------------------------------------------------------------------------------------


def masks(axes: Axes, kept: Kept, value: Value, node: Node | None = None) -> list[Mask | None]:
    """What stays of each dimension of `value`, as `node` reads it; None for those that do not change."""
    return [kept.mask(t) if kept.touches(t) else None for t in axes.dims_or_none(value, node) or ()]


def picked(array: Array, kept: Sequence[Mask | None]) -> Array:
    """What stays of `array`; a dimension of size 1 that is broadcast stays."""
    for axis, mask in enumerate(kept):
        if mask is not None and array.shape[axis] == mask.size:
            array = np.compress(mask, array, axis=axis)
    return array


def _zeroed(array: Array, kept: Sequence[Mask | None]) -> Array:
    for axis, mask in enumerate(kept):
        if mask is not None:
            array = np.where(
                mask.reshape([-1 if i == axis else 1 for i in range(array.ndim)]), array, array.dtype.type(0)
            )
    return array


def _placed(array: Array, kept: Sequence[Mask | None]) -> Array:
    """`array` where it was, among zeros."""
    for axis, mask in enumerate(kept):
        if mask is not None:
            shape = list(array.shape)
            shape[axis] = mask.size
            full = np.zeros(shape, array.dtype)
            full[(slice(None),) * axis + (mask,)] = array
            array = full
    return array


# ---- running ---------------------------------------------------------------------------------------------------------


def run_masked(axes: Axes, coupling: set[Node], kept: Kept, region: Region) -> list[Array]:
    """The part as it was, with zeros in what goes of every stored tensor. The nodes in `coupling` are restricted to
    what stays."""

    def run(call: Call, operands: list[Any]) -> Any:
        given = [
            _zeroed(x, masks(axes, kept, o, call.node)) if o in region.weights else x
            for o, x in zip(call.operands, operands, strict=True)
        ]
        return _restricted(axes, kept, call, given) if call.node in coupling else _meaning(call, given)

    return _evaluate(region, region.calls, region.feeds, region.weights, region.outputs, run)


def _restricted(axes: Axes, kept: Kept, call: Call, operands: list[Any]) -> Any:
    """A node on what stays, its results put among zeros."""
    fields, _ = literals(axes, kept, call)
    given = [
        x if o is None or isinstance(o, Literal) else picked(x, masks(axes, kept, o, call.node))
        for o, x in zip(call.operands, operands, strict=True)
    ]
    results = _meaning(call, given, fields)
    several = isinstance(results, tuple)
    placed = [
        r if o is None else _placed(np.asarray(r), masks(axes, kept, o))
        for o, r in zip(call.outputs, results if several else [results], strict=True)
    ]
    return tuple(placed) if several else placed[0]


def run_now(
    region: Region,
    nodes: Sequence[Node],
    weights: Mapping[Value, Array],
    outputs: Sequence[Value],
    feeds: Sequence[Array] | None = None,
) -> list[Array]:
    """The part as it is: `nodes` stand for what it consisted of, `outputs` for its outputs."""
    calls = []
    for node in nodes:
        call = region.graph.call(node)
        if not isinstance(call, Call):
            raise CannotEmit(f"{region.graph.raw_name(node)} cannot be read once it is written: {call.reason}")
        calls.append(call)
    return _evaluate(region, calls, region.feeds if feeds is None else feeds, weights, outputs, _meaning)


def _evaluate(
    region: Region,
    calls: Sequence[Call],
    feeds: Sequence[Array],
    weights: Mapping[Value, Array],
    outputs: Sequence[Value],
    run: Callable[[Call, list[Any]], Any],
) -> list[Array]:
    env: dict[Value, Any] = dict(weights) | dict(zip(region.inputs, map(widened, feeds), strict=True))

    def fetch(value: Value | None) -> Any:
        if value is None:
            return None
        literal = isinstance(value, Literal)
        return env[value] if not literal and value in env else widened(stored(region.graph, value).numpy())

    with np.errstate(all="ignore"):
        for call in calls:
            results = run(call, [fetch(o) for o in call.operands])
            several = results if isinstance(results, tuple) else (results,)
            env.update({o: r for o, r in zip(call.outputs, several, strict=True) if o is not None})
    return [np.asarray(env[o]) for o in outputs]


def _meaning(call: Call, operands: list[Any], fields: Mapping[str, Any] | None = None) -> Any:
    return OPS[call.op].meaning(Float64(), *operands, **(call.fields if fields is None else fields))
