"""The words of a proof name what it rests on and promise nothing else."""

from __future__ import annotations

from graphopt.rewrite.contract import Proof
from graphopt.verify.claims import LEFT_OUT, claim


def test_a_claim_names_all_that_the_proof_rests_on():
    proof = Proof("proof+exp", "", -44.8, ("exp", "max"), ("exp(a + b) = exp(a) exp(b)",), "large", ("integers",))
    said = claim(proof, [(2, 3), ()])
    for part in ("2x3, scalar", "2^-45", "exp, max", "conjectured", "16 elements", "Drawn", "denominators", LEFT_OUT):
        assert part in said


def test_what_is_undecided_says_why():
    assert claim(Proof("undecided", "3 elements differ")) == "undecided: 3 elements differ"


def test_smaller_sizes_and_equal_expressions_are_said():
    assert "smaller than the model's" in claim(Proof("proof@reduced", "", -90.0, reduced=True))
    assert "same expression" in claim(Proof("proof", "both are the same expression"))
    assert "as they are" in claim(Proof("proof", "", -90.0, weights="none"))
