"""Arithmetic modulo primes agrees with Python's integers, digit for digit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.verify.algebra import field
from graphopt.verify.algebra.field import safe_prime
from graphopt.verify.algebra.roots import positive_root, rational

PRIMES = [safe_prime(n) for n in (1, 10**6)]
P = PRIMES[0]
RNG = np.random.default_rng(3)


def draw(*shape: int) -> np.ndarray:
    return RNG.integers(0, P, shape)


@pytest.mark.parametrize("seed", range(40))
def test_the_primes_are_what_they_are_said_to_be(seed: int):
    p = safe_prime(seed * 12345677)
    q = (p - 1) // 2
    assert 3 * 2**29 < p < 2**31
    for modulus in (p, q):
        assert all(modulus % n for n in range(2, 46342))
        assert modulus % 4 == 3
        assert all(pow(n, (modulus - 1) // 2, modulus) == 1 for n in (2, 3, 5, 7, 11, 13))


def test_primes_are_many():
    assert len({safe_prime(seed) for seed in range(0, 10**6, 1009)}) > 100


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(PRIMES))
def test_a_float_is_the_dyadic_rational_that_it_is(x: float, p: int):
    exact = Fraction(x)
    expected = exact.numerator * pow(exact.denominator, -1, p) % p
    assert field.residues(np.asarray(x), p) == expected


def test_integers_and_truth_values_are_themselves():
    assert field.residues(np.array([-1, 0, 2**40]), P).tolist() == [P - 1, 0, 2**40 % P]
    assert field.residues(np.array([True, False]), P).tolist() == [1, 0]


@pytest.mark.parametrize("depth", [1, 3, 64, 5000])
def test_products_of_matrices_are_exact(depth: int):
    a, b = draw(2, depth), draw(depth, 3)
    a[0], b[:, 0] = P - 1, P - 1  # the greatest sums there are
    expected = a.astype(object) @ b.astype(object) % P
    assert np.array_equal(field.contract(np.matmul, a, b, depth, P), expected)


def test_inverses_and_powers():
    x = draw(50)
    x[x == 0] = 1
    assert np.all(x * field.inverse(x, P) % P == 1)
    assert field.power(x, 13, P).tolist() == [pow(int(v), 13, P) for v in x]
    exponents = draw(50)
    assert field.power_of(7, exponents, P).tolist() == [pow(7, int(e), P) for e in exponents]


MODULI = [m for p in PRIMES for m in (p, p // 2)]


@given(st.fractions(max_denominator=10**6).filter(lambda x: abs(x) < 10**6))
def test_a_fraction_is_found_again_from_its_residues(x: Fraction):
    residues = [x.numerator * pow(x.denominator, -1, m) % m for m in MODULI]
    assert rational(residues, MODULI) == x


def test_residues_of_no_simple_fraction_are_none():
    assert all(rational([int(RNG.integers(0, m)) for m in MODULI], MODULI) is None for _ in range(200))


@pytest.mark.parametrize("root", [Fraction(17), Fraction(19, 23), Fraction(8), Fraction(0), Fraction(1, 640)])
def test_the_root_of_a_square_is_positive(root: Fraction):
    expected = [root.numerator * pow(root.denominator, -1, m) % m for m in MODULI]
    assert positive_root(root * root, MODULI) == expected


def test_roots_multiply_as_real_ones_do():
    roots = {n: positive_root(Fraction(n), MODULI) for n in (6, 10, 15, 30)}
    for (a, b, c), product in {(6, 10, 15): 30}.items():
        for i, m in enumerate(MODULI):
            assert roots[a][i] * roots[b][i] * roots[c][i] % m == product
    assert positive_root(Fraction(17), MODULI) is None and positive_root(Fraction(-4), MODULI) is None


def test_hashes_differ_wherever_words_do():
    words = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(field.keyed([words], 1))) == len(words)
    one, other = field.keyed([words, words[::-1]], 1), field.keyed([words[::-1], words], 1)
    assert np.count_nonzero(one == other) == 0
    found = field.expanded(words, 0, P)
    assert abs(float(found.mean()) / P - 0.5) < 0.01
