"""Which axis of a matrix product is which: what a matmul or an einsum does with queries, keys and values.

Here attention always is [*batch, queries, features] by [*batch, keys, features]; permutations lead from the axes
of a value as it is to this order.
"""

from __future__ import annotations

from typing import NamedTuple

from graphopt.ir.graph import Call
from graphopt.rewrite.rule import Match

Perm = tuple[int, ...]
"""transpose(x, perm): axis i of the result is axis perm[i] of x."""


def keep(rank: int) -> Perm:
    """The permutation that changes nothing."""
    return tuple(range(rank))


def swap(rank: int) -> Perm:
    """The permutation that exchanges the last two axes."""
    return (*range(rank - 2), rank - 1, rank - 2)


def compose(first: Perm, then: Perm) -> Perm:
    """transpose(transpose(x, first), then) = transpose(x, compose(first, then))."""
    return tuple(first[i] for i in then)


class Scores(NamedTuple):
    """scores[*batch, queries, keys] from queries and keys."""

    query: Perm
    """From the first operand to [*batch, queries, features]."""
    key: Perm
    """From the second operand to [*batch, keys, features]."""


class Sums(NamedTuple):
    """Weighted sums of values: [*batch, queries, features] from weights[*batch, queries, keys]."""

    value: Perm
    """From the operand to [*batch, keys, features]."""
    out: Perm
    """From [*batch, queries, features] to the result."""


def read_scores(m: Match, product: Call) -> Scores:
    """What `product`, a matmul or an einsum whose result goes into the softmax, multiplies. Refuses the match where
    it is no product of queries and keys."""
    if product.op == "matmul":
        rank = _equal_ranks(m, product)
        return Scores(keep(rank), swap(rank))
    a, b, out = _terms(m, product)
    batch = "".join(x for x in out if x in a and x in b)
    row, column, inner = _labels(m, product, a, b, out)
    if out != batch + row + column:
        m.fail("the result of einsum {} is not ordered as batch, queries, keys", product.fields["equation"])
    return Scores(_find(a, batch + row + inner), _find(b, batch + column + inner))


def read_sums(m: Match, product: Call) -> Sums:
    """What `product`, a matmul or an einsum whose first operand is the softmax, does with its second."""
    if product.op == "matmul":
        rank = _equal_ranks(m, product)
        return Sums(keep(rank), keep(rank))
    a, b, out = _terms(m, product)
    batch = "".join(x for x in a if x in b and x in out)
    row, column, inner = _labels(m, product, a, b, out)
    if a != batch + row + inner:
        m.fail("the weights of einsum {} are not ordered as batch, queries, keys", product.fields["equation"])
    return Sums(_find(b, batch + inner + column), _find(batch + row + column, out))


def _equal_ranks(m: Match, product: Call) -> int:
    ranks = [m.rank(operand) for operand in product.operands]
    if ranks[0] != ranks[1] or ranks[0] < 3:
        m.fail("the operands of matmul have {} and {} axes", *ranks)
    return ranks[0]


def _terms(m: Match, product: Call) -> tuple[str, str, str]:
    equation = product.fields["equation"].replace(" ", "")
    operands, arrow, out = equation.partition("->")
    terms = (*operands.split(","), out)
    if not arrow or len(terms) != 3 or not all(t.isalpha() and len(set(t)) == len(t) for t in terms):
        m.fail("einsum {} is not read: it must name every axis once and say its result", equation)
    return terms[0], terms[1], terms[2]


def _labels(m: Match, product: Call, a: str, b: str, out: str) -> tuple[str, str, str]:
    """The axis of the first operand alone, that of the second alone, and the one that is summed over."""
    row = [x for x in a if x in out and x not in b]
    column = [x for x in b if x in out and x not in a]
    inner = [x for x in a if x in b and x not in out]
    others = set(a) ^ set(b) ^ set(row) ^ set(column)
    if (len(row), len(column), len(inner)) != (1, 1, 1) or others or len(out) < 3:
        m.fail("einsum {} is no batched matrix product", product.fields["equation"])
    return row[0], column[0], inner[0]


def _find(labels: str, wanted: str) -> Perm:
    return tuple(labels.index(x) for x in wanted)
