"""Square roots of constants, which have a sign that a finite field alone cannot tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from graphopt.ir.weights import Array
from graphopt.verify.algebra.field import SQUARES
from graphopt.verify.algebra.tensor import FieldTensor

MOST = 256
"""Different constants of one tensor whose roots are worked out."""


def positive_roots(x: FieldTensor) -> list[Array] | None:
    """The positive roots of rational numbers in every channel; None if some cannot be told."""
    known = [np.ravel(c) for c in x.channels if c is not None]
    if len(known) < len(x.channels) or not x.size:
        return None
    distinct, places = np.unique(np.stack(known), axis=1, return_inverse=True)
    if distinct.shape[1] > MOST:
        return None
    found = []
    for column in distinct.T:
        number = rational([int(c) for c in column], x.point.moduli)
        roots = None if number is None else positive_root(number, x.point.moduli)
        if roots is None:
            return None
        found.append(roots)
    chosen = np.asarray(found, np.int64)[np.ravel(places)]
    return [np.reshape(chosen[:, i], x.shape) for i in range(len(known))]


def rational(found: Sequence[int], moduli: Sequence[int]) -> Fraction | None:
    """The simplest quotient with these residues (Wang 1981); None if none is so simple that it is no accident."""
    whole, n = math.prod(moduli), 0
    for residue, p in zip(found, moduli, strict=True):
        rest = whole // p
        n += residue * rest * pow(rest, -1, p)
    r, s, t, u = whole, n % whole, 0, 1
    best = (s, 1)
    while s:
        best = min(best, (s, u), key=lambda pair: pair[0] * abs(pair[1]))
        quotient = r // s
        r, s, t, u = s, r - quotient * s, u, t - quotient * u
    if n % whole == 0:
        return Fraction(0)
    top, bottom = best
    return Fraction(top, bottom) if (top * abs(bottom)).bit_length() + 48 < whole.bit_length() else None


def positive_root(number: Fraction, moduli: Sequence[int]) -> list[int] | None:
    """Residues of the positive root of a rational number, where it is a rational times roots of `SQUARES`.

    A product of such roots is what it is among real numbers. Roots of other primes have no such signs: where 17 is no
    square, the root of 289 that is one is -17.
    """
    if number < 0:
        return None
    rest, odd = number.numerator * number.denominator, []
    for prime in SQUARES:
        while rest and rest % (prime * prime) == 0:
            rest //= prime * prime
        if rest and rest % prime == 0:
            rest //= prime
            odd.append(prime)
    if math.isqrt(rest) ** 2 != rest:
        return None
    outside = math.isqrt(number.numerator * number.denominator // math.prod(odd))
    found = []
    for p in moduli:
        root = outside % p * pow(number.denominator, -1, p) % p
        for prime in odd:
            root = root * pow(prime, (p + 1) // 4, p) % p
        found.append(root)
    return found
