"""Of the catalogue's rewrites the right ones are proved, at the level that is stated, and no wrong one ever is."""

from __future__ import annotations

import pytest

from benchmarks.proof_catalogue_more import CATALOGUE, Entry
from graphopt.verify.prove import prove

RIGHT = [e for e in CATALOGUE if e.after is not None]
WRONG = [(e, name) for e in CATALOGUE for name in e.wrong]


def test_the_catalogue_is_long():
    assert len(RIGHT) >= 39 and len(WRONG) >= 60


@pytest.mark.parametrize("entry", RIGHT, ids=lambda e: e.name)
def test_right_rewrites_are_proved(entry: Entry):
    assert entry.after is not None
    proof = prove(entry.fragment(entry.after), entry.feeds())
    assert (proof.level, proof.sampled) == (entry.level, ()), proof
    assert proof.weights in ("all", "large"), proof
    assert proof.log2_error is None or proof.log2_error < -40


@pytest.mark.parametrize(("entry", "name"), [pytest.param(e, n, id=f"{e.name}: {n}") for e, n in WRONG])
def test_wrong_rewrites_are_not(entry: Entry, name: str):
    for seed in range(3):
        proof = prove(entry.fragment(entry.wrong[name]), entry.feeds(), seed=seed)
        assert not proof.holds and proof.reason, proof
        assert "its meaning fails" not in proof.reason, proof
