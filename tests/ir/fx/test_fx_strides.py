"""What reads strides still reads those of the original: nothing in front of it comes to lie otherwise in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import graphopt
from graphopt import Rounding, RulePass, rule

READERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as_strided": lambda y: y.as_strided((5, 7), (36, 1)),
    "view_as_complex": lambda y: torch.view_as_real(torch.view_as_complex(y.unflatten(3, (-1, 2))) * 1j),
    "bytes": lambda y: y.view(torch.int8).float(),
    "behind": lambda y: y.relu().as_strided((5, 7), (36, 1)),
}


class Convolution(nn.Module):
    def __init__(self, read: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.read = nn.Conv2d(3, 4, 3, padding=1), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.read(self.conv(x))


@pytest.mark.parametrize("reader", READERS)
def test_a_rewrite_that_gives_other_strides_is_undone_where_they_are_read(reader: str) -> None:
    torch.manual_seed(0)
    module, x = Convolution(READERS[reader]).eval(), torch.randn(2, 3, 6, 6)
    result = graphopt.optimize(module, "winograd{channels=1 tiles=1}", example_inputs=x)
    (application,) = result.report.applications
    assert application.status == "undone" and "something in the graph reads strides" in application.reason
    assert torch.equal(result.model(x), module(x))


def test_a_copy_that_brings_an_order_to_what_reads_it_stays() -> None:
    module = Convolution(lambda y: y.transpose(1, 3).contiguous().as_strided((5, 7), (36, 1))).eval()
    x = torch.randn(2, 3, 6, 6)
    result = graphopt.optimize(module, "clean-up", example_inputs=x)
    assert torch.equal(result.model(x), module(x))


def test_views_do_not_read_strides() -> None:
    module, x = Convolution(lambda y: y.view(2, -1)).eval(), torch.randn(2, 3, 6, 6)
    result = graphopt.optimize(module, "winograd{channels=1 tiles=1}", example_inputs=x)
    assert [a.status for a in result.report.applications] == ["kept"]
    assert torch.allclose(result.model(x), module(x), atol=1e-5)


@pytest.fixture
def library():
    with torch.library._scoped_library("graphopt_test_strides", "DEF") as made:
        made.define("doubled(Tensor x) -> Tensor")
        made.impl("doubled", lambda x: x * 2, "CompositeExplicitAutograd")
        yield torch.ops.graphopt_test_strides


def test_ops_of_other_libraries_keep_the_order_of_their_axes(library) -> None:
    module, x = Convolution(lambda y: library.doubled(y)).eval(), torch.randn(2, 3, 6, 6)
    result = graphopt.optimize(module, "winograd{channels=1 tiles=1}", example_inputs=x)
    assert [a.status for a in result.report.applications] == ["undone"]
    halves = Convolution(lambda y: library.doubled(y.chunk(2, 1)[0] + 0)).eval()
    assert graphopt.optimize(halves, "clean-up", example_inputs=x).report.kept


@rule(contract=Rounding())
class NegTwiceByStrides:
    """neg(neg(x)) is x, read by its strides: by an op that the graph did not hold before."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.neg(op.neg(x))

    def rewrite(self, m: Any, build: Any) -> Any:
        shape = m.type(m.x).shape
        strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
        return build.raw("aten.as_strided.default", m.x, size=list(shape), stride=strides, like=m.out)


@dataclass(frozen=True)
class ByStrides(RulePass):
    name: ClassVar[str] = "by-strides"

    def rules(self) -> Sequence[Any]:
        return (NegTwiceByStrides,)


def test_what_a_rewrite_puts_behind_it_is_not_given_other_strides_either() -> None:
    module, x = Convolution(lambda y: y.relu().relu().neg().neg()).eval(), torch.randn(2, 3, 6, 6)
    passes = ["clean-up", ByStrides(), "winograd{channels=1 tiles=1}"]
    result = graphopt.optimize(module, passes, example_inputs=x)
    statuses = [(a.rule, a.status) for p in result.report.passes for a in p.applications if p.name != "clean-up"]
    assert statuses == [("neg-twice-by-strides", "kept"), ("winograd-conv", "undone")]
    assert torch.allclose(result.model(x), module(x))
