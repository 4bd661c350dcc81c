"""What was found by attacking the prover: statements that are false for some real input and looked true once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from claims import claim_of, constant, fragment_of, op
from planted import Maker

from graphopt.ir.weights import ArrayRef, Deferred
from graphopt.verify.algebra.domain import Field
from graphopt.verify.algebra.field import safe_prime
from graphopt.verify.algebra.sides import spelled, structure
from graphopt.verify.algebra.tensor import FieldTensor, Point, Undecided, lift, random
from graphopt.verify.prove import prove
from graphopt.verify.proved import signature

MODULI = tuple(m for p in (safe_prime(1), safe_prime(10**6)) for m in (p, p // 2))


def times(factor: Any) -> Any:
    return op("mul", "x", factor)


def as_float(what: Any) -> Any:
    return op("cast", what, dtype="float32")


ROOTS = {
    f"root of {n} squared": (times(op("sqrt", float(n * n))), times(-float(n))) for n in (17, 19, 23, 29, 31, 37, 41)
} | {
    "roots of products": (
        times(op("mul", op("mul", op("sqrt", 17.0 * 19), op("sqrt", 19.0 * 23)), op("sqrt", 23.0 * 17))),
        times(-17.0 * 19 * 23),
    ),
    "root of a negative constant": (
        times(op("mul", op("sqrt", -17.0), op("sqrt", -17.0))),
        times(-17.0),
    ),
    "half power of a square": (times(op("pow", 289.0, 0.5)), times(-17.0)),
}  # fmt: skip

SORTS = {
    "greatest and least": (op("arg_max", "x", axis=1, keepdims=True), op("arg_min", "x", axis=1, keepdims=True)),
    "greatest of negatives": (
        op("arg_max", op("neg", "x"), axis=1, keepdims=True),
        op("arg_max", "x", axis=1, keepdims=True),
    ),
    "greatest of a sum and a difference": (
        op("arg_max", op("add", "x", "y"), axis=1, keepdims=True),
        op("arg_max", op("sub", "x", "y"), axis=1, keepdims=True),
    ),
    "the greatest is the first": (
        op("gather_elements", "x", op("arg_max", "x", axis=1, keepdims=True), axis=1),
        op("slice", "x", starts=(0,), ends=(1,), axes=(1,), steps=(1,)),
    ),
}  # fmt: skip

CASTS = {
    "integers in half precision": (
        as_float(op("cast", op("cast", "x", dtype="int64"), dtype="float16")),
        as_float(op("cast", "x", dtype="int64")),
    ),
    "integers in single precision": (
        op("cast", as_float(op("cast", "x", dtype="int64")), dtype="float64"),
        op("cast", op("cast", "x", dtype="int64"), dtype="float64"),
    ),
    "truncation of a root": (
        op("pow", op("cast", "x", dtype="int64"), constant(-1, dtype="int64")),
        op("reciprocal", op("cast", "x", dtype="int64")),
    ),
    "a truth value that is a number": (as_float(op("logical_not", "x")), op("sub", 1.0, "x")),
    "both of two numbers": (
        as_float(op("logical_and", op("cast", "x", dtype="int64"), op("cast", "y", dtype="int64"))),
        as_float(op("mul", op("cast", "x", dtype="int64"), op("cast", "y", dtype="int64"))),
    ),
}  # fmt: skip


def product_of_primes(m: Maker, x: Any, y: Any) -> Any:
    for p in (2147024879, 2145341519, 2144751839, 2144380559, 2144158799, 2143901759, 2143419599, 2141914319):
        for n in (p, p // 2):
            x = m.graph.append("mul", x, ArrayRef(np.asarray(n, np.float64)))
    return x


@pytest.mark.parametrize("name", [*ROOTS, *SORTS, *CASTS])
def test_what_is_false_somewhere_is_never_proved(name: str):
    before, after = {**ROOTS, **SORTS, **CASTS}[name]
    for seed in range(16):
        shape = (1, 2) if name in SORTS else (1, 1)
        proof = claim_of(before, after, shape=shape, seed=seed)
        assert not proof.holds and proof.reason, (seed, proof)


def test_no_constant_is_zero_because_it_holds_all_primes_of_a_list():
    proof = claim_of(product_of_primes, op("mul", "x", 0.0), seed=3)
    assert not proof.holds


def test_roots_of_constants_are_positive():
    for n in (2, 3, 8, 17, 34, 64, 289, 640):
        squared = claim_of(times(op("mul", op("sqrt", float(n)), op("sqrt", float(n)))), times(float(n)), seed=n)
        assert squared.holds == (n not in (17, 34)), n  # roots of 17 are unknown: no field has a sign for them
    assert claim_of(times(op("sqrt", 289.0)), times(17.0)).holds
    assert claim_of(times(op("sqrt", 0.0625)), times(0.25)).holds


def test_the_greatest_of_equals_is_the_first():
    """The indices themselves are a result that both sides agree on, in every order tried."""
    pair = op("concat", "x", "x", axis=1)
    proof = claim_of(op("arg_max", pair, axis=1, keepdims=True), constant(1, dtype="int64", shape=(1, 1)))
    assert not proof.holds


def test_a_power_has_the_shape_of_both_operands():
    exponents = constant(2.0, 2.0, 2.0, shape=(1, 3))
    before = op("reduce_sum", op("pow", "x", exponents), axes=(1,), keepdims=True)
    assert not claim_of(before, op("mul", "x", "x")).holds
    assert claim_of(before, times(op("mul", 3.0, "x"))).holds


def test_a_choice_between_half_floats_is_a_half_float():
    """Whatever the numbers were that a truth value came from."""
    condition = op("greater", op("cast", "x", dtype="float32"), 0.0)
    chosen = op("where", condition, "x", "y")
    proof = claim_of(chosen, op("cast", chosen, dtype="float32"), dtypes=("float16", "float16"))
    assert not proof.holds and "dtype" in proof.reason


MASKED = op("where", "y", "x", op("neg", "x"))


def test_truth_values_that_come_in_are_left_open():
    """The one that was drawn proves nothing."""
    for drawn in (False, True):
        feeds = [np.zeros((1, 1), np.float32), np.full((1, 1), drawn)]
        for after in ("x", op("neg", "x")):
            other = op("identity", after) if isinstance(after, str) else after
            proof = claim_of(MASKED, other, dtypes=("float32", "bool"), feeds=feeds)
            # One of the two holds for the drawn value, and says that it is all that it holds for.
            assert not proof.holds or proof.sampled, proof
        negated = op("where", op("logical_not", "y"), op("neg", "x"), "x")
        proof = claim_of(MASKED, negated, dtypes=("float32", "bool"), feeds=feeds)
        assert proof.holds and not proof.sampled


LOWEST = float("-inf")


def test_real_numbers_are_no_infinities_but_what_a_mask_chooses_may_be():
    """Whether nothing is left of a row is known of real numbers alone."""
    greatest = op("reduce_max", "x", axes=(1,), keepdims=True)
    for told in (op("equal", greatest, LOWEST), op("is_nan", "x"), op("equal", "x", float("inf"))):
        proof = claim_of(op("where", told, 0.0, "x"), op("identity", "x"))
        assert proof.holds, proof
    hidden = op("where", "y", "x", LOWEST)
    for masked in (hidden, op("add", "x", LOWEST), op("mul", hidden, 2.0), op("exp", hidden)):
        row = op("reduce_max", masked, axes=(1,), keepdims=True)
        for told in (op("equal", row, LOWEST), op("is_nan", masked)):
            guarded = op("where", told, 0.0, "x")
            assert not claim_of(guarded, op("identity", "x"), dtypes=("float32", "bool")).holds


def test_complex_numbers_are_no_real_ones():
    with pytest.raises(Undecided):
        lift(Point(MODULI, 1), np.array([1 + 2j]))


def test_numbers_beyond_int64_do_not_wrap():
    x = lift(Point(MODULI, 1), np.array([2**64 - 1], np.uint64))
    assert [int(c[0]) for c in x.channels] == [(2**64 - 1) % m for m in MODULI]


def test_writing_into_a_tensor_changes_no_other():
    x = random(Point(MODULI, 1), (3,), "x")
    view, negative = x[:2], -x
    before = view.channels[0].copy()
    x[0:1] = lift(x.point, np.zeros(1))
    assert np.array_equal(view.channels[0], before)
    assert np.array_equal((-negative).channels[0][:2], before)


def test_values_that_a_maximum_is_known_to_exceed_are_those_of_its_own_elements():
    domain = Field(Point(MODULI, 1))
    x, y = (random(domain.point, (2, 1), name) for name in "xy")
    top = domain.maximum(x, y)
    again = domain.maximum(np.flip(top, 0), x)
    assert not np.any(again.channels[0] == np.flip(top, 0).channels[0])
    assert np.array_equal(domain.maximum(top, x).channels[0], top.channels[0])
    wide = domain.maximum(top, np.broadcast_to(x, (2, 3)))
    assert np.array_equal(wide.channels[0], np.broadcast_to(top.channels[0], (2, 3)))
    low = domain.minimum(top, x)
    assert isinstance(low, FieldTensor) and not low.least


# ---- names by which proofs are found again ---------------------------------------------------------------------------


def test_attributes_that_are_tensors_are_not_abridged():
    one, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1.0
    assert repr(one) == repr(other)
    assert spelled({"value": one}) != spelled({"value": other})
    assert spelled({"value": ArrayRef(one)}) != spelled({"value": ArrayRef(other)})
    assert spelled({"a": (1, 2)}) != spelled({"a": (12,)})


def test_signatures_tell_weights_apart_that_are_used_twice():
    """Even where both are as large, so that their numbers are no part of the signature."""
    numbers = np.ones(20, np.float32)

    def sided(first: ArrayRef, second: ArrayRef) -> str:
        make = lambda m, x, y: m.graph.append("add", m.graph.append("mul", x, first), second)  # noqa: E731
        fragment = fragment_of(make, op("identity", "x"), shapes=[(20,), (20,)])
        return signature(fragment, [np.zeros(20, np.float32)] * 2)

    one, other = ArrayRef(numbers), ArrayRef(numbers.copy())
    assert sided(one, one) != sided(one, other)
    assert sided(one, other) == sided(other, one)


def test_weights_that_an_earlier_rewrite_computed_are_variables_too():
    """A proof for all weights must not have looked into them."""
    rng = np.random.default_rng(0)
    stored = ArrayRef(rng.standard_normal(32).astype(np.float32))
    folded = Deferred("mul", (stored, stored), {})
    numbers = np.square(stored.numpy().astype(np.float64))

    def before(m: Maker, x: Any, y: Any) -> Any:
        return m.graph.append("mul", x, folded)

    def after(m: Maker, x: Any, y: Any) -> Any:
        return m.graph.append("mul", x, m.graph.append("cast", ArrayRef(numbers), dtype="float32"))

    proof = prove(fragment_of(before, after, shapes=[(32,), (32,)]), [np.zeros(32, np.float32)] * 2)
    assert not (proof.holds and proof.weights == "all"), proof


def test_equal_structure_is_of_the_same_weights():
    numbers = [ArrayRef(np.full(3, float(i), np.float32)) for i in range(2)]
    make = [lambda m, x, y, n=n: m.graph.append("mul", x, n) for n in numbers]
    fragment = fragment_of(make[0], make[1], shapes=[(3,), (3,)])
    met: dict[object, int] = {}
    sides = [structure(fragment.graph, s, fragment.inputs, met) for s in (fragment.before, fragment.after)]
    assert sides[0] != sides[1]


# ---- the bound ---------------------------------------------------------------------------------------------------


def test_a_sum_of_quotients_has_the_degree_of_its_common_denominator():
    x = random(Point(MODULI, 1), (5,), "x")
    total = np.sum(1.0 / x)
    assert (total.facts.above, total.facts.below) == (4.0, 5.0)
    running = np.cumsum(1.0 / x, axis=0)
    assert running.facts.below == 5.0
    product = np.prod(1.0 / (x + 1.0), axis=0)
    assert product.facts.below == 5.0


def test_the_bound_counts_only_fields_in_which_exponents_are_known():
    one = claim_of(op("exp", op("add", "x", "y")), op("mul", op("exp", "x"), op("exp", "y")))
    assert one.level == "proof+exp" and one.log2_error is not None and one.log2_error > -62
    nested = claim_of(op("exp", op("exp", op("add", "x", "y"))), op("exp", op("mul", op("exp", "x"), op("exp", "y"))))
    assert nested.level == "proof+exp" and nested.log2_error is not None and nested.log2_error > -62
