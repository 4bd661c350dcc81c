"""Proof: two sides of a fragment agree as expressions of real numbers, for every input and every weight.

Both sides are run once, by the vocabulary's meanings, at a random point of a product of finite fields. If they are
different quotients of polynomials, they agree there with a probability of at most their degree over the size of the
field (Schwartz, "Fast probabilistic algorithms for verification of polynomial identities", J. ACM 27, 1980; Zippel,
"Probabilistic algorithms for sparse polynomials", 1979). What is no polynomial is an unknown function, so that
agreement holds for every function; the bound counts the arguments of such functions that may coincide by chance.

What agrees is the algebra. Rounding, overflow, NaN, infinities and -0.0 are what the executed checks are for.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from graphopt.ir.weights import FLOATS, Array, TensorRef
from graphopt.rewrite.contract import Proof
from graphopt.verify.algebra.domain import Field
from graphopt.verify.algebra.field import safe_prime
from graphopt.verify.algebra.sides import (
    Constants,
    Symbolic,
    equal,
    input_tensors,
    run_side,
    structure,
    weights_of,
)
from graphopt.verify.algebra.tensor import ORDER, FieldTensor, Order, Point, Undecided, lift, text_key
from graphopt.verify.algebra.tokens import needs_no_numbers
from graphopt.verify.fragment import Fragment

ENOUGH = -40.0
"""Of the base-2 logarithm of the error: what is less certain is no proof."""
WORK = 10**8
"""Multiplications that each of two sides may take in each field: a second or two."""
ORDERS = 8
"""In how many orders of the numbers that its sides sort a proof is made: at each of two points in the one that they
have there, in the opposite one, and in two of which some numbers, or all of them, are equal."""
ATTEMPTS = 16
"""How often at most is tried at one point. A fragment: with truth values open or not, for three kinds of weights, with
the law of exp and without; two models: with integers open or not, constants read or not, weights open or not, and the
law. The bound of the error is that of all of them together."""
SMALL = 16
"""Elements up to which a weight's numbers may matter for a rule."""


def prove(fragment: Fragment, feeds: Sequence[Array], *, seed: int | None = None, work: int = WORK) -> Proof:
    """Whether both sides of `fragment` agree at the sizes, integers and truth values of `feeds`.

    Args:
        feeds: one array for each input of the fragment; of real ones only shape and dtype matter.
        seed: of the random point; drawn from the system's own source if absent, so that no rule can know it.
        work: how many multiplications of residues may be spent.
    """
    started = time.perf_counter()
    seed = secrets.randbits(63) if seed is None else seed
    met: dict[object, int] = {}
    sides = (structure(fragment.graph, side, fragment.inputs, met) for side in (fragment.before, fragment.after))
    if next(sides) == next(sides):
        return Proof("proof", "both are the same expression", seed=seed)
    proof = Proof("undecided")
    for tokens in _tokens(fragment, feeds):
        attempt = _Attempt(fragment, feeds, seed, work, tokens)
        proof = attempt.with_weights(law=False)
        if not proof.holds and {"exp", "tanh"} & set(proof.functions):
            lawful = attempt.with_weights(law=True)
            proof = lawful if lawful.holds else proof
        if proof.holds:
            break
    return replace(proof, seed=seed, milliseconds=1e3 * (time.perf_counter() - started))


@dataclass
class _Attempt:
    fragment: Fragment
    feeds: Sequence[Array]
    seed: int
    work: int
    tokens: frozenset[int]
    """Which of the integer and truth inputs stay open as the real inputs do."""

    def with_weights(self, *, law: bool) -> Proof:
        """All weights as variables; failing that, only those that a rule is unlikely to have looked into; then none."""
        proof, met = self.at_point("all", lambda data: True, law=law)
        if not proof.holds and any(data.size <= SMALL for data in met):
            proof, _ = self.at_point("large", lambda data: data.size > SMALL, law=law)
        if not proof.holds and met:
            proof, _ = self.at_point("none", lambda data: False, law=law)
        return proof

    def at_point(self, weights: str, symbolic: Symbolic, *, law: bool) -> tuple[Proof, Sequence[TensorRef]]:
        """The verdict, and which weights were variables. What holds for one order of numbers must hold for others."""
        proof, met = self.at_one(self.seed, weights, symbolic, law=law)
        for seed, order in other_orders(proof, self.seed):
            other, _ = self.at_one(seed, weights, symbolic, law=law, order=order)
            if not other.holds:
                return replace(other, reason=f"in another order of the numbers that are sorted: {other.reason}"), met
        return proof, met

    def at_one(
        self, seed: int, weights: str, symbolic: Symbolic, *, law: bool, order: Order = "own"
    ) -> tuple[Proof, Sequence[TensorRef]]:
        point = Point(moduli(seed), seed, limit=self.work, order=order)
        domain = Field(point, exp_law=law)
        fragment = self.fragment
        constants = Constants(point, symbolic, weights_of(fragment.graph, fragment.before))
        try:
            inputs = dict(zip(fragment.inputs, input_tensors(point, self.feeds, self.tokens), strict=True))
            before = run_side(fragment.graph, fragment.before, inputs, domain, constants)
            point.closed = True
            after = run_side(fragment.graph, fragment.after, inputs, domain, constants)
            reason = next((r for b, a in zip(before, after, strict=True) if (r := equal(b, a, point))), None)
            error = log2_error(point, before, after, law=bool(domain.laws))
        except Undecided as undecided:
            reason, error = str(undecided), None
        if reason is None and error is not None and error > ENOUGH:
            reason = f"by chance the sides may agree with a probability of 2^{error:.0f}, as their degree is so high"
        drawn = any(f.dtype.name not in FLOATS and i not in self.tokens for i, f in enumerate(self.feeds))
        sampled = {*point.sampled, *(["integer and truth inputs"] if drawn else [])}
        proof = Proof(
            "undecided" if reason else "proof+exp" if domain.laws else "proof",
            reason or "",
            error,
            tuple(sorted(point.functions)),
            tuple(sorted(domain.laws)),
            weights,
            tuple(sorted(sampled)),
        )
        return proof, list(constants.variables.values())


def _tokens(fragment: Fragment, feeds: Sequence[Array]) -> Sequence[frozenset[int]]:
    """Which integers and truth values to leave open: those that need no numbers, and before that all truth values, for
    which the algebra may do."""
    given = {i: v for i, (v, f) in enumerate(zip(fragment.inputs, feeds, strict=True)) if f.dtype.name not in FLOATS}
    free = frozenset(i for i, value in given.items() if needs_no_numbers(fragment, value))
    truths = frozenset(i for i in given if feeds[i].dtype.name == "bool")
    return (free,) if truths <= free else (free | truths, free)


def other_orders(proof: Proof, seed: int) -> list[tuple[int, Order]]:
    """Where a proof has to be made again, as its sides sort numbers: seeds of points, and the order there."""
    kinds: tuple[Order, ...] = get_args(Order)
    turns = range(1, ORDERS if proof.holds and ORDER in proof.sampled else 0)
    return [(derived(seed, t // len(kinds)) if t >= len(kinds) else seed, kinds[t % len(kinds)]) for t in turns]


def derived(seed: int, turn: int) -> int:
    """The seed of another point, which is independent of the first."""
    return text_key(f"{seed} {turn}") // 2


def moduli(seed: int) -> tuple[int, ...]:
    """Two pairs of primes p = 2q + 1, q."""
    first = second = safe_prime(text_key(f"first {seed}"))
    turn = 0
    while second == first:
        second = safe_prime(text_key(f"second {seed} {turn}"))
        turn += 1
    return tuple(m for p in (first, second) for m in (p, p // 2))


def log2_error(point: Point, before: Sequence[Any], after: Sequence[Any], *, law: bool) -> float:
    """A bound of the chance that different sides agree, as a base-2 logarithm.

    Either their difference vanishes at the point (degree over size, in each field), or two arguments of unknown
    functions that differ coincide, in all fields or in the 128 bits that results are made of.
    """
    degree = 0.0
    for b, a in zip(before, after, strict=True):
        x, y = (t.facts if isinstance(t, FieldTensor) else lift(point, np.asarray(t)).facts for t in (b, a))
        degree = max(degree, x.above + y.below, y.above + x.below)
    live = point.moduli[::2] if law else point.moduli  # exponents are known in every other field alone
    chances = [_product(degree, live)]
    if point.applications > 1:
        pairs = 2.0 * math.log2(point.applications) - 1.0
        chances += [pairs + _product(point.argument_degree, live), pairs - 128.0]
    largest = max(chances)
    both = largest + math.log2(sum(2.0 ** (c - largest) for c in chances)) + math.log2(ATTEMPTS)
    return min(0.0, both)


def _product(degree: float, moduli: Sequence[int]) -> float:
    """log2 of (degree / p) over all moduli; a degree of 0 is a number, whose difference is 0 or not."""
    return sum(min(0.0, math.log2(max(degree, 1.0) / p)) for p in moduli)
