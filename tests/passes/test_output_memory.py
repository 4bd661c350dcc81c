"""An output of a torch graph keeps memory of its own, also where it is a view of what a rewrite would replace.

Numbers of one run do not tell: what a caller does to a result in place, and what a model writes into its buffers, must
show where it did and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from clean_up_graphs import clean, kept_rules, onnx_model, op_types

torch = pytest.importorskip("torch")

X = torch.arange(6.0).reshape(2, 3) - 2
VIEWS = {
    "view": lambda v: v.view(-1),
    "transposition": lambda v: v.t(),
    "permutation": lambda v: v.permute(1, 0),
    "expansion": lambda v: v.expand(4, 2, 3),
    "slice": lambda v: v[1:],
    "selection": lambda v: v[0],
    "narrow": lambda v: v.narrow(1, 0, 2),
    "split": lambda v: v.split(1)[1],
    "chunk": lambda v: v.chunk(2)[0],
    "unbind": lambda v: v.unbind(0)[1],
    "added axis": lambda v: v.unsqueeze(0),
    "removed axis": lambda v: v.unsqueeze(0).squeeze(0).t(),
    "detached": lambda v: v.detach().t(),
    "strided": lambda v: torch.as_strided(v, (3,), (1,)),
    "diagonal": lambda v: v.diagonal(),
    "unfolding": lambda v: v.unfold(1, 2, 1),
    "complex": lambda v: torch.view_as_real(torch.view_as_complex(v.view(3, 2))),
    "einsum": lambda v: torch.einsum("ij->ji", v),
    "several": lambda v: v.view(3, 2).t()[0].unsqueeze(1),
    "cast to the same": lambda v: v.to(torch.float32).t(),
    "contiguous": lambda v: v.contiguous().view(-1),
}
COPIES = {
    "clone": lambda v: v.clone(),
    "times one": lambda v: v * 1,
    "cast to and fro": lambda v: v.double().float(),
    "joined alone": lambda v: torch.cat([v]),
    "tiled once": lambda v: v.repeat(1, 1),
}


class Model(torch.nn.Module):
    """A function of an input, with buffers that it may read and write and a weight that it may read."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(X.clone(), requires_grad=False)
        self.register_buffer("state", X.clone())
        self.register_buffer("other", X.clone() + 7)

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def cleaned(function: Callable[..., Any]) -> Any:
    """The model cleaned up, beside the buffers and weights of a module of its own."""
    return clean(Model(function), example_inputs=(X.clone(),)).model


def assert_behaves_the_same(function: Callable[..., Any], runs: int = 3) -> None:
    """For a caller who writes to every result that it is given and goes on with the same input."""
    original, result = Model(function), cleaned(function)
    given, also_given = X.clone(), X.clone()
    for _ in range(runs):
        expected, computed = original(given), result(also_given)
        for a, b in zip(expected, computed, strict=True):
            assert torch.equal(a, b)
            for value in (a, b):
                value.select(0, 0).mul_(10)
        for a, b in zip(expected, computed, strict=True):
            assert torch.equal(a, b)
        assert torch.equal(given, also_given)


def nodes(result: Any) -> list[str]:
    calls = [n for n in result.graph.nodes if n.op == "call_function"]
    return [str(n.target).removeprefix("aten.").partition(".")[0] for n in calls]


# ---- what must not be seen ---


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_a_copy_of_the_input_is_no_view_of_the_input(view: str) -> None:
    result, x = cleaned(lambda _, x: (x * 2, VIEWS[view](x.clone()))), X.clone()
    seen = result(x)[1]
    assert seen.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
    assert torch.equal(seen, VIEWS[view](X))


@pytest.mark.parametrize("copy", COPIES)
def test_whatever_copies_the_input_is_left_in_front_of_a_view(copy: str) -> None:
    assert_behaves_the_same(lambda _, x: (x * 2, COPIES[copy](x).t()))


@pytest.mark.parametrize("copy", COPIES)
def test_a_caller_cannot_write_to_a_weight_through_a_view(copy: str) -> None:
    assert_behaves_the_same(lambda m, x: (x * 2, COPIES[copy](m.weight).view(-1)))


def test_a_view_of_a_computed_constant_is_computed_anew_in_every_run() -> None:
    assert_behaves_the_same(lambda _, x: (x.sum(0), (torch.arange(3.0) + 1).view(3, 1)))


def test_a_view_of_a_buffer_before_it_was_written_shows_what_was_in_it() -> None:
    def function(m: Any, x: Any) -> Any:
        old = m.state.clone()
        m.state.add_(1)
        return x * 2, old.view(1, 6)

    assert_behaves_the_same(function)


def test_a_cache_returns_what_it_held_before() -> None:
    def function(m: Any, x: Any) -> Any:
        previous = m.state.clone()
        m.state.copy_(x + previous)
        return (previous.t(),)

    assert_behaves_the_same(function)


def test_an_input_that_is_written_is_returned_as_it_was() -> None:
    def function(_: Any, x: Any) -> Any:
        old = x.clone()
        x.add_(1)
        return (old.t(),)

    assert_behaves_the_same(function)


def test_buffers_are_exchanged_through_views() -> None:
    def function(m: Any, x: Any) -> Any:
        old = m.state.clone()
        m.state.copy_(m.other.clone())
        m.other.copy_(old.view(-1).view(2, 3))
        return (x + m.state, x * m.other)

    assert_behaves_the_same(function)


@pytest.mark.parametrize(
    "function",
    [
        lambda _, x: ((x * 2).view(-1), (x * 2).t()),
        lambda _, x: ((x * 2).view(-1), x * 2),
        lambda _, x: (x.exp().split(1)[0], x.exp().split(1)[1].view(-1), x.exp().split(1)[0].view(-1)),
        lambda _, x: ((y := torch.relu(x * 2)).view(-1), torch.relu(y).t()),
        lambda _, x: ((y := x.exp()).t(), y.clone().t()),
        lambda m, x: (x * 2, m.weight.clone().t(), m.weight.clone().view(-1)),
    ],
    ids=["products", "product and view", "pieces", "relus", "copy", "copies of a weight"],
)
def test_two_results_do_not_come_to_share_memory(function: Callable[..., Any]) -> None:
    assert_behaves_the_same(function)


def test_results_that_are_views_of_equal_weights_are_not_views_of_one() -> None:
    def function(m: Any, x: Any) -> Any:
        return x + m.weight, x * m.state, m.weight.view(-1), m.state.t()

    result = cleaned(function)
    _, _, first, second = result(X.clone())
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def test_a_branch_does_not_return_a_view_of_what_it_is_given() -> None:
    def function(_: Any, x: Any) -> Any:
        return torch.cond(x.sum() > 100, lambda y: y * 2.0, lambda y: y.clone().t().neg().neg().t(), (x.clone(),))

    result, x = cleaned(lambda m, x: (function(m, x),)), X.clone()
    result(x)[0].zero_()
    assert torch.equal(x, X)


# ---- what may go all the same ---


def test_a_copy_whose_views_are_read_by_arithmetic_is_removed() -> None:
    result = cleaned(lambda m, x: (x.clone().t() + 1, (m.weight.clone().view(-1) * 2).sum(), x.clone().view(-1).exp()))
    assert "clone" not in nodes(result)


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_what_is_computed_for_one_result_alone_is_removed(copy: str) -> None:
    result = cleaned(lambda _, x: (x + 1, COPIES[copy](x.exp()).view(-1)))
    assert nodes(result)[-3:] == ["add", "exp", "reshape"]
    assert not {"clone", "mul", "_to_copy", "cat", "repeat"} & set(nodes(result))


def test_equal_nodes_are_merged_if_one_result_alone_sees_them() -> None:
    result = cleaned(lambda _, x: (x.exp().view(-1), x.exp().t().neg(), x.exp().sum()))
    assert nodes(result).count("exp") == 1


def test_views_of_what_had_no_memory_of_its_own_before_are_merged() -> None:
    result = cleaned(lambda _, x: (x.t().view(3, 2, 1).view(3, 2)[0], x.t()[1]))
    assert nodes(result).count("t") == 1


def test_constants_in_front_of_what_an_output_is_a_view_of_are_folded() -> None:
    result = cleaned(lambda _, x: (x * (torch.arange(3.0) + 1).view(1, 3), (torch.arange(3.0).exp() + 1).view(3, 1)))
    assert "arange" not in nodes(result)
    assert "exp" not in nodes(result)
    assert nodes(result).count("add") == 1


def test_onnx_knows_no_memory() -> None:
    model = onnx_model("""
        agraph (float[2, 3] x) => (float[3, 2] y, float[3, 2] z, float[3, 1] k)
        <float[3] w = {1, 2, 3}, int64[2] column = {3, 1}> {
            a = Identity(x)
            y = Transpose <perm = [1, 0]> (a)
            b = Neg(x)
            c = Neg(x)
            d = Neg(c)
            e = Add(b, d)
            z = Transpose <perm = [1, 0]> (e)
            v = Exp(w)
            k = Reshape(v, column)
        }
    """)
    result = clean(model)
    assert op_types(result.model) == ["Transpose", "Neg", "Add", "Transpose", "Reshape"]
    assert kept_rules(result)["fold-constants"] == 1
