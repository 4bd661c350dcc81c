"""Constants of files that other tools wrote, read as the simple numbers that they are close to.

A folded constant is rounded: 0.33333334 stands for 1/3, and what one tool rounds once another rounds twice. So a
constant becomes the simplest fraction, or root of one, within `CLOSE`; failing that, the first one met within `SAME`.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from graphopt.ir.weights import Array
from graphopt.verify.algebra.roots import positive_root
from graphopt.verify.algebra.tensor import CONSTANT, FieldTensor, Point, lift

CLOSE = 4e-7
"""How far, relatively, a constant may be from the simple number that it is read as."""
SAME = 2e-6
"""How far two constants may be from each other that are read as one."""
DISTINCT = 256
"""Distinct numbers of a tensor up to which its constants are read so: of many some are close by accident."""
SIMPLE, SIMPLE_ROOT = 1 << 14, 1 << 12
"""Bounds of numerator times denominator."""


class Table:
    """What constants are read as, for both of two programs. What a number was read as once it stays.

    Args:
        point: where the programs are evaluated.
    """

    def __init__(self, point: Point) -> None:
        self._point = point
        self._met: list[float] = []
        self._residues: dict[float, tuple[tuple[int, ...], bool]] = {}
        self.moved: dict[float, str] = {}
        """Each number that was read as another one, and what it was read as."""

    def tensor(self, data: Array, dtype: str) -> FieldTensor:
        """`data` of a float dtype, its constants read as simple numbers where they are few."""
        wide = np.asarray(data).astype(np.float64)
        distinct, places = np.unique(np.abs(wide), return_inverse=True)
        if len(distinct) > DISTINCT or not np.all(np.isfinite(distinct)):
            return lift(self._point, np.asarray(data), dtype)
        read = [self._read(float(m)) for m in distinct]
        channels: list[Array | None] = []
        for i, p in enumerate(self._point.moduli):
            values = np.asarray([residues[i] for residues, _ in read], np.int64)[places].reshape(wide.shape)
            channels.append(np.where(wide < 0, -values % p, values))
        rational = all(r for _, r in read)
        return FieldTensor(self._point, channels, replace(CONSTANT, rational=rational, dtype=dtype, fits=dtype))

    def _read(self, number: float) -> tuple[tuple[int, ...], bool]:
        """The residues of a number that is not negative, and whether they are those of a rational one."""
        if number in self._residues:
            return self._residues[number]
        place = bisect.bisect(self._met, number)
        near = [m for m in self._met[max(0, place - 1) : place + 1] if abs(m - number) <= SAME * number]
        if near:
            closest = min(near, key=lambda m: abs(m - number))
            found = self._residues[closest]
            self.moved[number] = repr(closest)
        else:
            bisect.insort(self._met, number)
            found = self._simple(number)
        self._residues[number] = found
        return found

    def _simple(self, number: float) -> tuple[tuple[int, ...], bool]:
        moduli = self._point.moduli
        if number and 1e-12 < number < 1e12:
            fraction = simplest(number, CLOSE)
            if fraction.numerator * fraction.denominator <= SIMPLE:
                if fraction != Fraction(number):
                    self.moved[number] = str(fraction)
                return tuple(_residue(fraction, p) for p in moduli), True
            square = simplest(number * number, 2 * CLOSE)
            if square.numerator * square.denominator <= SIMPLE_ROOT:
                roots = positive_root(square, moduli)
                if roots is not None:
                    self.moved[number] = f"sqrt({square})"
                    return tuple(roots), False
        return tuple(_residue(Fraction(number), p) for p in moduli), True


def simplest(number: float, tolerance: float) -> Fraction:
    """The fraction of the least denominator within `tolerance`, relatively, of a positive number."""
    low, high = Fraction(number * (1 - tolerance)), Fraction(number * (1 + tolerance))
    return _between(low, high)


def _between(low: Fraction, high: Fraction) -> Fraction:
    """The simplest fraction of a closed interval, by the continued fractions of its ends."""
    whole = math.floor(low)
    if whole == low:
        return Fraction(whole)
    if whole + 1 <= high:
        return Fraction(whole + 1)
    return whole + 1 / _between(1 / (high - whole), 1 / (low - whole))


def _residue(fraction: Fraction, p: int) -> int:
    return fraction.numerator * pow(fraction.denominator, -1, p) % p
