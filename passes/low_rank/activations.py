"""What layers are fed on the tuning data: gathered batch by batch, from the model as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphopt.ir.graph import Graph, Node, Value
from graphopt.ir.model import Model
from graphopt.ir.ops.convolution import patches
from graphopt.ir.weights import Array
from graphopt.passes.low_rank.directions import Inputs, shrunk
from graphopt.passes.low_rank.layers import Layer
from graphopt.verify.execute import model_runner
from graphopt.verify.fragment import reads

AT_ONCE = 256 << 20
"""Bytes of X^T X that are held at a time; layers beyond that wait for another run over the data."""
INPUTS_AT_ONCE = 16
"""How many inputs of layers are asked for in one run."""
WIDEST = 6144
"""Layers that read more numbers than this for an output are not whitened: X^T X would take 300 MB and more."""
BLOCK = 1 << 22
"""Numbers of X that are multiplied at a time: 32 MB of float64."""


@dataclass
class Statistics:
    """What is known of the inputs X [rows, in] of a layer. Batches count by their weights."""

    covariance: Array | None
    """X^T X [in, in] in float64, its diagonal where it is diagonal (of a table: how often each entry is read), None
    where it would be too large."""
    fourth: float = 0.0
    """Sum of |x|^4 over the rows x."""
    total: float = 0.0
    """Number of rows."""
    rows: Array = field(default_factory=lambda: np.zeros(3))
    """Positions of a batch, on average: of the output, of the input, and output rows times input columns."""
    finite: bool = True

    def inputs(self) -> Inputs | None:
        """What factors are chosen for; None where nothing is known, as of inputs that were always 0."""
        if self.covariance is None or not self.finite or not self.covariance.any():
            return None
        return Inputs(self.covariance, shrunk(self.covariance, self.total, self.fourth))


def statistics(
    model: Model, layers: Sequence[Layer], feeds: Sequence[list[Array]], weights: Sequence[float]
) -> Iterator[tuple[Layer, Statistics]]:
    """Each layer with its statistics, in runs that hold no more than `AT_ONCE`; layers that read the same share one.

    The caller shall not keep what it is given.
    """
    for group in _groups(layers):
        found = {source: Statistics(_empty(members[0])) for source, members in group.items()}
        inputs = list(dict.fromkeys(source[0] for source in found))
        for arrays, weight in zip(activations(model, inputs, feeds), weights, strict=True):
            by_input = dict(zip(inputs, arrays, strict=True))
            for source, known in found.items():
                _add(known, group[source][0], by_input[source[0]], weight)
        total = sum(weights)
        for source, members in group.items():
            found[source].total = float(found[source].rows[0])
            found[source].rows /= total
            yield from ((layer, found[source]) for layer in members)


def activations(model: Model, values: Sequence[Value], feeds: Sequence[list[Array]]) -> Iterator[list[Array]]:
    """`values` of the main graph for every batch, computed natively."""
    graph = model.main
    if not values:  # A model without outputs is none to onnxruntime.
        yield from ([] for _ in feeds)
        return
    run = model_runner(model.extract(ancestors(graph, values), graph.inputs(), values))
    for batch in feeds:
        yield run(batch)


def ancestors(graph: Graph, values: Sequence[Value], *, given: Container[Value] = ()) -> list[Node]:
    """The nodes that compute `values`, from `given` ones where these are met."""
    needed: dict[Node, None] = {}
    pending = list(values)
    while pending:
        value = pending.pop()
        node = None if value in given else graph.producer(value)
        if node is not None and node not in needed:
            needed[node] = None
            pending += reads(graph, node)
    return [node for node in graph.nodes() if node in needed]


def _groups(layers: Sequence[Layer]) -> Iterator[dict[tuple[object, ...], list[Layer]]]:
    """Layers by source, as many sources as are gathered in one run."""
    group: dict[tuple[object, ...], list[Layer]] = {}
    held = 0
    for layer in layers:
        width = math.prod(layer.shape[1:]) if layer.op == "conv" else layer.shape[0]
        size = 8 * width * width if layer.op != "gather" and width <= WIDEST else 8 * width
        if group and layer.source not in group and (held + size > AT_ONCE or len(group) >= INPUTS_AT_ONCE):
            yield group
            group, held = {}, 0
        if layer.source not in group:
            held += size
        group.setdefault(layer.source, []).append(layer)
    if group:
        yield group


def _empty(layer: Layer) -> Array | None:
    if layer.op == "gather":
        return np.zeros(layer.shape[0])
    width = math.prod(layer.shape[1:]) if layer.op == "conv" else layer.shape[0]
    return np.zeros((width, width)) if width <= WIDEST else None


def _add(known: Statistics, layer: Layer, x: Array, weight: float) -> None:
    """Count one batch in."""
    if layer.op == "gather":
        assert known.covariance is not None
        index = x.reshape(-1).astype(np.int64)
        known.covariance += weight * np.bincount(index % layer.shape[0], minlength=layer.shape[0])
        known.rows += weight * x.size
        return
    known.finite = known.finite and bool(np.all(np.isfinite(x.astype(np.float64))))
    blocks, rows = rows_of(layer, x)
    known.rows += weight * np.asarray(rows, np.float64)
    if known.covariance is not None and known.finite:
        for block in blocks():
            known.covariance += weight * (block.T @ block)
            known.fourth += weight * float(np.sum(np.square(np.sum(np.square(block), axis=1))))


def rows_of(layer: Layer, x: Array) -> tuple[Callable[[], Iterator[Array]], tuple[int, int, int]]:
    """The rows [n, in] that the layer multiplies, in float64, a block at a time; and the positions."""
    if layer.op != "conv":
        matrix = x.reshape(-1, layer.shape[0])
        step = max(1, BLOCK // layer.shape[0])
        starts = range(0, len(matrix), step)
        return lambda: (matrix[s : s + step].astype(np.float64) for s in starts), (len(matrix),) * 3
    kernel, stride, pads, dilation = layer.window
    view = patches(x, kernel, stride=stride, pads=pads, dilation=dilation)
    n = len(kernel)
    out, into = view.shape[2 : 2 + n], x.shape[2:]
    ordered = view.transpose(0, *range(2, 2 + n), 1, *range(2 + n, 2 + 2 * n))
    width = math.prod(layer.shape[1:])
    step = max(1, BLOCK // max(1, width * math.prod(out[1:])))

    def blocks() -> Iterator[Array]:
        for image in ordered:
            for start in range(0, len(image), step):
                yield image[start : start + step].reshape(-1, width).astype(np.float64)

    positions = (math.prod(out), math.prod(into), math.prod((*out[:1], *into[1:])))
    return blocks, tuple(len(x) * p for p in positions)  # type: ignore[return-value]
