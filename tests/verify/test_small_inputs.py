"""Inputs of few numbers: one draw would tell little, so that there are several."""

from __future__ import annotations

from typing import Any

import pytest
from planted import Maker
from test_mutations import apply

from graphopt.ir.convert import from_scratch
from graphopt.rewrite.contract import Contract, Exact, Rounding
from graphopt.rewrite.pattern import const
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify.inputs import draws_of

LOGICAL = ("logical_and", "logical_or", "logical_xor")


def two_truth_values(op: str, shape: tuple[int, ...]) -> Any:
    m = Maker("bool")
    found = m.add(op, m.input(*shape), m.input(*shape), shape=shape)
    return m.done(m.add("logical_not", found, shape=shape))


def another(op_name: str, other: str) -> Rule:
    class Wrong:
        def pattern(self, op, x, y):
            return getattr(op, op_name)(x, y)

        def rewrite(self, m, build):
            return m.x if other == "x" else getattr(build, other)(m.x, m.y, like=m.out)

    return rule(contract=Exact(), name="wrong")(Wrong)


@pytest.mark.parametrize("storage", ["onnx", "fx"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (5,)], ids=str)
@pytest.mark.parametrize("op", LOGICAL)
def test_wrong_for_one_pair_of_truth_values(op: str, shape: tuple[int, ...], storage: str) -> None:
    for other in {*LOGICAL, "x"} - {op}:
        model = from_scratch(two_truth_values(op, shape), storage)
        (application, *_) = apply(model.main, another(op, other)).applications
        assert application.status == "undone", other


class LowLost:
    def pattern(self, op, x, low, high):
        return op.clamp(x, const(low), const(high))

    def rewrite(self, m, build):
        return build.minimum(m.x, m.high, like=m.out)


class HighLost(LowLost):
    def rewrite(self, m, build):
        return build.maximum(m.x, m.low, like=m.out)


@pytest.mark.parametrize("storage", ["onnx", "fx"])
@pytest.mark.parametrize("contract", [Exact(), Rounding()], ids=str)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (2,), (3,), (4, 4)], ids=str)
def test_a_bound_that_is_lost_beyond_all_usual_numbers(
    shape: tuple[int, ...], dtype: str, contract: Contract, storage: str
) -> None:
    for wrong in (LowLost, HighLost):
        m = Maker(dtype)
        y = m.add("clamp", m.input(*shape), m.full(-1000.0), m.full(1000.0), shape=shape)
        model = from_scratch(m.done(m.add("neg", y, shape=shape)), storage)
        (application, *_) = apply(model.main, rule(contract=contract, name="wrong")(wrong)).applications
        assert application.status == "undone", wrong


def test_large_inputs_are_drawn_once() -> None:
    assert draws_of({"x": (2, 3, 224, 224)}) == draws_of({"x": (2, 3, 224, 224), "y": ()}) == 1
    assert draws_of({"x": (32,)}) == draws_of({"x": (0, 4)}) == draws_of({}) == 1
    assert draws_of({"x": ()}) == 32
