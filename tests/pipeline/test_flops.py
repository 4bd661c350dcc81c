"""FLOPs against figures worked out by hand, and None where nobody can know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from graphopt.ir.graph import Call, Graph, TensorType, Unreadable
from graphopt.ir.scratch import ScratchGraph, ScratchNode
from graphopt.ir.weights import ArrayRef
from graphopt.pipeline.flops import count_flops


def weight(*shape: int) -> ArrayRef:
    return ArrayRef(np.zeros(shape, np.float32))


def tensor(*shape: int | str | None) -> TensorType:
    return TensorType("float32", shape)


class RawGraph(ScratchGraph):
    """A scratch graph with nodes outside of the vocabulary, and bodies."""

    def __init__(self) -> None:
        super().__init__()
        self.raw: dict[ScratchNode, tuple[str, Sequence[Graph]]] = {}

    def append_raw(
        self, name: str, *operands: Any, types: Sequence[TensorType] = (), bodies: Sequence[Graph] = ()
    ):
        output = self.append("identity", operands[0], types=types)
        node = output.producer
        values = [self.add_constant(o, "c")[0] if isinstance(o, ArrayRef) else o for o in operands]
        node.call = Call(node, name, tuple(values), {}, (output,))
        self.raw[node] = (name, bodies)
        return output

    def raw_name(self, node: Any) -> str:
        return self.raw[node][0] if node in self.raw else super().raw_name(node)

    def call(self, node: Any) -> Call | Unreadable:
        return Unreadable("raw") if node in self.raw else super().call(node)

    def subgraphs(self, node: Any) -> Sequence[Graph]:
        return self.raw[node][1] if node in self.raw else ()


@pytest.fixture
def graph() -> RawGraph:
    return RawGraph()


def test_convolution_counts_two_per_multiply_add(graph):
    x = graph.add_input(tensor(2, 3, 8, 8))
    fields = {"stride": (2, 2), "pads": (1, 1, 1, 1), "dilation": (1, 1)}
    graph.append("conv", x, weight(4, 3, 3, 3), weight(4), types=[tensor(2, 4, 4, 4)], **fields)
    assert count_flops(graph) == 2 * (2 * 4 * 4 * 4) * (3 * 3 * 3)


def test_grouped_convolution_sums_over_its_group_only(graph):
    x = graph.add_input(tensor(1, 8, 10))
    fields = {"stride": (1,), "pads": (0, 0), "dilation": (1,), "groups": 8}
    graph.append("conv", x, weight(8, 1, 3), types=[tensor(1, 8, 8)], **fields)
    assert count_flops(graph) == 2 * (8 * 8) * 3


def test_transposed_convolution_spreads_every_input_element(graph):
    x = graph.add_input(tensor(1, 6, 5, 5))
    fields = {"stride": (2, 2), "pads": (0,) * 4, "dilation": (1, 1), "output_padding": (0, 0)}
    graph.append("conv_transpose", x, weight(6, 4, 2, 2), types=[tensor(1, 4, 10, 10)], **fields)
    assert count_flops(graph) == 2 * (6 * 25) * (4 * 2 * 2)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((5, 7), (7, 3), 5 * 7 * 3),
        ((7,), (7, 3), 7 * 3),
        ((5, 7), (7,), 5 * 7),
        ((7,), (7,), 7),
        ((2, 1, 5, 7), (4, 7, 3), 2 * 4 * 5 * 7 * 3),
        ((0, 7), (7, 3), 0),
    ],
)
def test_matmul_follows_broadcasting(graph, a, b, expected):
    graph.append("matmul", graph.add_input(tensor(*a)), graph.add_input(tensor(*b)))
    assert count_flops(graph) == 2 * expected


@pytest.mark.parametrize(("trans_w", "shape"), [(True, (11, 7)), (False, (7, 11))])
def test_linear_in_both_layouts(graph, trans_w, shape):
    graph.append("linear", graph.add_input(tensor(2, 5, 7)), weight(*shape), weight(11), trans_w=trans_w)
    assert count_flops(graph) == 2 * (2 * 5 * 7 * 11)


def test_attention_is_two_products(graph):
    q, k, v = (graph.add_input(tensor(*s)) for s in ((2, 8, 10, 64), (2, 2, 12, 64), (2, 2, 12, 32)))
    graph.append("attention", q, k, v, scale=0.125, gqa=True)
    assert count_flops(graph) == 2 * (2 * 8 * 10 * 12 * (64 + 32))


def test_einsum_of_two_operands(graph):
    a, b = graph.add_input(tensor(2, 3, 5)), graph.add_input(tensor(2, 5, 7))
    graph.append("einsum", a, b, equation="bij, bjk -> bik")
    assert count_flops(graph) == 2 * (2 * 3 * 5 * 7)


def test_einsum_of_three_operands_is_not_guessed(graph):
    a = graph.add_input(tensor(2, 2))
    graph.append("einsum", a, a, a, equation="ij,jk,kl->il")
    assert count_flops(graph) is None


def test_everything_else_is_free_and_sums_add_up(graph):
    x = graph.add_input(tensor(4, 4))
    y = graph.append("relu", graph.append("matmul", x, x, types=[tensor(4, 4)]), types=[tensor(4, 4)])
    graph.append("matmul", y, x)
    assert count_flops(graph) == 2 * 2 * 64
    assert count_flops(ScratchGraph()) == 0


@pytest.mark.parametrize("shape", [("batch", 7), (None, 7), None])
def test_an_unknown_size_makes_the_count_unknown(graph, shape):
    x = graph.add_input(TensorType("float32", shape))
    graph.append("linear", x, weight(3, 7))
    assert count_flops(graph) is None


def test_a_symbolic_size_of_a_free_op_does_not_matter(graph):
    graph.append("relu", graph.add_input(tensor("batch", 7)))
    assert count_flops(graph) == 0


@pytest.mark.parametrize(
    "name", ["ai.onnx::LSTM", "ai.onnx::DFT", "ai.onnx::DeformConv", "aten.lstm.input", "my.domain::Thing"]
)
def test_an_op_that_may_hold_products_makes_the_count_unknown(graph, name):
    graph.append_raw(name, graph.add_input(tensor(2, 2)))
    assert count_flops(graph) is None


@pytest.mark.parametrize(
    "name", ["ai.onnx::NonZero", "ai.onnx::DynamicQuantizeLinear", "aten.cummax.default"]
)
def test_a_standard_op_without_products_is_free_even_if_it_cannot_be_read(graph, name):
    graph.append_raw(name, graph.add_input(tensor(2, 2)))
    assert count_flops(graph) == 0


def test_products_of_the_storage_itself(graph):
    x = graph.add_input(tensor(1, 3, 8, 8))
    graph.append_raw("com.microsoft::FusedConv", x, weight(4, 3, 3, 3), types=[tensor(1, 4, 6, 6)])
    one = graph.add_input(tensor(5, 7))
    graph.append_raw("ai.onnx::Gemm", one, weight(7, 3), types=[tensor(5, 3)])
    scale = weight()
    graph.append_raw("ai.onnx::QLinearConv", x, scale, scale, weight(4, 3, 3, 3), types=[tensor(1, 4, 6, 6)])
    conv = 2 * (4 * 36) * 27
    assert count_flops(graph) == 2 * conv + 2 * (5 * 7 * 3)


@pytest.mark.parametrize(("name", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_use_every_weight_once_a_step_and_sample(graph, name, gates):
    x = graph.add_input(tensor(10, 2, 5))
    graph.append_raw(f"ai.onnx::{name}", x, weight(2, gates * 7, 5), weight(2, gates * 7, 7))
    assert count_flops(graph) == 2 * 10 * 2 * 2 * gates * 7 * (5 + 7)


def test_recurrent_layers_that_can_be_read_count_the_same(graph):
    x, state = graph.add_input(tensor(10, 2, 5)), graph.add_input(tensor(2, 2, 7))
    graph.append("lstm", x, weight(2, 28, 5), weight(2, 28, 7), hidden=7, direction="bidirectional")
    assert count_flops(graph) == 2 * 10 * 2 * 2 * 4 * 7 * (5 + 7)
    one = [weight(28, 5), weight(28, 7), weight(28), weight(28)]
    graph.append("lstm_layer", x, state, state, *one, *one, bidirectional=True)
    assert count_flops(graph) == 2 * 2 * 10 * 2 * 2 * 4 * 7 * (5 + 7)


def body(size: int) -> ScratchGraph:
    inner = ScratchGraph()
    x = inner.add_input(tensor(size, size))
    inner.append("matmul", x, x)
    return inner


def test_of_two_branches_the_dearest_counts(graph):
    graph.append_raw("ai.onnx::If", graph.add_input(tensor()), bodies=[body(2), body(3)])
    assert count_flops(graph) == 2 * 27


def test_products_inside_a_loop_are_unknown_and_a_loop_without_them_is_free(graph):
    x = graph.add_input(tensor())
    graph.append_raw("ai.onnx::Loop", x, bodies=[ScratchGraph()])
    assert count_flops(graph) == 0
    graph.append_raw("ai.onnx::Loop", x, bodies=[body(2)])
    assert count_flops(graph) is None
