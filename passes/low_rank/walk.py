"""A model run on all batches layer by layer, as it is and beside it with some layers changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from graphopt.ir.graph import Value
from graphopt.ir.model import Model
from graphopt.ir.weights import Array
from graphopt.passes.low_rank.activations import ancestors
from graphopt.passes.low_rank.layers import Layer, node_called
from graphopt.verify.execute import Runner, model_runner
from graphopt.verify.fragment import reads

Values = dict[Value, Array]


class Walk:
    """The values of the main graph of `model` between two of its layers.

    A node runs once on each batch, on both sides where these differ; a value is held until its last reader has run.
    `layers` are visited in the order of the graph, each of them `until` it and `through` it.
    """

    def __init__(self, model: Model, layers: Sequence[Layer], feeds: Sequence[list[Array]]) -> None:
        graph = model.main
        self._model = model
        self._nodes = ancestors(graph, [layer.out for layer in layers])
        self._start = 0
        self._last: dict[Value, int] = {}
        for position, node in enumerate(self._nodes):
            # What is no tensor, as a symbolic size, cannot be held. It is computed wherever it is read.
            forever = any(v is not None and graph.type(v) is None for v in graph.results(node))
            for value in reads(graph, node):
                self._last[value] = len(self._nodes) if forever else max(position, self._last.get(value, 0))
        given = [list(zip(graph.inputs(), batch, strict=True)) for batch in feeds]
        self._sides: list[tuple[Values, Values]] = [(dict(batch), dict(batch)) for batch in given]

    def until(self, layer: Layer) -> list[tuple[Array, Array]]:
        """Run what stands before `layer`; its inputs on both sides, by batch: one array where they are the same."""
        self._run_until(self._nodes.index(node_called(self._model.main, layer.name)))
        return [(plain[layer.x], changed[layer.x]) for plain, changed in self._sides]

    def through(self, layer: Layer, plain: Runner, changed: Runner) -> Iterator[tuple[Array, Array]]:
        """The outputs of `layer`, the next one, as these runners compute them on their sides, by batch."""
        for held, other in self._sides:
            (held[layer.out],), (other[layer.out],) = plain([held[layer.x]]), changed([other[layer.x]])
            yield held[layer.out], other[layer.out]
        self._start += 1
        self._drop()

    def _run_until(self, stop: int) -> None:
        graph = self._model.main
        computed = [v for node in self._nodes[self._start : stop] for v in graph.results(node) if v is not None]
        outputs = [v for v in computed if self._last.get(v, 0) >= stop and graph.type(v) is not None]
        self._start = stop
        if not outputs:
            return
        held = self._sides[0][0].keys()
        nodes = ancestors(graph, outputs, given=held)
        inputs = list(dict.fromkeys(v for node in nodes for v in reads(graph, node) if v in held))
        run = model_runner(self._model.extract(nodes, inputs, outputs))
        for plain, changed in self._sides:
            one, other = [plain[v] for v in inputs], [changed[v] for v in inputs]
            results = run(one)
            same = all(a is b for a, b in zip(one, other, strict=True))
            plain.update(zip(outputs, results, strict=True))
            changed.update(zip(outputs, results if same else run(other), strict=True))
        self._drop()

    def _drop(self) -> None:
        """Forget what nothing reads any more."""
        for values in (values for both in self._sides for values in both):
            for value in [v for v in values if self._last.get(v, -1) < self._start]:
                del values[value]
