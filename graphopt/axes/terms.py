"""Axes and what they are made of: unification of sizes, as type inference unifies types.

An axis is a leaf, a product of axes (outer to inner, as a reshape joins them) or a sum of terms (one after the other,
as a concatenation joins them). A term is a product of axes: what one dimension of a tensor is. Unifying two terms says
that index i of one is index i of the other; where their structures do not fit, both are frozen, which is always
sound: a frozen axis keeps every index.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from graphopt.ir.graph import Dim

Mask: TypeAlias = npt.NDArray[np.bool_]


class Axis:
    """One axis. Only a `Space` makes axes and looks inside them."""

    __slots__ = ("frozen", "link", "number", "parts", "size", "terms")

    def __init__(self, size: Dim, number: int) -> None:
        self.size = size
        """Its number of indices, or the name of a symbolic size, or None; then it is frozen."""
        self.number = number
        self.frozen: str | None = None
        """Why every index must stay; of leaves only."""
        self.link: Axis | None = None
        """The axis that this one turned out to be."""
        self.parts: Term | None = None
        """Its factors, if it is a product."""
        self.terms: tuple[Term, ...] | None = None
        """Its summands, if it is a sum."""

    def __repr__(self) -> str:
        return f"Axis({self.number}: {self.size})"


Term: TypeAlias = tuple[Axis, ...]
"""A product of axes, outer to inner; () is of size 1."""

DYNAMIC = "its size is not known when the graph is compiled"
MISFIT = "two ways to divide it do not fit each other"


class Space:
    """The axes of one graph and how they are bound. Deterministic: axes are numbered as they are made."""

    def __init__(self) -> None:
        self._count = 0

    # ---- making ------------------------------------------------------------------------------------------

    def term(self, size: Dim, frozen: str | None = None) -> Term:
        """A fresh leaf of this size; () if the size is 1. A size that is no number freezes it."""
        if size == 1:
            return ()
        axis = Axis(size, self._count)
        self._count += 1
        axis.frozen = frozen if isinstance(size, int) else DYNAMIC
        return (axis,)

    def sum(self, terms: Sequence[Term]) -> Term:
        """The terms one after the other."""
        present = [t for t in terms if self.size(t) != 0]
        if len(present) < 2:
            return present[0] if present else self.term(0)
        sizes = [self.size(t) for t in present]
        known = [s for s in sizes if isinstance(s, int)]
        if len(known) < len(sizes):
            for term in present:
                self.freeze(term, DYNAMIC)
            return self.term(None)
        made = self.term(sum(known))
        if made:
            made[0].terms = tuple(present)
        return made

    # ---- looking -----------------------------------------------------------------------------------------

    def root(self, axis: Axis) -> Axis:
        """What `axis` turned out to be."""
        while axis.link is not None:
            if axis.link.link is not None:
                axis.link = axis.link.link
            axis = axis.link
        return axis

    def factors(self, term: Term) -> list[Axis]:
        """The leaves and sums that `term` is the product of."""
        found = []
        pending = list(reversed(term))
        while pending:
            axis = self.root(pending.pop())
            if axis.parts is not None:
                pending.extend(reversed(axis.parts))
            else:
                found.append(axis)
        return found

    def size(self, term: Term) -> Dim:
        """The number of indices; None if it is not known, the name if the term is one symbolic size."""
        sizes = [self._size(axis) for axis in self.factors(term)]
        if len(sizes) == 1:
            return sizes[0]
        return math.prod(s for s in sizes if isinstance(s, int)) if all(isinstance(s, int) for s in sizes) else None

    def _size(self, axis: Axis) -> Dim:
        """A sum is as long as its summands are now."""
        return axis.size if axis.terms is None else sum(_number(self.size(t)) for t in axis.terms)

    def leaves(self, term: Term) -> Iterator[Axis]:
        """The leaves that `term` is made of, in order; a leaf may occur several times."""
        for axis in self.factors(term):
            if axis.terms is None:
                yield axis
            else:
                for part in axis.terms:
                    yield from self.leaves(part)

    def paths(self, term: Term, path: tuple[int, ...] = ()) -> Iterator[tuple[tuple[int, ...], Axis]]:
        """The leaves with the places at which they stand: factor numbers and, in sums, the summand's."""
        factors = self.factors(term)
        for i, axis in enumerate(factors):
            here = (*path, i) if len(factors) > 1 else path
            if axis.terms is None:
                yield here, axis
            else:
                for j, part in enumerate(axis.terms):
                    yield from self.paths(part, (*here, j))

    def mask(self, term: Term, keep: Mapping[Axis, Mask]) -> Mask:
        """Which indices of `term` stay if those of some leaves do: a Kronecker product over factors, one after the
        other over summands."""
        found = np.ones(1, bool)
        for axis in self.factors(term):
            if axis.terms is not None:
                own = np.concatenate([self.mask(t, keep) for t in axis.terms])
            else:
                own = keep[axis] if axis in keep else np.ones(_number(axis.size), bool)
            found = np.kron(found, own)
        return found

    def places(self, term: Term, leaf: Axis) -> npt.NDArray[np.int64]:
        """For each index of `term` the index of `leaf` that it belongs to, -1 if to none; of several, the innermost."""
        found = np.full(1, -1, np.int64)
        for axis in self.factors(term):
            if axis is leaf:
                own = np.arange(_number(axis.size))
            elif axis.terms is not None:
                own = np.concatenate([self.places(t, leaf) for t in axis.terms])
            else:
                own = np.full(_number(axis.size), -1, np.int64)
            outer = np.repeat(found, own.size)
            inner = np.tile(own, found.size)
            found = np.where(inner >= 0, inner, outer)
        return found

    def shorten(self, keep: Mapping[Axis, Mask]) -> None:
        """Let leaves have no more than the indices that stay. For after everything is bound."""
        for leaf, mask in keep.items():
            leaf.size = int(mask.sum())

    # ---- binding -----------------------------------------------------------------------------------------

    def freeze(self, term: Term, reason: str) -> None:
        """Let every index of `term` stay. The first reason is kept."""
        for leaf in self.leaves(term):
            leaf.frozen = leaf.frozen or reason

    def unify(self, a: Term, b: Term) -> None:
        """Let index i of `a` be index i of `b`; both have the same size."""
        left, right = self._match(a, b, outer=True)
        left, right = self._match(left, right, outer=False)
        self.freeze((*left, *right), MISFIT)

    def _match(self, a: Term, b: Term, *, outer: bool) -> tuple[Term, Term]:
        """Unify from the outermost (or innermost) factors on, as far as sizes fit; returns what is left."""
        at = 0 if outer else -1
        while True:
            left, right = self.factors(a), self.factors(b)
            if not left or not right:
                return tuple(left), tuple(right)
            one, other = left[at], right[at]
            if one is other or _same(one.size, other.size):
                del left[at], right[at]
                self._join(one, other)
            else:
                small, large = (one, other) if _smaller(one.size, other.size) else (other, one)
                if self._divide(large, small.size, outer=outer) is None:
                    return tuple(left), tuple(right)
            a, b = tuple(left), tuple(right)

    def _divide(self, axis: Axis, size: Dim, *, outer: bool) -> Term | None:
        """`axis` as a product whose outer (or inner) factor has `size`; None if it cannot be."""
        if not isinstance(size, int) or not isinstance(axis.size, int) or size < 1 or axis.size % size:
            return None
        inner = axis.size // size if outer else size
        if axis.terms is None:
            parts = (*self.term(axis.size // inner, axis.frozen), *self.term(inner, axis.frozen))
        else:
            divided = self._divide_sum(axis.terms, inner)
            if divided is None:
                return None
            parts = divided
        axis.parts, axis.terms = parts, None
        return parts

    def _divide_sum(self, terms: Sequence[Term], inner: int) -> Term | None:
        """Summands of which each is a product with one and the same inner factor."""
        if any(_number(self.size(t)) % inner for t in terms):
            return None
        outers, common = [], self.term(inner)
        for term in terms:
            outer = self.term(_number(self.size(term)) // inner)
            self.unify(term, (*outer, *common))
            outers.append(outer)
        if all(not t for t in outers):
            # Nothing tells the summands apart but their number, which is fixed.
            return (*self.term(len(outers), "it numbers the parts of a concatenation"), *common)
        return (*self.sum(outers), *common)

    def _join(self, a: Axis, b: Axis) -> None:
        """Let two leaves or sums of the same size be one."""
        if a is b:
            return
        if a.terms is not None and b.terms is not None:
            self._join_sums(a, b)
            return
        leaf, other = (a, b) if a.terms is None and (b.terms is not None or a.number > b.number) else (b, a)
        if leaf.frozen is not None:
            self.freeze((other,), leaf.frozen)
        leaf.link = other

    def _join_sums(self, a: Axis, b: Axis) -> None:
        """Cut both sums where either is cut, then let their parts be one by one the same."""
        assert a.terms is not None and b.terms is not None
        for _ in range(_number(a.size)):
            cuts = sorted({*self._cuts(a.terms), *self._cuts(b.terms)})
            sizes = [end - start for start, end in zip([0, *cuts], [*cuts, _number(a.size)], strict=True)]
            first, second = self.cut((a,), sizes), self.cut((b,), sizes)
            if self._cuts(a.terms or ()) == self._cuts(b.terms or ()) == cuts:
                break
        if a.terms is None or b.terms is None or len(first) != len(second):
            self.freeze((a, b), MISFIT)
            return
        b.link, b.terms = a, None
        for one, other in zip(first, second, strict=True):
            self.unify(one, other)

    def _cuts(self, terms: Sequence[Term]) -> list[int]:
        return list(accumulate(_number(self.size(t)) for t in terms))[:-1]

    def cut(self, term: Term, sizes: Sequence[int]) -> list[Term]:
        """`term` as consecutive pieces of these sizes, which add up to its own."""
        if len(sizes) == 1:
            return [term]
        if sum(size != 0 for size in sizes) == 1:
            # A sum of one summand would be as long as that, and unifying both would have one contain itself.
            return [term if size else self.term(0) for size in sizes]
        factors = self.factors(term)
        pieces = self._cut_first(factors, sizes) if factors else None
        if pieces is not None:
            return pieces
        self.freeze(term, MISFIT)
        return [self.term(size, MISFIT) for size in sizes]

    def _cut_first(self, factors: list[Axis], sizes: Sequence[int]) -> list[Term] | None:
        """Cut the outermost of several factors, or the only one; None if the cuts fall inside of the others."""
        axis, rest = factors[0], tuple(factors[1:])
        inner = self.size(rest)
        if not isinstance(axis.size, int) or not isinstance(inner, int) or not inner or any(s % inner for s in sizes):
            return None
        outer = [s // inner for s in sizes]
        if axis.terms is None:
            pieces = [self.term(size, axis.frozen) for size in outer]
            if all(not p for p in pieces):
                self.freeze((axis,), "it is cut into single indices")
            else:
                axis.terms = tuple(p for p in pieces if self.size(p) != 0)
                axis.frozen = None
        else:
            pieces = self._cut_sum(axis, outer)
        return [(*piece, *rest) for piece in pieces]

    def _cut_sum(self, axis: Axis, sizes: Sequence[int]) -> list[Term]:
        """Cut the summands in which a cut falls, and put those of each piece together."""
        assert axis.terms is not None
        pending = list(reversed(axis.terms))
        pieces, kept = [], []
        for size in sizes:
            mine: list[Term] = []
            missing = size
            while missing:
                term = pending.pop()
                own = _number(self.size(term))
                if own > missing:
                    term, rest = self.cut(term, [missing, own - missing])
                    pending.append(rest)
                    own = missing
                mine.append(term)
                missing -= own
            kept += mine
            pieces.append(self.sum(mine) if mine else self.term(0))
        axis.terms = tuple(kept)
        return pieces


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are known to be equal."""
    return a is not None and bool(a == b)


def _smaller(a: Any, b: Any) -> bool:
    return isinstance(a, int) and (not isinstance(b, int) or a < b)


def _number(size: Dim) -> int:
    if not isinstance(size, int):
        raise ValueError(f"an axis of size {size} has no mask")
    return size
