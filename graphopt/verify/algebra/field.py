"""Exact arithmetic modulo primes, vectorised: residues are int64 arrays in [0, p).

The primes come in pairs: p is a safe prime, 2q + 1, so that the numbers modulo p have a subgroup of the prime order q,
in which exponents are numbers modulo q. In both fields -1 is no square, so that of the two roots of a square exactly
one is a square itself; and 2, 3, 5, 7, 11 and 13 are squares, so that their roots exist. Which primes is drawn anew for
each proof, for else the product of all of them would pass for 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from graphopt.ir.weights import Array

SQUARES = (2, 3, 5, 7, 11, 13)
"""Primes that are squares modulo every modulus."""
_STRIDE = 8 * math.prod(SQUARES[1:])
_LEAST = 3 * 2**28


@cache
def _classes() -> tuple[int, ...]:
    """What q is modulo the stride where the module's docstring holds of q and 2q + 1."""

    def square(n: int, r: int) -> bool:
        return pow(n, (r - 1) // 2, r) == 1

    def fits(n: int, r: int) -> bool:  # quadratic reciprocity for r modulo an n that is 3 modulo 4
        return n % r != 0 and square(n, r) == (r % 4 == 1)

    kept = range(7, _STRIDE, 8)
    return tuple(q for q in kept if all(fits(n, r) for r in SQUARES[1:] for n in (q, 2 * q + 1)))


def safe_prime(seed: int) -> int:
    """One of some thousand primes p below 2^31 for which q = (p - 1) / 2 is prime, and all that the module's docstring
    says holds."""
    classes = _classes()
    places = (2**30 - _LEAST) // _STRIDE * len(classes)
    place = seed % places
    while True:
        q = _LEAST - _LEAST % _STRIDE + place // len(classes) * _STRIDE + classes[place % len(classes)]
        if is_prime(q) and is_prime(2 * q + 1):
            return 2 * q + 1
        place = (place + 1) % places


def is_prime(n: int) -> bool:
    """Miller-Rabin with bases that decide every odd n from 63 to 2^32 (Jaeschke 1993)."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 7, 61):
        x = pow(base, odd, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


def power(x: Array, exponent: int, p: int) -> Array:
    """x to a power of at least 0, modulo p."""
    result = np.ones_like(x)
    while exponent:
        if exponent & 1:
            result = result * x % p
        exponent >>= 1
        if exponent:
            x = x * x % p
    return result


def power_of(base: int, exponent: Array, p: int) -> Array:
    """`base` to the power of each of `exponent`, which are below 2^31, modulo p."""
    result = np.ones_like(exponent)
    factor = base % p
    for bit in range(31):
        result = np.where(exponent >> bit & 1, result * factor % p, result)
        factor = factor * factor % p
    return result


def inverse(x: Array, p: int) -> Array:
    """1 / x modulo p, by Fermat's little theorem; 0 for 0, which the caller must not ask for."""
    return power(x, p - 2, p)


def residues(x: Array, p: int) -> Array:
    """Finite floats (as the dyadic rationals that they are), integers or truth values modulo p."""
    if x.dtype == np.uint64:
        return (x % np.uint64(p)).astype(np.int64)
    if x.dtype == np.bool_ or np.issubdtype(x.dtype, np.integer):
        return np.asarray(x.astype(np.int64) % p)
    mantissa, exponent = np.frexp(x.astype(np.float64))
    numerator = np.asarray(mantissa * 2.0**53).astype(np.int64) % p
    exponent = exponent.astype(np.int64) - 53
    scale = power_of(2, np.abs(exponent), p)
    scale = np.where(exponent < 0, power_of(pow(2, -1, p), np.abs(exponent), p), scale)
    return np.asarray(numerator * scale % p)


def contract(product: Callable[[Array, Array], Array], a: Array, b: Array, depth: int, p: int) -> Array:
    """A bilinear `product` of residues that adds `depth` products to each of its results, modulo p.

    It is asked for floats: b is cut into limbs so short that no sum of products exceeds 2^53, which double precision
    holds exactly. That uses the machine's own matrix product, some hundred times faster than products of integers.
    """
    bits = min(16, 53 - 31 - max(0, math.ceil(math.log2(max(1, depth)))))
    if bits < 1:
        raise OverflowError(f"a sum of {depth} products")
    left = a.astype(np.float64)
    result: Any = 0
    for shift in range(0, 31, bits):
        limb = (b >> shift & ((1 << bits) - 1)).astype(np.float64)
        part = np.asarray(product(left, limb)).astype(np.int64) % p
        result = (result + part * ((1 << shift) % p)) % p
    return np.asarray(result)


# ---- keyed hashes ------------------------------------------------------------------------------------------------

_STEP = 0x9E3779B97F4A7C15


def mixed(x: Array) -> Array:
    """A bijection of 64-bit words that changes half of the result's bits for each changed bit of the argument: the
    finaliser of splitmix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(_STEP)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def keyed(words: Sequence[Array], key: int) -> Array:
    """A 64-bit hash of `words`, elementwise, under `key`."""
    state = np.asarray(np.uint64(key))
    for word in words:
        state = mixed(state ^ word.astype(np.uint64))
    return mixed(state)


def expanded(words: Array, channel: int, p: int) -> Array:
    """Residues that follow from 64-bit hashes, others for each `channel`."""
    return (mixed(words ^ np.uint64(_STEP * (channel + 1) % 2**64)) % np.uint64(p)).astype(np.int64)
