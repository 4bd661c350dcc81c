"""Tensors whose elements are known modulo several primes, with numpy's operators and structural functions.

A real number that a program computes from its inputs by + - * / is a quotient of polynomials. At a random point of a
finite field two such quotients agree by chance with a probability of at most their degree over the size of the field
(Schwartz 1980, Zippel 1979), so tensors carry a bound of their degree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from graphopt.ir.weights import FLOATS, Array
from graphopt.verify.algebra import field as modular


class Undecided(Exception):
    """The field cannot say what a program computes; carries the reason."""


ORDER = "the order of numbers that are sorted"
Order = Literal["own", "opposite", "halves", "equal"]
"""Of numbers that are sorted: the one that they have at a point, its opposite, that of two classes of equal numbers,
and that of numbers which are all equal."""
Lanes = tuple[Array, Array]
"""Two 64-bit hashes of every element."""


@dataclass
class Point:
    """A random point at which programs are evaluated: the moduli, the key of unknown functions, and what was met."""

    moduli: tuple[int, ...]
    key: int
    functions: set[str] = field(default_factory=set)
    """Names of the functions that were treated as unknown ones."""
    applications: int = 0
    """To how many elements unknown functions were applied."""
    argument_degree: float = 1.0
    """The greatest degree of what unknown functions were applied to."""
    work: int = 0
    """Multiplications of residues so far."""
    limit: int = 10**12
    """Of the work; beyond it evaluation ends with `Undecided`."""
    sampled: set[str] = field(default_factory=set)
    """What was not left open but drawn: an order of numbers that a sort depends on."""
    compared: set[int] = field(default_factory=set)
    """Hashes of the rows of numbers that were sorted."""
    order: Order = "own"
    """How numbers are sorted here."""
    closed: bool = False
    """Whether nothing else may be sorted: an order that only one of two programs asks for may agree by chance."""

    def sort(self, rows: set[int]) -> None:
        """Take account of rows of numbers that are sorted. Where some of them are equal, what comes first in the row
        matters, so that the same numbers in other places are another row."""
        if self.closed and not rows <= self.compared:
            raise Undecided("the new side sorts numbers that the old one does not sort")
        self.sampled.add(ORDER)
        self.compared |= rows

    def spend(self, work: int) -> None:
        self.work += work
        if self.work > self.limit:
            raise Undecided(f"more than {self.limit:.0e} multiplications")


@dataclass(frozen=True)
class Facts:
    """What is known of all elements of a tensor."""

    above: float = 1.0
    """A bound of the degree of their numerators."""
    below: float = 0.0
    """A bound of the degree of their denominators."""
    rational: bool = False
    """Whether they are rational numbers, the same at every point."""
    kind: str = "float"
    """"float", "int" or "bool"."""
    dtype: str | None = None
    """The float dtype that the program computes them in; None for numbers that adapt to what they meet."""
    fits: str | None = None
    """The narrowest float dtype that holds them as they are; None if none is known to."""

    @property
    def degree(self) -> float:
        return self.above + self.below


CONSTANT = Facts(0.0, 0.0, rational=True)
FRESH = Facts()
"""Of elements that are random numbers of their own."""


class FieldTensor:
    """An array known modulo each of `point.moduli`; a modulus under which nothing is known any more has None."""

    __array_ufunc__ = None  # so that an ndarray on the left leaves its operators to those below
    __array_priority__ = 100

    def __init__(self, point: Point, channels: Sequence[Array | None], facts: Facts) -> None:
        self.point = point
        self.channels = tuple(channels)
        self.facts = facts
        self.negative: FieldTensor | None = None
        """What this is the negative of: negation is an involution for unknown functions too."""
        self.least: tuple[Lanes, ...] = ()
        """Hashes of numbers that this one is known to be at least, elementwise."""
        self.fixed: frozenset[str] = frozenset()
        """Names of functions that leave this as it is."""
        self.capped: tuple[FieldTensor, FieldTensor] | None = None
        """What this is the minimum of, the second of them a constant."""

    # ---- as an array -----------------------------------------------------------------------------------------

    @property
    def _some(self) -> Array:
        return next(c for c in self.channels if c is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._some.shape)

    @property
    def ndim(self) -> int:
        return self._some.ndim

    @property
    def size(self) -> int:
        return self._some.size

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype({"float": np.float64, "int": np.int64, "bool": np.bool_}[self.facts.kind])

    @property
    def T(self) -> FieldTensor:
        return self.each(np.transpose)

    def __len__(self) -> int:
        return len(self._some)

    def __index__(self) -> int:
        raise Undecided("a size or an index depends on data")

    __int__ = __float__ = __bool__ = __index__

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        raise Undecided("the numbers themselves are needed")

    def __getitem__(self, index: Any) -> FieldTensor:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, FieldTensor) for part in parts):
            raise Undecided("an index depends on data")
        return self.each(lambda c: c[index])

    def __setitem__(self, index: Any, value: Any) -> None:
        value = self.lifted(value)
        channels: list[Array | None] = []
        for mine, other in zip(self.channels, value.channels, strict=True):
            made = None if mine is None or other is None else np.array(mine)
            if made is not None:
                made[index] = other  # in a copy: other tensors may share the memory
            channels.append(made)
        self.channels = tuple(channels)
        self.facts = joint(self.facts, value.facts)
        self.negative, self.least, self.fixed, self.capped = None, (), frozenset(), None

    def each(self, function: Callable[[Array], Any], facts: Facts | None = None) -> FieldTensor:
        """What a structural function makes of every channel."""
        channels = [None if c is None else np.asarray(function(c)) for c in self.channels]
        return FieldTensor(self.point, channels, facts or self.facts)

    def lifted(self, value: Any) -> FieldTensor:
        return value if isinstance(value, FieldTensor) else lift(self.point, value)

    # ---- arithmetic ------------------------------------------------------------------------------------------

    def _with(self, other: Any, combine: Callable[[Array, Array, int], Array], facts: Facts) -> FieldTensor:
        channels: list[Array | None] = []
        for a, b, p in zip(self.channels, other.channels, self.point.moduli, strict=True):
            channels.append(None if a is None or b is None else np.asarray(combine(a, b, p)))
        result = FieldTensor(self.point, channels, facts)
        self.point.spend(result.size)
        return result

    def __add__(self, other: Any) -> FieldTensor:
        other = self.lifted(other)
        if self.facts.kind == other.facts.kind == "bool":
            either: FieldTensor = self + other.as_kind("int") - self.as_kind("int") * other
            return either.as_kind("bool")
        return self._with(other, lambda a, b, p: (a + b) % p, sum_of(self.facts, other.facts))

    def __sub__(self, other: Any) -> FieldTensor:
        other = self.lifted(other)
        return self._with(other, lambda a, b, p: (a - b) % p, sum_of(self.facts, other.facts))

    def __mul__(self, other: Any) -> FieldTensor:
        other = self.lifted(other)
        result = self._with(other, lambda a, b, p: a * b % p, product_of(self.facts, other.facts))
        return result.as_kind("bool") if self.facts.kind == other.facts.kind == "bool" else result

    def __truediv__(self, other: Any) -> FieldTensor:
        other = self.lifted(other)
        if any(c is not None and not np.all(c) for c in other.channels):
            raise Undecided("a denominator is zero")
        turned = replace(other.facts, above=other.facts.below, below=other.facts.above)
        facts = replace(product_of(self.facts, turned), kind="float")
        return self._with(other, lambda a, b, p: a * modular.inverse(b, p) % p, facts)

    def __neg__(self) -> FieldTensor:
        if self.negative is not None:
            return self.negative
        channels = [None if c is None else -c % p for c, p in zip(self.channels, self.point.moduli, strict=True)]
        result = FieldTensor(self.point, channels, self.facts)
        result.negative = FieldTensor(self.point, self.channels, self.facts)
        result.negative.least = self.least
        return result

    def __radd__(self, other: Any) -> FieldTensor:
        return self.lifted(other) + self

    def __rsub__(self, other: Any) -> FieldTensor:
        return self.lifted(other) - self

    def __rmul__(self, other: Any) -> FieldTensor:
        return self.lifted(other) * self

    def __rtruediv__(self, other: Any) -> FieldTensor:
        return self.lifted(other) / self

    def __matmul__(self, other: Any) -> FieldTensor:
        return matmul(self, self.lifted(other))

    def as_kind(self, kind: str) -> FieldTensor:
        if kind == self.facts.kind:
            return self
        facts = replace(self.facts, kind=kind)
        if kind == "bool":
            facts = replace(facts, dtype=None, fits="float16")
        return FieldTensor(self.point, self.channels, facts)

    # ---- numpy's functions -----------------------------------------------------------------------------------

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from graphopt.verify.algebra.numpy_functions import apply

        return apply(self.point, function, args, kwargs)


# ---- making them -------------------------------------------------------------------------------------------------


def open_facts(dtype: str) -> Facts:
    """Of a variable that stands for all numbers of a dtype."""
    if dtype in FLOATS:
        return replace(FRESH, dtype=dtype, fits=dtype)
    return replace(FRESH, kind="bool" if dtype == "bool" else "int")


def lift(point: Point, value: Any, dtype: str | None = None) -> FieldTensor:
    """Numbers as they are: integers, truth values, and floats as dyadic rationals. `dtype` is the one that the program
    computes them in. Infinities and NaN become numbers of which nothing is known, the same ones each time."""
    if isinstance(value, bool | int | float | np.generic):
        value = np.asarray(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind in "cOSUmM":
        what = value.dtype.name if isinstance(value, np.ndarray) else type(value).__name__
        raise Undecided(f"{what} is no real number")
    kind = {"b": "bool", "i": "int", "u": "int"}.get(value.dtype.kind, "float")
    fits = "float16" if kind == "bool" else _exact_in(value)
    facts = replace(CONSTANT, kind=kind, dtype=dtype, fits=fits)
    if kind != "float":
        return FieldTensor(point, [modular.residues(value, p) for p in point.moduli], facts)
    wide = value.astype(np.float64)
    finite = np.isfinite(wide)
    channels = [modular.residues(np.where(finite, wide, 0.0), p) for p in point.moduli]
    if not np.all(finite):
        facts = replace(FRESH, dtype=dtype, fits=fits)
        channels = [np.where(finite, c, _special(point, wide, i)) for i, c in enumerate(channels)]
    return FieldTensor(point, channels, facts)


def minus_infinity(point: Point) -> FieldTensor:
    return lift(point, -math.inf)


def _special(point: Point, value: Array, channel: int) -> Array:
    """Residues for an infinity of either sign and for NaN; plus infinity is the negative of minus infinity."""
    word = np.where(np.isnan(value), 1, 2).astype(np.uint64)
    p = point.moduli[channel]
    found = modular.expanded(modular.keyed([word], point.key), channel, p)
    return np.where(value == -math.inf, found, -found % p)


def _exact_in(value: Array) -> str | None:
    """The narrowest dtype of files that holds every one of `value`."""
    if value.dtype.kind in "iu" and value.size and max(abs(int(value.min())), abs(int(value.max()))) > 2**24:
        return None
    for dtype in ("float16", "float32"):
        with np.errstate(over="ignore"):
            if np.array_equal(value, value.astype(dtype), equal_nan=value.dtype.kind not in "iu"):
                return dtype
    return None


def random(point: Point, shape: tuple[int, ...], label: str, facts: Facts = FRESH) -> FieldTensor:
    """Independent random residues, the same each time for one `label`."""
    words = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    secret = [np.asarray(point.key % 2**64, np.uint64)]
    lanes = [modular.keyed([words], int(modular.keyed(secret, text_key(f"{label}{lane}")))) for lane in (0, 1)]
    return FieldTensor(point, spread(point, lanes), facts)


def text_key(text: str) -> int:
    """64 bits for a name."""
    import hashlib

    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def spread(point: Point, lanes: Sequence[Array]) -> list[Array]:
    """Residues from two hashes: those of either half of the moduli from one of them."""
    half = (len(point.moduli) + 1) // 2
    return [modular.expanded(lanes[i // half], i, p) for i, p in enumerate(point.moduli)]


# ---- what is known of results ------------------------------------------------------------------------------------


def joint(a: Facts, b: Facts) -> Facts:
    """Of tensors whose elements stand side by side."""
    fits = None if a.fits is None or b.fits is None else wider(a.fits, b.fits)
    above, below = max(a.above, b.above), max(a.below, b.below)
    return Facts(above, below, a.rational and b.rational, _kind(a, b), wider(a.dtype, b.dtype), fits)


def sum_of(a: Facts, b: Facts) -> Facts:
    above = max(a.above + b.below, b.above + a.below)
    return _computed(above, a.below + b.below, a, b)


def product_of(a: Facts, b: Facts) -> Facts:
    return _computed(a.above + b.above, a.below + b.below, a, b)


def repeated_sum(a: Facts, count: int) -> Facts:
    """Of a sum of `count` numbers with denominators of their own."""
    count = max(1, count)
    return _computed(a.above + (count - 1) * a.below, count * a.below, a, a)


def _computed(above: float, below: float, a: Facts, b: Facts) -> Facts:
    dtype, kind = wider(a.dtype, b.dtype), _kind(a, b)
    return Facts(above, below, a.rational and b.rational, "int" if kind == "bool" else kind, dtype, dtype)


def _kind(a: Facts, b: Facts) -> str:
    return a.kind if a.kind == b.kind else "float" if "float" in (a.kind, b.kind) else "int"


def wider(a: str | None, b: str | None) -> str | None:
    """The dtype of what is computed from two, of which None adapts to the other."""
    if a is None or b is None:
        return a or b
    if {a, b} == {"float16", "bfloat16"}:
        return "float32"
    order = ("float16", "bfloat16", "float32", "float64")
    return max(a, b, key=order.index)


# ---- products ----------------------------------------------------------------------------------------------------


def matmul(a: FieldTensor, b: FieldTensor) -> FieldTensor:
    """`np.matmul`."""
    depth = a.shape[-1]
    facts = repeated_sum(product_of(a.facts, b.facts), depth)
    return bilinear(np.matmul, a, b, depth, facts)


def bilinear(
    product: Callable[[Array, Array], Array], a: FieldTensor, b: FieldTensor, depth: int, facts: Facts
) -> FieldTensor:
    channels: list[Array | None] = []
    for x, y, p in zip(a.channels, b.channels, a.point.moduli, strict=True):
        channels.append(None if x is None or y is None else modular.contract(product, x, y, depth, p))
    result = FieldTensor(a.point, channels, facts)
    a.point.spend(result.size * depth)
    return result
