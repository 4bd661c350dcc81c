"""No mutant of a proved rewrite is proved if its numbers differ."""

from __future__ import annotations

import random

import numpy as np
import pytest

from benchmarks.mutants import Hunt, Mutant, Tally, differ, evaluated, mutants
from benchmarks.proof_catalogue_more import CATALOGUE, Entry

RIGHT = [e for e in CATALOGUE if e.after is not None]
EACH = 4


@pytest.fixture(scope="module")
def found() -> Tally:
    tally = Tally()
    for entry in RIGHT:
        assert entry.after is not None
        Hunt(entry.name, entry.fragment(entry.after), entry.feeds(), 2026, tally).make(EACH)
    return tally


def test_no_mutant_whose_numbers_differ_is_proved(found: Tally):
    assert not found.wrong, found.wrong


def test_most_mutants_can_be_computed_and_differ(found: Tally):
    assert found.made >= EACH * len(RIGHT) * 0.9
    assert found.differing >= 0.5 * found.made
    assert found.differing + found.equal + found.failing == found.made


@pytest.mark.parametrize("entry", RIGHT, ids=lambda e: e.name)
def test_what_is_proved_is_equal_in_double_precision(entry: Entry):
    assert entry.after is not None
    fragment = entry.fragment(entry.after)
    rng = np.random.default_rng(1)
    feeds = [rng.standard_normal(f.shape).astype(np.float32) for f in entry.feeds()]
    assert differ(evaluated(fragment, fragment.before, feeds), evaluated(fragment, fragment.after, feeds)) == ""


def test_a_mutant_is_the_after_side_with_a_change_and_nothing_else_is_touched():
    entry = next(e for e in RIGHT if e.name == "silu")
    assert entry.after is not None
    fragment = entry.fragment(entry.after)
    source = mutants(fragment, random.Random(0))
    made: list[Mutant] = [next(source) for _ in range(10)]
    assert all(m.fragment.before is fragment.before for m in made)
    assert all(set(m.fragment.after.nodes).isdisjoint(fragment.after.nodes) for m in made)
    assert len({m.change for m in made}) > 3


def test_differences_of_nan_alone_are_told_apart():
    assert differ([np.array([1.0, np.nan])], [np.array([1.0, 2.0])]) == "special"
    assert differ([np.array([1.0, np.nan])], [np.array([1.1, 2.0])]) == "number"
    assert differ([np.array([1.0])], [np.array([1.0 + 1e-12])]) == ""
    assert differ([np.zeros(2)], [np.zeros((1, 2))]) == "number"
