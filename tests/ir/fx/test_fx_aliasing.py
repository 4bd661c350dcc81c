"""Which values may share memory, and what the storage does where an output would come to share more."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from graphopt.ir.fx.aliasing import _UNDECLARED, exposes, returned_views, roots, viewed
from graphopt.ir.fx.load import load_torch
from graphopt.ir.fx.storage import FxGraph
from graphopt.ir.graph import Node

aten = torch.ops.aten
X = torch.arange(6.0).reshape(2, 3)


class Runs(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("state", X.clone())

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def graph_of(function: Callable[..., Any]) -> FxGraph:
    return load_torch(Runs(function), (X.clone(),)).main


def node_of(graph: FxGraph, key: str) -> Node:
    return next(n for n in graph.nodes() if graph.key(n) == key)


def may_view(target: Any, *args: Any) -> bool:
    graph = fx.Graph()
    node = graph.call_function(target, args=tuple(_in_graph(graph, a) for a in args))
    return bool(viewed(node))


def _in_graph(graph: fx.Graph, value: Any) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return [_in_graph(graph, v) for v in value]
    if not isinstance(value, torch.Tensor):
        return value
    node = graph.placeholder("x")
    node.meta["val"] = value
    return node


CALLS: list[tuple[Any, ...]] = [
    (aten.view.default, X, [6]), (aten.reshape.default, X, [6]), (aten._unsafe_view.default, X, [6]),
    (aten._reshape_alias.default, X, [6], [1]), (aten.permute.default, X, [1, 0]), (aten.transpose.int, X, 0, 1),
    (aten.t.default, X), (aten.expand.default, X, [2, 2, 3]), (aten.slice.Tensor, X, 0, 0, 1),
    (aten.select.int, X, 0, 0), (aten.narrow.default, X, 0, 0, 1), (aten.split.Tensor, X, 1),
    (aten.split_with_sizes.default, X, [1, 1]), (aten.chunk.default, X, 2), (aten.unbind.int, X),
    (aten.tensor_split.sections, X, 2), (aten.unsafe_chunk.default, X, 2), (aten.unsafe_split.Tensor, X, 1),
    (aten.squeeze.default, X), (aten.squeeze.dims, X, [0]), (aten.unsqueeze.default, X, 0), (aten.alias.default, X),
    (aten.detach.default, X), (aten.as_strided.default, X, [2], [1]), (aten.real.default, X),
    (aten.diagonal.default, X), (aten.unfold.default, X, 1, 2, 1), (aten.contiguous.default, X),
    (aten.to.dtype, X, torch.float32), (aten.type_as.default, X, X), (aten.flatten.using_ints, X),
    (aten.unflatten.int, X, 1, [3, 1]), (aten.movedim.int, X, 0, 1), (aten.einsum.default, "ij->ji", [X]),
    (aten.dropout.default, X, 0.5, False), (aten.alpha_dropout.default, X, 0.5, False),
    (aten.broadcast_tensors.default, [X]), (aten.meshgrid.default, [X[0]]),
    (aten.atleast_3d.default, X), (aten.sum_to_size.default, X, [2, 3]), (aten.conj.default, X),
    (aten.clone.default, X), (aten.mul.Tensor, X, X), (aten.cat.default, [X]), (aten.repeat.default, X, [1, 1]),
    (aten._to_copy.default, X), (aten.constant_pad_nd.default, X, [0, 0]), (aten.roll.default, X, [0], [0]),
    (aten.index_select.default, X, 0, torch.arange(2)), (aten.matmul.default, X, X.t()),
    (aten.einsum.default, "ij,kj->ik", [X, X]), (aten.sum.default, X),
    (aten.nan_to_num.default, X), (aten.relu.default, X), (aten.diag.default, X), (aten.pad.default, X, [0, 0]),
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=[str(c[0]) for c in CALLS])
def test_what_torch_returns_views_of_is_known(call: tuple[Any, ...]) -> None:
    target, *args = call
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = target(*args)
    given = {t.untyped_storage().data_ptr() for a in args for t in (a if isinstance(a, list) else [a]) if _is_tensor(t)}
    made = {t.untyped_storage().data_ptr() for t in (result if isinstance(result, (list, tuple)) else [result])}
    assert may_view(target, *args) is not made.isdisjoint(given)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def test_operators_that_are_named_exist() -> None:
    assert [name for name in _UNDECLARED if not (hasattr(aten, name) or hasattr(torch.ops.prims, name))] == []


def test_views_are_followed_to_what_they_are_views_of() -> None:
    graph = graph_of(lambda _, x: (x.t().split(1)[1].view(-1), x.exp().topk(2)[0].t(), x.exp().topk(2)[1]))
    (given,) = graph.inputs()
    piece, values, numbers = graph.outputs()
    assert roots(piece) == {given}
    assert len(roots(values)) == 1
    assert roots(values).isdisjoint(roots(numbers))


def test_the_outputs_that_may_be_views_of_a_value_are_found() -> None:
    graph = graph_of(lambda _, x: ((y := x.exp()).view(-1)[1:], y.chunk(2)[0].unsqueeze(0), y.t() + 1, y))
    exp = node_of(graph, "exp")
    first, second, third, fourth = graph.outputs()
    assert returned_views(exp, graph.output_node) == {first, second, fourth}
    assert graph.may_be_returned(exp)
    assert not graph.may_be_returned(third.args[0])


def test_what_a_buffer_is_written_with_is_an_output() -> None:
    def function(module: Any, x: torch.Tensor) -> torch.Tensor:
        module.state.copy_(x.exp().view(3, 2).t())
        return x * 2

    graph = graph_of(function)
    assert graph.may_be_returned(node_of(graph, "exp"))


def test_a_branch_may_return_what_it_is_given() -> None:
    def function(_: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (x.exp(),))

    graph = graph_of(function)
    assert graph.may_be_returned(node_of(graph, "exp"))
    assert not graph.may_be_returned(node_of(graph, "reduce_sum"))


def test_sharing_with_an_input_or_another_output_is_told_from_sharing_with_nothing() -> None:
    graph = graph_of(lambda _, x: ((x.exp() * 1).t(), x.neg().t(), (x.neg() * 1).view(-1)))
    exp, neg = node_of(graph, "exp"), node_of(graph, "neg")
    first, second = (n for n in graph.nodes() if graph.key(n) == "mul")
    seen = returned_views(first, graph.output_node)
    assert exposes(first, graph.inputs()[0], seen, graph.output_node)
    assert not graph.would_share(first, exp)
    assert graph.would_share(first, neg)
    assert graph.would_share(second, graph.inputs()[0])


def test_a_copy_is_written_in_front_of_the_views_that_are_returned() -> None:
    model = load_torch(Runs(lambda _, x: ((y := x * 1).t(), y + 1, y.split(1)[0])), (X.clone(),))
    graph, before = model.main, model.main.fingerprint()
    mul = node_of(graph, "mul")
    undo = graph.replace(mul, graph.inputs()[0])
    assert [graph.key(n) for n in graph.nodes()] == ["mul", "identity", "transpose", "add", "split"]
    copied = node_of(graph, "identity")
    assert [graph.key(n) for n in graph.users(copied)] == ["transpose", "split"]
    turned, more, piece = model.export()(X)
    assert torch.equal(turned, X.t()) and torch.equal(more, X + 1) and torch.equal(piece, X[:1])
    undo()
    assert graph.fingerprint() == before


def test_a_buffer_that_is_written_and_never_read_stays() -> None:
    def function(module: Any, x: torch.Tensor) -> torch.Tensor:
        module.state.copy_(x.exp())
        return x * 2

    module = load_torch(Runs(function), (X.clone(),)).export()
    module(X)
    assert torch.equal(module.state, X.exp())
