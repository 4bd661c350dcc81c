"""Functions of which nothing is known but their names: keyed hashes of their operands' residues.

What agrees for a random function agrees for every function. A hash of 128 bits decides which results are equal, so
results are as random as the field allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from graphopt.ir.weights import Array
from graphopt.verify.algebra import field as modular
from graphopt.verify.algebra.tensor import Facts, FieldTensor, Lanes, Point, random, spread, text_key, wider

_FITS = {"bool": "float16", "int": None}


def keys(x: FieldTensor) -> Lanes:
    words = [c for c in x.channels if c is not None]
    alive = sum(1 << i for i, c in enumerate(x.channels) if c is not None)
    first, second = (modular.keyed(words, x.point.key ^ alive ^ lane << 32) for lane in (0, 1))
    return first, second


def same(a: Lanes, b: Lanes) -> Array:
    """Where two elements are the same number."""
    return np.asarray((a[0] == b[0]) & (a[1] == b[1]))


def united(a: Lanes, b: Lanes) -> list[Array]:
    """The set of two elements, whichever comes first."""
    return [modular.mixed(x) + modular.mixed(y) for x, y in zip(a, b, strict=True)]


def contains(known: tuple[Lanes, ...], wanted: Lanes) -> Array:
    """Where what is wanted is among what is known."""
    result = np.zeros(np.shape(wanted[0]), bool)
    for one in known:
        result = result | same(one, wanted)
    return result


def unknown(name: str, *xs: FieldTensor, kind: str = "float") -> FieldTensor:
    """A function of which nothing is known but its name, elementwise on operands that broadcast."""
    words = [keys(x) for x in xs]
    lanes = [modular.keyed([w[lane] for w in words], text_key(f"{name}{lane}")) for lane in (0, 1)]
    return _from_lanes(name, lanes, xs, kind)


def unknown_of_set(name: str, members: Sequence[Array], *xs: FieldTensor, kind: str = "float") -> FieldTensor:
    """The same of sets: `members` are sums of their elements' mixed hashes; `xs` say what the elements are."""
    lanes = [modular.keyed([m], text_key(f"{name}{i}")) for i, m in enumerate(members)]
    return _from_lanes(name, lanes, xs, kind)


def _from_lanes(name: str, lanes: Sequence[Array], xs: Sequence[FieldTensor], kind: str) -> FieldTensor:
    """Fresh random numbers, taken account of for the bound of the error."""
    point = xs[0].point
    size = sum(x.size for x in xs)
    point.functions.add(name)
    point.applications += max(size, lanes[0].size * len(xs))
    point.argument_degree = max(point.argument_degree, *(2 * x.facts.degree for x in xs))
    point.spend(8 * size)
    dtype = xs[0].facts.dtype
    for x in xs[1:]:
        dtype = wider(dtype, x.facts.dtype)
    if kind == "float":
        facts = Facts(dtype=dtype, fits=dtype, finite=all(x.facts.finite for x in xs))
    else:
        facts = Facts(kind=kind, fits=_FITS[kind])
    return FieldTensor(point, spread(point, lanes), facts)


def scrambled(
    point: Point, operands: Sequence[FieldTensor | None], label: str, shape: tuple[int, ...], facts: Facts
) -> FieldTensor:
    """An unknown function of whole tensors."""
    words = []
    for x in operands:
        if x is None:
            words.append(np.asarray(0, np.uint64))
            continue
        places = np.arange(x.size, dtype=np.uint64).reshape(x.shape)
        words += [np.sum(modular.keyed([k, places], point.key)) for k in keys(x)]
        words += [np.asarray(n, np.uint64) for n in x.shape]
        words.append(np.asarray(text_key(f"{x.facts.kind} {x.facts.dtype}"), np.uint64))
        point.argument_degree = max(point.argument_degree, 2 * x.facts.degree)
    point.applications += 1
    digests = [int(modular.keyed(words, text_key(f"{label}{lane}"))) for lane in (0, 1)]
    return random(point, shape, f"{label} {digests[0]:x} {digests[1]:x}", replace(facts, finite=False))
