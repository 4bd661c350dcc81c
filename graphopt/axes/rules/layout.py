"""Ops that move elements: reshapes are products of axes, concatenations are sums."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np

from graphopt.axes.analysis import Axes, Dims, Kept, NoRule, rule
from graphopt.axes.picks import PICKED
from graphopt.axes.rules.products import count_literal
from graphopt.axes.terms import Term
from graphopt.ir.graph import Call


@rule("reshape")
def reshape(axes: Axes, call: Call) -> Sequence[Dims]:
    """The factors of all dimensions, outer to inner, stay what they are."""
    x = axes.dims(call.operands[0])
    dims = _same_ends(axes, x, axes.result(call))
    axes.unify(_product(x), _product(dims))
    _shape_literal(axes, call, dims)
    return [dims]


def _same_ends(axes: Axes, x: Dims, sizes: Sequence[Any]) -> Dims:
    """Dimensions of these sizes, those of `x` where its first or last ones are of the same sizes anyway: so a
    symbolic size that stays in place is no obstacle."""
    pairs = [axes.space.size(t) for t in x], list(sizes)
    front = _common(*pairs)
    shortest = min(len(x), len(sizes)) - front
    back = min(_common(*(reversed(p) for p in pairs)), shortest)
    middle = axes.fresh(sizes[front : len(sizes) - back])
    return (*x[:front], *middle, *x[len(x) - back :])


def _common(a: Iterable[Any], b: Iterable[Any]) -> int:
    """How many of the first sizes are known to be equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] is not None and pair[0] == pair[1], zip(a, b, strict=False)))


def _product(dims: Dims) -> Term:
    return tuple(axis for term in dims for axis in term)


def _shape_literal(axes: Axes, call: Call, dims: Dims) -> None:
    """The shape that a call names follows its result: in a field, or in an operand that is constant."""
    named = call.fields["shape"]
    if named is not None:
        axes.literals[call.node]["shape"] = lambda kept: _sizes(kept, named, dims)
        return
    target = call.operands[-1]
    if target is None or axes.graph.constant(target) is None:
        axes.freeze(dims, "its shape is computed")
    else:
        place = len(call.operands) - 1
        axes.constants[call.node][place] = lambda kept, old: np.asarray(_sizes(kept, old.tolist(), dims), old.dtype)


def _sizes(kept: Kept, named: Sequence[int], dims: Dims) -> tuple[int, ...]:
    """Named sizes of the last dimensions, counted anew."""
    return tuple(kept.recount(n, t) for n, t in zip(named, dims[len(dims) - len(named) :], strict=True))


@rule("transpose")
def transpose(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    return [tuple(x[p] for p in call.fields["perm"])]


@rule("unsqueeze")
def unsqueeze(axes: Axes, call: Call) -> Sequence[Dims]:
    found = list(axes.dims(call.operands[0]))
    rank = len(found) + len(call.fields["axes"])
    for axis in sorted(a % rank for a in call.fields["axes"]):
        found.insert(axis, ())
    return [tuple(found)]


@rule("squeeze")
def squeeze(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    gone = {a % len(x) for a in call.fields["axes"]}
    axes.freeze((x[a] for a in gone), "it is squeezed")
    return [tuple(t for i, t in enumerate(x) if i not in gone)]


@rule("expand")
def expand(axes: Axes, call: Call) -> Sequence[Dims]:
    """A repetition is an axis of its own."""
    x, sizes = axes.dims(call.operands[0]), axes.result(call)
    padded = ((),) * (len(sizes) - len(x)) + x
    dims = tuple(t or axes.space.term(n) for t, n in zip(padded, sizes, strict=True))
    _shape_literal(axes, call, dims)
    return [dims]


@rule("fill")
def fill(axes: Axes, call: Call) -> Sequence[Dims]:
    dims = axes.fresh(axes.result(call))
    _shape_literal(axes, call, dims)
    return [dims]


@rule("tile")
def tile(axes: Axes, call: Call) -> Sequence[Dims]:
    """Repeating the whole is an outer factor; its size is written in the call."""
    x, repeats = axes.dims(call.operands[0]), axes.fresh(call.fields["repeats"])
    axes.literals[call.node]["repeats"] = lambda kept: tuple(kept.count(t) for t in repeats)
    return [tuple((*n, *t) for n, t in zip(repeats, x, strict=True))]


@rule("concat")
def concat(axes: Axes, call: Call) -> Sequence[Dims]:
    first, *others = [axes.dims(o) for o in call.operands]
    axis = call.fields["axis"] % len(first)
    for other in others:
        for i, (a, b) in enumerate(zip(first, other, strict=True)):
            if i != axis:
                axes.unify(a, b)
    joined = axes.space.sum([dims[axis] for dims in (first, *others)])
    return [(*first[:axis], joined, *first[axis + 1 :])]


@rule("stack")
def stack(axes: Axes, call: Call) -> Sequence[Dims]:
    first, *others = [axes.dims(o) for o in call.operands]
    for other in others:
        for a, b in zip(first, other, strict=True):
            axes.unify(a, b)
    axis = call.fields["axis"] % (len(first) + 1)
    count = axes.space.term(len(call.operands), "it numbers the parts of a stack")
    return [(*first[:axis], count, *first[axis:])]


@rule("repeat_interleave")
def repeat_interleave(axes: Axes, call: Call) -> Sequence[Dims]:
    """Repeating each element in its place is an inner factor; its size is written in the call."""
    x = axes.dims(call.operands[0])
    axis, repeats = call.fields["axis"] % len(x), axes.space.term(call.fields["repeats"])
    count_literal(axes, call, "repeats", repeats)
    return [(*x[:axis], (*x[axis], *repeats), *x[axis + 1 :])]


@rule("roll")
def roll(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    axes.freeze((x[axis] for axis in call.fields["axes"]), "it is rolled")
    return [x]


@rule("split")
def split(axes: Axes, call: Call) -> Sequence[Dims]:
    x = axes.dims(call.operands[0])
    axis, sizes = call.fields["axis"] % len(x), call.fields["sizes"]
    pieces = axes.space.cut(x[axis], sizes)
    axes.literals[call.node]["sizes"] = lambda kept: tuple(
        kept.recount(n, t) for n, t in zip(sizes, pieces, strict=True)
    )
    return [(*x[:axis], piece, *x[axis + 1 :]) for piece in pieces]


class Stretch(NamedTuple):
    """Steps of an axis that a slice takes, and in each step the one element at the same place."""

    before: Term
    taken: Term
    step: int
    within: int

    def start(self, kept: Kept) -> int:
        return kept.count(self.before) * self.step + self.within

    def end(self, kept: Kept) -> int:
        return (kept.count(self.before) + kept.count(self.taken)) * self.step


@rule("slice")
def slice_(axes: Axes, call: Call) -> Sequence[Dims]:
    """A stretch of an axis is one of the summands that the cuts at its ends make of it; with longer steps, of its outer
    factor, the inner one being a step."""
    found = list(axes.dims(call.operands[0]))
    fields = call.fields
    moved: dict[int, Stretch] = {}
    for i, axis in enumerate(fields["axes"]):
        start, end, step = fields["starts"][i], fields["ends"][i], fields["steps"][i]
        size = axes.space.size(found[axis])
        taken = range(size)[start:end:step] if isinstance(size, int) else None
        if taken is not None and isinstance(size, int) and step > 0 and 0 < len(taken) < size and not size % step:
            moved[i] = _stretch(axes, found[axis], size, taken)
            found[axis] = moved[i].taken
        elif taken is not None and not taken and start >= 0:
            found[axis] = axes.space.term(0)  # nothing is taken, however short the axis gets
        elif not _is_whole(taken, size, start, end, step):
            axes.space.freeze(found[axis], "elements of it are picked")
            found[axis] = axes.space.term(axes.result(call)[axis], "elements of it are picked")
    literals = axes.literals[call.node]
    literals["starts"] = lambda kept: _bounds(fields["starts"], {i: s.start(kept) for i, s in moved.items()})
    literals["ends"] = lambda kept: _bounds(fields["ends"], {i: s.end(kept) for i, s in moved.items()})
    return [tuple(found)]


def _stretch(axes: Axes, term: Term, size: int, taken: range) -> Stretch:
    """What is taken of a term of this size, which the step divides."""
    steps = axes.space.term(size // taken.step)
    axes.unify(term, (*steps, *axes.space.term(taken.step, PICKED)))
    first, within = divmod(taken.start, taken.step)
    before, own, _ = axes.space.cut(steps, (first, len(taken), size // taken.step - first - len(taken)))
    return Stretch(before, own, taken.step, within)


def _is_whole(taken: range | None, size: Any, start: int, end: int, step: int) -> bool:
    """Whether the slice takes all of an axis, however long it is."""
    if taken is not None:
        return step == 1 and len(taken) == size and start == 0 and end >= 2**31 - 1
    return start == 0 and step == 1 and end >= 2**31 - 1


def _bounds(named: Sequence[int], moved: Mapping[int, int]) -> tuple[int, ...]:
    return tuple(moved.get(i, n) for i, n in enumerate(named))


@rule("pad")
def pad(axes: Axes, call: Call) -> Sequence[Dims]:
    x, sizes = axes.dims(call.operands[0]), axes.result(call)
    pads = call.fields["pads"]
    found = list(x)
    for i, term in enumerate(x):
        if pads[i] or pads[i + len(x)]:
            axes.space.freeze(term, "it is padded")
            found[i] = axes.space.term(sizes[i], "it is padded")
    return [tuple(found)]


@rule("depth_to_space")
def depth_to_space(axes: Axes, call: Call) -> Sequence[Dims]:
    batch, channels, high, wide = _four(axes.dims(call.operands[0]))
    rows, columns = _block(axes, call)
    depth = axes.space.term(axes.result(call)[1])
    inner = call.fields["mode"] == "CRD"
    axes.unify(channels, (*depth, *rows, *columns) if inner else (*rows, *columns, *depth))
    axes.freeze((high, wide), "it is spatial")
    return [(batch, depth, (*high, *rows), (*wide, *columns))]


@rule("space_to_depth")
def space_to_depth(axes: Axes, call: Call) -> Sequence[Dims]:
    batch, channels, high, wide = _four(axes.dims(call.operands[0]))
    rows, columns = _block(axes, call)
    axes.freeze((high, wide), "it is spatial")
    _, _, *sizes = axes.result(call)
    return [(batch, (*rows, *columns, *channels), *axes.fresh(sizes, "it is spatial"))]


def _four(dims: Dims) -> Dims:
    if len(dims) != 4:
        raise NoRule("it is no image")
    return dims


def _block(axes: Axes, call: Call) -> Dims:
    return axes.fresh([call.fields["block"]] * 2, "it is a place in a block of pixels")


@rule("resize")
def resize(axes: Axes, call: Call) -> Sequence[Dims]:
    """Axes that keep their size are untouched; where sizes are named, theirs follow."""
    x, sizes = axes.dims(call.operands[0]), axes.result(call)
    found = list(x)
    for i, term in enumerate(x):
        if not isinstance(sizes[i], int) or axes.space.size(term) != sizes[i]:
            axes.space.freeze(term, "it is resized")
            found[i] = axes.space.term(sizes[i], "it is resized")
    named = call.fields["sizes"]
    if named is not None:
        pairs = list(zip(named, found, strict=True))
        axes.literals[call.node]["sizes"] = lambda kept: tuple(kept.recount(n, t) for n, t in pairs)
    return [tuple(found)]
