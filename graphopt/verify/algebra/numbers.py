"""Whether elements are numbers that are known whatever the point is."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from graphopt.verify.algebra.roots import rational
from graphopt.verify.algebra.tensor import FieldTensor, minus_infinity
from graphopt.verify.algebra.unknown import keys, same


def is_zero(x: FieldTensor) -> bool:
    """Whether all elements are 0."""
    return x.facts.rational and all(c is None or not np.any(c) for c in x.channels)


def constant_of(x: FieldTensor) -> Fraction | None:
    """The one rational number that all elements are."""
    if not x.facts.rational or x.size == 0 or any(c is None or np.ptp(c) for c in x.channels):
        return None
    return rational([int(np.ravel(c)[0]) for c in x.channels if c is not None], x.point.moduli)


def is_number(x: FieldTensor) -> bool:
    """Whether all elements are numbers that do not depend on the point: two that differ there are different ones."""
    return x.facts.rational or bool(np.all(same(keys(x), keys(minus_infinity(x.point)))))


def is_infinite(x: FieldTensor) -> bool:
    """Whether all elements are the same infinity, which no real number equals."""
    low = minus_infinity(x.point)
    return x.size > 0 and any(bool(np.all(same(keys(x), keys(end)))) for end in (low, -low))
