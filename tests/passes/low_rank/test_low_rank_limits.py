"""Where chains end: full rank, break-even, hulls of the budget, weights of several readers, data that says nothing."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from low_rank_layers import IN, INFINITE, KINDS, OUT, ran
from onnx import helper, numpy_helper
from torch import nn

import graphopt
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import Array, ArrayRef
from graphopt.passes.low_rank import LowRank
from graphopt.passes.low_rank.activations import Statistics
from graphopt.passes.low_rank.candidates import Candidate, Choices, choices
from graphopt.passes.low_rank.choice import exact_plan, plan_of, steps
from graphopt.passes.low_rank.directions import Inputs, directions, shrunk
from graphopt.passes.low_rank.kernels import separated, tucker
from graphopt.passes.low_rank.layers import Layer
from graphopt.passes.low_rank.rules import SplitLinear

STORAGES = ["onnx", "fx"]


# ---- full rank -----------------------------------------------------------------------------------------------


def inputs(width: int, rank: int) -> Inputs:
    """X^T X of rows that take only `rank` directions, as measured; shrunk, as expected."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, rank)) @ rng.standard_normal((rank, width))
    covariance = x.T @ x
    return Inputs(covariance, shrunk(covariance, 50.0, float(np.sum(np.sum(x * x, axis=1) ** 2))))


@pytest.mark.parametrize("shape", [(24, 7), (7, 24), (16, 16)])
@pytest.mark.parametrize("seen", [2, 24])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_matrix_at_full_rank_is_itself(shape: tuple[int, int], seen: int, whiten: bool) -> None:
    weight = np.random.default_rng(1).standard_normal(shape)
    first, second = directions(weight, inputs(shape[0], seen), whiten=whiten).factors(weight, min(shape))
    assert np.abs(first @ second - weight).max() < 1e-5 * np.abs(weight).max()


@pytest.mark.parametrize("seen", [2, 60])
@pytest.mark.parametrize("whiten", [True, False])
def test_kernels_at_full_rank_are_themselves(seen: int, whiten: bool) -> None:
    weight = np.random.default_rng(1).standard_normal((9, 5, 3, 2))
    known = inputs(5 * 3 * 2, seen)
    down, across = separated(weight, known, whiten=whiten)(min(5 * 3, 9 * 2)).factors
    inner, core, outer = tucker(weight, (5, 9), known, whiten=whiten).factors
    for product in (np.einsum("riyz,orzx->oiyx", down, across), np.einsum("qiab,pqyx,opcd->oiyx", inner, core, outer)):
        assert np.abs(product - weight).max() < 1e-5 * np.abs(weight).max()


# ---- break-even ----------------------------------------------------------------------------------------------


def linear(into: int, out: int, weight: Array | None = None) -> Layer:
    data = np.random.default_rng(0).standard_normal((out, into)) if weight is None else weight
    return Layer("layer", "linear", (SplitLinear,), ArrayRef(data.astype(np.float32)), True, None, None, None, ())


def known(rows: float) -> Statistics:
    """Of inputs of which but their number is known."""
    return Statistics(None, total=rows, rows=np.full(3, rows))


@pytest.mark.parametrize("rows", [1.0, 48.0, 256 * 3 / 7])
def test_a_chain_is_made_up_to_nine_tenths_of_the_break_even_and_no_further(rows: float) -> None:
    # In the first two pairs the bound itself is a rank.
    for into, out in ((20, 20), (36, 180), (7, 31), (32, 64), (50, 3), (12, 13)):
        most = math.floor(Fraction(9, 10) * into * out / (into + out))
        for rank, allowed in ((most, True), (most + 1, False)):
            if rank:
                found = choices(linear(into, out), known(rows), LowRank(rank=rank))
                assert bool(found.candidates) is allowed, (into, out, rank, found.reason)


# ---- the budget's path ---------------------------------------------------------------------------------------


def table(rng: np.random.Generator, name: str) -> Choices:
    """A layer with chains of random costs and errors, and sometimes one that is exact."""
    found = [
        Candidate(SplitLinear, (r,), float(cost), 0, float(error), float(error), tuple)
        for r, (cost, error) in enumerate(zip(rng.uniform(10, 90, 9), rng.uniform(0, 1, 9), strict=True), 1)
    ]
    if rng.random() < 0.5:
        found.append(Candidate(SplitLinear, (10,), 70.0, 0, 0.0, 0.0, tuple, exact=True))
    return Choices(SimpleNamespace(name=name), 100.0, tuple(found))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_the_budget_walks_along_what_is_best_for_a_price(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers = [table(rng, f"layer {i}") for i in range(4)]
    base, path = exact_plan(layers), steps(layers)
    prices = [step.price for step in path]
    assert prices == sorted(prices) and len(path) > 6
    for k, (low, high) in enumerate(pairwise(prices), 1):
        if low < high:
            price = (low + high) / 2
            plan = plan_of(base, path[:k], layers)
            for layer in layers:
                free = [(layer.cost, 0.0), *((c.cost, c.expected) for c in layer.candidates)]
                best = min(error + price * cost for cost, error in free)
                chosen = plan.get(layer.layer.name)
                cost, error = (layer.cost, 0.0) if chosen is None else (chosen.cost, chosen.expected)
                assert error + price * cost == pytest.approx(best)


# ---- weights of several readers ------------------------------------------------------------------------------


def two_products(*, tied: bool) -> ScratchGraph:
    """Two products of the same input, of one weight if `tied`."""
    rng = np.random.default_rng(0)
    graph = ScratchGraph()
    x = graph.add_input(TensorType("float32", (48, IN)))
    w, v = (graph.add_constant(ArrayRef(rng.standard_normal((IN, OUT)).astype(np.float32)), n)[0] for n in "wv")
    out = [TensorType("float32", (48, OUT))]
    one, two = (graph.append("matmul", x, weight, types=out) for weight in (w, w if tied else v))
    graph.add_output(graph.append("add", one, graph.append("relu", two, types=out), types=out))
    return graph


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_that_two_layers_read_is_left_alone(storage: str, tied: bool) -> None:
    model = from_scratch(two_products(tied=tied), storage)
    data = [(normal(48, seed),) for seed in range(4)]
    result = graphopt.optimize(model, ["low-rank{rank=8}"], budget=INFINITE, calibration=data)
    assert len(result.report.kept) == (0 if tied else 2)
    assert ("would stay beside its factors" in "\n".join(result.report.passes[0].notes)) is tied


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.other = nn.Linear(IN, OUT), nn.Linear(IN, OUT)
        self.other.weight = self.up.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.up(x) * self.other(x)


class Shown(Tied):
    """A layer whose weight is an output."""

    def forward(self, x: torch.Tensor) -> Any:
        return self.up(x), self.up.weight


class ShownByAnotherName(Tied):
    """A layer whose weight is an output, as another parameter of the same storage."""

    def __init__(self) -> None:
        super().__init__()
        self.name = nn.Parameter(self.up.weight.data)

    def forward(self, x: torch.Tensor) -> Any:
        return self.up(x), self.name


@pytest.mark.parametrize("module", [Tied, Shown, ShownByAnotherName])
def test_a_torch_weight_that_would_stay_is_left_alone(module: type[nn.Module]) -> None:
    data = [(torch.randn(48, IN),) for _ in range(4)]
    result = graphopt.optimize(
        module().eval(), ["low-rank{rank=8}"], example_inputs=data[0], budget=INFINITE, calibration=data
    )
    assert not result.report.kept and "it would stay beside its factors" in result.report.passes[0].notes[0]


def test_an_onnx_weight_that_is_an_output_is_left_alone() -> None:
    float32, shapes = onnx.TensorProto.FLOAT, {"x": ["rows", IN], "y": ["rows", OUT], "w": [IN, OUT]}
    x, y, w = (helper.make_tensor_value_info(name, float32, shape) for name, shape in shapes.items())
    weight = np.random.default_rng(0).standard_normal((IN, OUT)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="layer")
    graph = helper.make_graph([node], "shown", [x], [y, w], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    data = [(normal(48, seed),) for seed in range(2)]
    result = graphopt.optimize(model, ["low-rank{rank=8}"], budget=INFINITE, calibration=data)
    assert not result.report.kept and "the weight w is an output of the graph" in result.report.passes[0].notes[0]


# ---- tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_a_table_is_split_only_when_asked(storage: str) -> None:
    model = from_scratch(KINDS["table"].graph(), storage)
    data = [(x,) for x in KINDS["table"].batches()]
    assert not graphopt.optimize(model, ["low-rank{rank=8}"], budget=INFINITE, calibration=data).report.applications


@pytest.mark.parametrize("storage", STORAGES)
def test_a_table_saves_no_flops_and_says_so(storage: str) -> None:
    found = ran(KINDS["table"], storage, "", budget=0.5)
    assert not found.kept and "reading a table costs no FLOPs; cost=parameters counts its size" in found.notes
    assert ran(KINDS["table"], storage, "cost=parameters", budget=0.9).kept == ["split-gather"]


@pytest.mark.parametrize("storage", STORAGES)
def test_tables_of_other_lengths_may_be_read_at_the_same_places(storage: str) -> None:
    rng = np.random.default_rng(0)
    graph = ScratchGraph()
    index = graph.add_input(TensorType("int64", (64,)))
    out = [TensorType("float32", (64, 24))]
    rows = [
        graph.append("gather", ArrayRef(rng.standard_normal((n, 24)).astype(np.float32)), index, types=out, axis=0)
        for n in (30, 70)
    ]
    graph.add_output(graph.append("add", *rows, types=out))
    data = [(rng.integers(-30, 30, 64),) for _ in range(4)]
    result = graphopt.optimize(
        from_scratch(graph, storage), ["low-rank{rank=6 embedding=true}"], budget=INFINITE, calibration=data
    )
    assert len(result.report.kept) == 2
    for note in result.report.passes[0].notes:
        predicted, measured = (float(t.split()[-1]) for t in note.split("error ")[1].split(", measured"))
        assert measured == pytest.approx(predicted, rel=1e-3)


# ---- data that says little or nothing ------------------------------------------------------------------------


def product(x: list[Array], spec: str = "rank=8", weight: Array | None = None, budget: Any = INFINITE) -> Any:
    """A product with a matrix on ONNX, its rows free."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((IN, OUT)) if weight is None else weight
    graph = ScratchGraph()
    value = graph.add_input(TensorType("float32", ("rows", IN)))
    w = ArrayRef(data.astype(np.float32))
    graph.add_output(graph.append("matmul", value, w, types=[TensorType("float32", ("rows", OUT))]))
    model = from_scratch(graph, "onnx")
    return graphopt.optimize(model, [f"low-rank{{{spec}}}"], budget=budget, calibration=[(a,) for a in x])


def normal(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((rows, IN)).astype(np.float32)


def test_a_layer_that_reads_nothing_is_left_alone_with_the_reason() -> None:
    empty = np.zeros((0, IN), np.float32)
    result = product([empty, empty, empty, normal(48)])  # of which the last is held out
    assert not result.report.kept and "reads nothing on the tuning data" in result.report.passes[0].notes[0]
    with pytest.raises(graphopt.ModelError, match="the budget cannot be measured"):
        product([empty] * 4)


def test_batches_without_rows_count_for_nothing() -> None:
    full, empty = normal(48), np.zeros((0, IN), np.float32)
    notes = product([full, full, empty, full]).report.passes[0].notes
    alone = product([full, full]).report.passes[0].notes
    assert notes[0].split("cost")[0] == alone[0].split("cost")[0]
    assert notes[0].split("predicted")[1] == alone[0].split("predicted")[1]


@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_inputs_that_are_not_finite_leave_the_layer_alone_with_the_reason(what: float) -> None:
    data = [normal(48, seed) for seed in range(4)]
    data[2][3, 5] = what
    result = product(data)
    assert not result.report.kept and "reads on the tuning data is not finite" in result.report.passes[0].notes[0]


@pytest.mark.parametrize("what", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_left_alone_with_the_reason(what: float) -> None:
    weight = np.random.default_rng(0).standard_normal((IN, OUT))
    weight[2, 3] = what
    result = product([normal(48)] * 2, weight=weight)
    assert not result.report.kept and "its weight is not finite" in result.report.passes[0].notes[0]


def test_inputs_of_zeros_leave_the_choice_to_the_weight() -> None:
    weight = np.random.default_rng(0).standard_normal((IN, OUT))
    zeros = [np.zeros((48, IN), np.float32)] * 2
    (note,) = product(zeros, "energy=0.5 multiple=1", weight=weight).report.passes[0].notes
    squares = np.square(np.linalg.svd(weight, compute_uv=False))
    kept = np.cumsum(squares) / np.sum(squares)
    rank = int(np.searchsorted(kept, 0.5)) + 1
    assert f"of rank {rank}, " in note
    assert f"predicted error of the weight {math.sqrt(1 - kept[rank - 1]):.4g}, measured 0" in note


def test_one_row_does_not_decide_which_directions_matter() -> None:
    weight = np.random.default_rng(0).standard_normal((IN, OUT)).astype(np.float32)
    rows = [normal(1, seed) for seed in range(2)]
    assert product(rows, weight=weight).report.passes[0].spending.after < 0.9
    x = rows[0].astype(np.float64)
    chosen = directions(weight, Inputs(x.T @ x, shrunk(x.T @ x, 1.0, float(np.sum(x * x)) ** 2)), whiten=True)
    plain = directions(weight, None, whiten=False)
    assert np.allclose(np.abs(np.sum(chosen.basis * plain.basis, axis=0)), 1.0)


def test_one_batch_of_one_sample_cannot_be_held_out() -> None:
    with pytest.raises(graphopt.errors.ModelError, match="give two batches or more"):
        product([normal(1)])


def test_a_layer_that_reads_what_has_no_known_type_is_left_alone() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
        agraph (float[N, 16] x, float[N, 16] skip) => (float[N, 16] y) {
            n = com.microsoft.SkipLayerNormalization (x, skip, gamma)
            h = MatMul (n, w1)
            r = Relu (h)
            y = MatMul (r, w2)
        }
    """)
    rng = np.random.default_rng(0)
    for name, shape in (("gamma", (16,)), ("w1", (16, 16)), ("w2", (16, 16))):
        content = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(content, name))
    data = [tuple(rng.standard_normal((8, 16)).astype(np.float32) for _ in range(2)) for _ in range(4)]
    result = graphopt.optimize(model, "low-rank", budget=0.1, calibration=data)
    assert any("the type of its input n is not known" in note for note in result.report.passes[0].notes)
