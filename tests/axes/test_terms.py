"""Axes unify as their sizes say, and freeze where they do not fit."""

from __future__ import annotations

import numpy as np

from graphopt.axes.terms import Space


def mask(*kept: int, size: int) -> np.ndarray:
    found = np.zeros(size, bool)
    found[list(kept)] = True
    return found


def test_a_product_keeps_the_kronecker_product_of_what_its_factors_keep() -> None:
    space = Space()
    whole, heads, width = space.term(6), space.term(2), space.term(3)
    space.unify(whole, (*heads, *width))
    outer, inner = space.leaves(whole)
    assert space.mask(whole, {outer: mask(1, size=2), inner: mask(0, 2, size=3)}).tolist() == [0, 0, 0, 1, 0, 1]


def test_a_sum_keeps_what_its_summands_keep_one_after_the_other() -> None:
    space = Space()
    a, b = space.term(2), space.term(3)
    joined = space.sum([a, b])
    assert space.mask(joined, {a[0]: mask(0, size=2)}).tolist() == [1, 0, 1, 1, 1]


def test_cuts_of_two_sums_are_refined_to_common_ones() -> None:
    space = Space()
    one, other = space.term(6), space.term(6)
    space.cut(one, [2, 4])
    space.cut(other, [4, 2])
    space.unify(one, other)
    assert [leaf.size for leaf in space.leaves(one)] == [2, 2, 2]
    assert list(space.leaves(one)) == list(space.leaves(other))


def test_a_cut_that_leaves_all_in_one_piece_can_be_unified_with_it() -> None:
    space = Space()
    rows, width = space.term(4), space.term(3)
    none, whole = space.cut((*rows, *width), [0, 12])
    space.unify((*rows, *width), whole)
    assert space.size(none) == 0
    assert [leaf.size for leaf in space.leaves(whole)] == [4, 3]
    assert all(leaf.frozen is None for leaf in space.leaves(whole))


def test_halves_that_are_unified_with_each_other_are_one_leaf() -> None:
    space = Space()
    gate = space.term(8)
    a, b = space.cut(gate, [4, 4])
    space.unify(a, b)
    (first, second) = space.leaves(gate)
    assert first is second
    assert space.mask(gate, {first: mask(1, size=4)}).tolist() == [0, 1, 0, 0] * 2


def test_a_sum_is_divided_where_each_summand_can_be() -> None:
    space = Space()
    joined = space.sum([space.term(4), space.term(6)])
    groups = space.term(5)
    space.unify(joined, (*groups, *space.term(2)))
    *outer, inner = space.leaves(joined)
    assert [leaf.size for leaf in space.leaves(groups)] == [2, 3]
    assert inner.size == 2 and all(leaf.frozen is None for leaf in outer)


def test_divisions_that_do_not_fit_freeze_both_sides() -> None:
    space = Space()
    a, b = (*space.term(4), *space.term(3)), (*space.term(3), *space.term(4))
    space.unify(a, b)
    assert all(leaf.frozen for term in (a, b) for leaf in space.leaves(term))


def test_what_fits_at_the_inner_end_stays_free_when_the_outer_end_does_not() -> None:
    space = Space()
    inner = space.term(5)
    space.unify((*space.term(4), *space.term(3), *inner), (*space.term(3), *space.term(4), *space.term(5)))
    assert [leaf.frozen for leaf in space.leaves(inner)] == [None]


def test_a_leaf_that_is_unified_with_a_frozen_one_is_frozen() -> None:
    space = Space()
    free, fixed = space.term(4), space.term(4, "fixed")
    space.unify(free, fixed)
    assert next(space.leaves(free)).frozen == "fixed"


def test_symbolic_sizes_unify_by_name_and_freeze_otherwise() -> None:
    space = Space()
    width = space.term(8)
    space.unify((*space.term("batch"), *width), (*space.term("batch"), *space.term(2), *space.term(4)))
    assert [leaf.frozen for leaf in space.leaves(width)] == [None, None]
    other = space.term(8)
    space.unify((*space.term("batch"), *other), space.term("batch*8"))
    assert all(leaf.frozen for leaf in space.leaves(other))


def test_places_say_which_index_of_a_leaf_each_index_belongs_to() -> None:
    space = Space()
    whole, heads = space.term(6), space.term(2)
    space.unify(whole, (*heads, *space.term(3)))
    outer, inner = space.leaves(whole)
    assert space.places(whole, outer).tolist() == [0, 0, 0, 1, 1, 1]
    assert space.places(whole, inner).tolist() == [0, 1, 2, 0, 1, 2]


def test_sums_are_as_long_as_shortened_summands() -> None:
    space = Space()
    a, b = space.term(2), space.term(3)
    joined = space.sum([a, b])
    space.shorten({b[0]: mask(0, size=3)})
    assert space.size(joined) == 3
