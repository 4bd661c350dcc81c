"""What proofs say of integers: of those that are moved, added and multiplied everything, of others one draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.contract import Proof
from graphopt.verify.fragment import Fragment, Side
from graphopt.verify.prove import prove

Make = Callable[[ScratchGraph, Any, Any], Any]


def proved(before: Make, after: Make, feeds: Sequence[Any]) -> Proof:
    """Whether two expressions in two inputs like `feeds` agree."""
    graph = ScratchGraph()
    inputs = [graph.add_input(TensorType(f.dtype.name, f.shape)) for f in feeds]
    sides = []
    for make in (before, after):
        root, start = None, len(list(graph.nodes()))
        root = make(graph, *inputs)
        sides.append(Side(tuple(graph.nodes())[start:], (root,)))
    return prove(Fragment(graph, tuple(inputs), *sides), feeds)


def op(name: str, *operands: Any, **fields: Any) -> Make:
    def make(g: ScratchGraph, x: Any, y: Any) -> Any:
        given = [
            {"x": x, "y": y}.get(o, o) if isinstance(o, str) else o(g, x, y) if callable(o) else o for o in operands
        ]
        types = [g.type(x)] if name not in ("reshape", "cast") else []
        return g.append(name, *given, types=types, **fields)

    return make


INTEGERS = [np.arange(4, dtype=np.int64), np.arange(4, dtype=np.int64)]
ONE, TWO = (ArrayRef(np.asarray(n, np.int64)) for n in (1, 2))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (op("mul", "x", ONE), op("identity", "x")),
        (op("sub", op("add", "x", "y"), "y"), op("identity", "x")),
        (op("mul", "x", op("add", "x", "y")), op("add", op("mul", "x", "x"), op("mul", "y", "x"))),
        (op("cast", "x", dtype="int64"), op("identity", "x")),
    ],
)
def test_sums_and_products_are_proved_for_all_integers(before: Make, after: Make) -> None:
    proof = proved(before, after, INTEGERS)
    assert proof.level == "proof" and not proof.sampled, proof


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (op("div", op("mul", "x", TWO), TWO, rounding="trunc"), op("identity", "x")),
        (op("mod", "x", TWO), op("mod", op("neg", "x"), TWO)),
        (op("cast", op("cast", "x", dtype="int8"), dtype="int64"), op("identity", "x")),
        (op("maximum", "x", "y"), op("identity", "y")),
    ],
)
def test_what_is_true_of_the_integers_that_were_drawn_is_not_proved(before: Make, after: Make) -> None:
    proof = proved(before, after, INTEGERS)
    assert proof.level == "undecided" and "drawn" in proof.reason, proof


def test_wrong_sums_are_not_proved() -> None:
    zeros = [np.zeros(4, np.int64)] * 2
    proof = proved(op("add", "x", "y"), op("sub", "x", "y"), zeros)
    assert proof.level == "undecided" and "differ" in proof.reason, proof


def test_a_size_that_is_an_input_is_drawn_and_named() -> None:
    feeds = [np.zeros((2, 3), np.float32), np.asarray([3, 2])]
    after = op("reshape", "x", shape=(3, 2))
    proof = proved(op("reshape", "x", "y"), after, feeds)
    assert proof.level == "proof" and proof.sampled == ("integer and truth inputs",), proof
    wrong = proved(op("reshape", "x", "y"), op("transpose", "x", perm=(1, 0)), feeds)
    assert wrong.level == "undecided", wrong
