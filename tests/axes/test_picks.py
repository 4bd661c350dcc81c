"""Numbers by which elements are picked: what is picked keeps what stays of what it is picked from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.axes.picks import Digit, digits, pick
from graphopt.axes.terms import Space, Term


def kept_of_what_is_picked(space: Space, term: Term, numbers: np.ndarray, picked: Term) -> None:
    """Each element that stays is picked from one that stays."""
    rng = np.random.default_rng(0)
    leaves = [leaf for leaf in dict.fromkeys([*space.leaves(term), *space.leaves(picked)]) if leaf.frozen is None]
    for _ in range(8):
        keep = {leaf: rng.random(leaf.size) < 0.6 for leaf in leaves}
        stays = space.mask(picked, keep)
        assert space.mask(term, keep)[numbers[stays]].all()
        repeated = {leaf for leaf in leaves if leaf not in set(space.leaves(term))}
        only = {leaf: mask for leaf, mask in keep.items() if leaf not in repeated}
        assert np.array_equal(space.mask(term, only)[numbers], space.mask(picked, only))


@st.composite
def structured(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    """Numbers that a reshape, a slice, a transposition and a repetition make of 0 to n."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    n = int(np.prod(shape))
    numbers = np.arange(n).reshape(shape)
    for dim, size in enumerate(shape):
        start = draw(st.integers(0, size - 1))
        stop = draw(st.integers(start + 1, size))
        numbers = numbers[(slice(None),) * dim + (slice(start, stop, draw(st.integers(1, 2))),)]
    numbers = numbers.transpose(draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()):
        numbers = np.repeat(numbers[None], 2, 0)
    return n, numbers.reshape(-1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(structured())
def test_what_is_picked_stays_where_it_is_picked_from_stays(given: tuple[int, np.ndarray]) -> None:
    n, numbers = given
    space = Space()
    term = space.term(n)
    picked = pick(space, term, numbers)
    if picked is not None:
        kept_of_what_is_picked(space, term, numbers, picked)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(2, 9).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(0, n - 1), max_size=9))))
def test_of_any_numbers_nothing_wrong_is_said(given: tuple[int, list[int]]) -> None:
    n, numbers = given
    space = Space()
    term = space.sum([space.term(n // 2), space.term(n - n // 2)])
    picked = pick(space, term, np.array(numbers, np.int64))
    if picked is not None:
        kept_of_what_is_picked(space, term, np.array(numbers, np.int64), picked)


@pytest.mark.parametrize(
    ("numbers", "sizes", "fixed"),
    [
        (np.arange(12), [12], []),
        (np.arange(12).reshape(3, 4).T.reshape(-1), [4, 3], []),
        (np.arange(12).reshape(2, 3, 2).transpose(1, 0, 2).reshape(-1), [3, 2, 2], []),
        (np.arange(2, 7), [5], []),
        (np.arange(1, 12, 3), [4], [3]),
        (np.arange(12).reshape(3, 4)[:, 1:3].reshape(-1), [3, 2], []),
        (np.repeat(np.arange(12), 2), [12, 2], []),
    ],
)
def test_numbers_that_count_in_digits_keep_axes_apart(numbers: np.ndarray, sizes: list[int], fixed: list[int]) -> None:
    space = Space()
    term = space.term(12)
    picked = pick(space, term, numbers)
    assert picked is not None
    assert [(leaf.size, leaf.frozen) for leaf in space.leaves(picked)] == [(size, None) for size in sizes]
    assert [leaf.size for leaf in space.leaves(term) if leaf.frozen is not None] == fixed


@pytest.mark.parametrize(
    "numbers",
    [[3, 2, 1, 0], [0, 1, 1, 2], [0, 1, 3], [0, 5, 1, 6], [0, 5, 10], [4], [4, 4], []],
    ids=["backwards", "overlapping", "uneven", "digits that do not fit", "steps that do not", "one", "again", "none"],
)
def test_nothing_is_said_of_other_numbers(numbers: list[int]) -> None:
    space = Space()
    term = space.term(12)
    assert pick(space, term, np.array(numbers, np.int64)) is None
    assert [(leaf.size, leaf.frozen) for leaf in space.leaves(term)] == [(12, None)]


def test_digits() -> None:
    assert digits(np.array([0, 1, 2, 3, 4, 5])) == [Digit(6, 1)]
    assert digits(np.array([0, 3, 1, 4, 2, 5])) == [Digit(3, 1), Digit(2, 3)]
    assert digits(np.array([7, 7, 9, 9])) == [Digit(2, 2), Digit(2, 0)]
    assert digits(np.array([0, 1, 3])) is None
