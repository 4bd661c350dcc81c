"""The choice of what is kept is the cheapest of all choices."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import UnsupportedError
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.passes.hoist_cost import FLOP_RATE, LAUNCH, MEMORY_RATE, Prices, keep, seconds
from graphopt.program.stages import reads, weights_read


def float_type(*shape: int) -> TensorType:
    return TensorType("float32", shape)


def weight(graph: ScratchGraph, *shape: int):
    import numpy as np

    return graph.add_constant(ArrayRef(np.ones(shape, np.float32)), "w")[0]


class Sketch:
    """A sample of 1 x 4, a condition, and what is put between them."""

    def __init__(self) -> None:
        self.graph = ScratchGraph()
        self.sample = self.graph.add_input(float_type(1, 4), "x")
        self.condition = self.graph.add_input(float_type(1, 4), "c")

    def node(self, op: str, *operands, type_: TensorType | None = None, **fields):
        return self.graph.append(op, *operands, types=[type_ or float_type(1, 4)], **fields)

    def kept(self, prices: Prices) -> list[str]:
        movable = self.movable()
        return [self.graph.name(v) for v in keep(self.graph, movable, lambda n: True, prices)]

    def movable(self):
        early = {self.condition}
        found = []
        for node in self.graph.nodes():
            if all(v in early or self.graph.constant(v) is not None for v in reads(self.graph, node, ())):
                early.update(self.graph.results(node))
                found.append(node)
        return found


def test_a_projection_leaves_and_the_broadcast_behind_it_stays() -> None:
    sketch = Sketch()
    projected = sketch.node("linear", sketch.condition, weight(sketch.graph, 4096, 4), type_=float_type(1, 4096))
    wide = sketch.node("expand", projected, type_=float_type(4096, 4096), shape=(4096, 4096))
    sketch.graph.add_output(sketch.node("add", wide, sketch.sample, type_=float_type(4096, 4096)))
    assert sketch.kept(Prices(20, 1e-9, 1e-9)) == [sketch.graph.name(projected)]
    assert sketch.kept(Prices(20, 1e-9, 1e-14)) == [sketch.graph.name(wide)], "bytes that cost nothing"


def test_a_weight_counts_once_for_all_who_read_it() -> None:
    """Each of two readers alone is too dear to keep for what its node and half the weight cost; both are not."""
    sketch = Sketch()
    shared = weight(sketch.graph, 64, 4)
    results = [sketch.node("linear", sketch.condition, shared, type_=float_type(1, 64)) for _ in range(2)]
    both = sketch.node("add", *[sketch.node("add", r, sketch.sample, type_=float_type(1, 64)) for r in results])
    sketch.graph.add_output(both)
    node_cost = seconds(sketch.graph, next(sketch.graph.nodes()))
    weight_cost, kept_bytes = 1024 * 1e-9, 256
    between = (2 * node_cost + 0.75 * weight_cost) / (2 * kept_bytes)
    assert kept_bytes * between > node_cost + weight_cost / 8
    assert len(sketch.kept(Prices(1, 1e-9, between))) == 2
    assert sketch.kept(Prices(1, 0.0, between)) == []


def test_a_value_that_is_read_many_times_is_kept_once() -> None:
    sketch = Sketch()
    text = sketch.node("tanh", sketch.condition)
    ends = [sketch.node("add", text, sketch.sample) for _ in range(50)]
    sketch.graph.add_output(sketch.node("concat", *ends, axis=0, type_=float_type(50, 4)))
    node_cost = seconds(sketch.graph, next(sketch.graph.nodes()))
    assert sketch.kept(Prices(1, 0.0, 0.9 * node_cost / 16)) == [sketch.graph.name(text)]
    assert sketch.kept(Prices(1, 0.0, 1.1 * node_cost / 16)) == []


def test_inputs_and_constants_are_never_kept() -> None:
    sketch = Sketch()
    sketch.graph.add_output(
        sketch.node("add", sketch.condition, sketch.node("add", weight(sketch.graph, 1, 4), sketch.sample))
    )
    assert sketch.kept(Prices(1000, 1.0, 0.0)) == []


def test_an_output_that_is_known_early_is_kept_for_the_caller() -> None:
    sketch = Sketch()
    sketch.graph.add_output(sketch.node("linear", sketch.condition, weight(sketch.graph, 4, 4)))
    assert len(sketch.kept(Prices(20, 1e-9, 1e-9))) == 1


def test_what_may_not_be_returned_leaves_only_with_all_its_readers() -> None:
    sketch = Sketch()
    first = sketch.node("tanh", sketch.condition)
    second = sketch.node("linear", first, weight(sketch.graph, 4, 4))
    sketch.graph.add_output(sketch.node("add", second, sketch.sample))
    prices = Prices(20, 1e-9, 1e-9)
    producer = sketch.graph.producer
    kept = keep(sketch.graph, sketch.movable(), lambda n: n is not producer(second), prices)
    assert kept == [first]
    assert keep(sketch.graph, sketch.movable(), lambda n: n is not producer(first), prices) == [second]


def test_seconds_of_a_node_are_launch_work_and_bytes_and_a_view_moves_none() -> None:
    sketch = Sketch()
    projected = sketch.node("linear", sketch.condition, weight(sketch.graph, 64, 4), type_=float_type(1, 64))
    view = sketch.node("reshape", projected, shape=(8, 8), type_=float_type(8, 8))
    linear, reshape = sketch.graph.nodes()
    assert view is not None
    assert seconds(sketch.graph, linear) == pytest.approx(
        LAUNCH + 2 * 64 * 4 / FLOP_RATE + 4 * (4 + 256 + 64) / MEMORY_RATE
    )
    assert seconds(sketch.graph, reshape) == LAUNCH


def test_an_unknown_size_is_refused_with_the_value_and_the_node() -> None:
    sketch = Sketch()
    text = sketch.node("tanh", sketch.condition, type_=TensorType("float32", ("n", 4)))
    sketch.graph.add_output(sketch.node("add", text, sketch.sample))
    with pytest.raises(UnsupportedError, match=r"float32\[n,4\].*give static sizes"):
        sketch.kept(Prices(20, 1e-9, 1e-9))


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    """Up to seven early nodes over two shared weights, read by up to three late ones."""
    sketch = Sketch()
    weights = [weight(sketch.graph, 4, 4), weight(sketch.graph, 4, 4)]
    early = [sketch.condition]
    for _ in range(draw(st.integers(1, 7))):
        operand = draw(st.sampled_from(early))
        op = draw(st.sampled_from(["tanh", "add", "linear", "reshape"]))
        rest = {"add": [draw(st.sampled_from(early))], "linear": [draw(st.sampled_from(weights))]}.get(op, [])
        fields = {"shape": (1, 4)} if op == "reshape" else {}
        early.append(sketch.node(op, operand, *rest, **fields))
    late = sketch.sample
    for value in draw(st.lists(st.sampled_from(early), min_size=1, max_size=3)):
        late = sketch.node("add", late, value)
    if draw(st.booleans()):
        late = sketch.node("linear", late, weights[0])
    sketch.graph.add_output(late)
    return sketch


def cost(sketch: Sketch, staying: set, prices: Prices) -> float:
    """The documented cost of leaving the early nodes `staying` in the step."""
    graph, early = sketch.graph, sketch.movable()
    inside = [n for n in graph.nodes() if n not in early or n in staying]
    read = {v for n in inside for v in reads(graph, n, ())} | set(graph.outputs())
    kept = [v for n in early if n not in staying for v in graph.results(n) if v in read]
    weights = {d.identity: d.nbytes for n in inside for d in weights_read(graph, n)}
    return (
        sum(prices.rows * seconds(graph, n) for n in staying)
        + sum(16 * prices.kept_byte for _ in kept)
        + sum(weights.values()) * prices.weight_byte
    )


@settings(max_examples=150, deadline=None)
@given(
    sketches(),
    st.sampled_from([1, 3, 20]),
    st.sampled_from([0.0, 1e-9, 1e-7, 1e-6]),
    st.sampled_from([0.0, 1e-9, 1e-7, 1e-6, 1e-5]),
)
def test_no_other_choice_is_cheaper(sketch: Sketch, rows: int, weight_byte: float, kept_byte: float) -> None:
    prices = Prices(rows, weight_byte, kept_byte)
    kept = keep(sketch.graph, sketch.movable(), lambda n: True, prices)
    early = sketch.movable()
    graph = sketch.graph
    wanted = [v for v in graph.outputs() if v not in kept]
    staying = set()
    for node in reversed(list(graph.nodes())):
        if graph.results(node)[0] in wanted:
            wanted += [v for v in reads(graph, node, ()) if v not in kept]
            staying |= {node} & set(early)
    subsets = itertools.chain.from_iterable(itertools.combinations(early, k) for k in range(len(early) + 1))
    best = min(cost(sketch, set(subset), prices) for subset in subsets)
    assert cost(sketch, staying, prices) == pytest.approx(best, rel=1e-9, abs=1e-13)
