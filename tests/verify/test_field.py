"""Arithmetic modulo primes agrees with Python's integers, digit for digit."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.verify.algebra import field
from graphopt.verify.algebra.field import SAFE_PRIMES

P = SAFE_PRIMES[0]
RNG = np.random.default_rng(3)


def draw(*shape: int) -> np.ndarray:
    return RNG.integers(0, P, shape)


def is_prime(n: int) -> bool:
    """Miller-Rabin with bases that decide every n below 3 * 10^24."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        x = pow(base, odd, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


@pytest.mark.parametrize("p", SAFE_PRIMES)
def test_the_primes_are_what_they_are_said_to_be(p: int):
    q = (p - 1) // 2
    assert p < 2**31 and is_prime(p) and is_prime(q)
    for modulus in (p, q):
        assert modulus % 4 == 3
        assert all(pow(n, (modulus - 1) // 2, modulus) == 1 for n in (2, 3, 5, 7, 11, 13))


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(SAFE_PRIMES))
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


def test_roots_are_squares_themselves():
    x = draw(200)
    root, exists = field.square_root(x, P)
    assert 50 < exists.sum() < 150
    assert np.all(root[exists] ** 2 % P == x[exists])
    assert all(pow(int(r), (P - 1) // 2, P) == 1 for r in root[exists] if r)


def test_hashes_differ_wherever_words_do():
    words = np.arange(100_000, dtype=np.uint64)
    assert len(np.unique(field.keyed([words], 1))) == len(words)
    one, other = field.keyed([words, words[::-1]], 1), field.keyed([words[::-1], words], 1)
    assert np.count_nonzero(one == other) == 0
    found = field.expanded(words, 0, P)
    assert abs(float(found.mean()) / P - 0.5) < 0.01
