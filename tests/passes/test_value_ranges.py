"""Bounds of values follow from constants, integers and truth values, and from nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import as_ref
from graphopt.passes.value_ranges import value_range

LOWEST = float(np.finfo(np.float32).min)


class Values(ScratchGraph):
    def given(self, dtype: str) -> Any:
        return self.add_input(TensorType(dtype, (2, 3)))

    def then(self, op: str, *operands: Any, **fields: Any) -> Any:
        refs = [as_ref(o, "float32") if isinstance(o, float) else o for o in operands]
        dtype = "bool" if op == "less" else fields.get("dtype", "float32")
        return self.append(op, *refs, types=[TensorType(dtype, (2, 3))], **fields)


def test_a_mask_chosen_between_finite_numbers_is_finite() -> None:
    g = Values()
    chosen = g.then("where", g.given("bool"), 0.0, LOWEST)
    assert value_range(g, g.then("unsqueeze", chosen, axes=(0,))) == (LOWEST, 0.0)
    assert value_range(g, g.then("where", g.given("bool"), 0.0, -np.inf)) is None
    assert value_range(g, g.then("where", g.given("bool"), 0.0, g.given("float32"))) is None


@pytest.mark.parametrize(("dtype", "penalty", "finite"), [
    ("bool", LOWEST, True), ("bool", -10000.0, True), ("int64", -10000.0, True), ("int64", LOWEST, False),
    ("uint8", LOWEST, False), ("float32", -10000.0, False),
])  # fmt: skip
def test_one_minus_a_mask_times_a_penalty(dtype: str, penalty: float, finite: bool) -> None:
    g = Values()
    kept = g.then("cast", g.given(dtype), dtype="float32") if dtype != "float32" else g.given(dtype)
    found = value_range(g, g.then("mul", g.then("sub", 1.0, kept), penalty))
    assert (found is not None) == finite
    if dtype == "bool":
        assert found == (penalty, 0.0)


def test_a_narrow_float_holds_less() -> None:
    g = Values()
    assert value_range(g, g.then("cast", g.given("int32"), dtype="float16")) is None
    assert value_range(g, g.then("cast", g.given("bool"), dtype="float16")) == (0.0, 1.0)
    assert value_range(g, g.then("cast", g.given("bool"), dtype="bfloat16")) is None


def test_sums_and_differences_add_their_bounds() -> None:
    g = Values()
    a, b = (g.then("cast", g.given(d), dtype="float32") for d in ("uint8", "int8"))
    assert value_range(g, g.then("add", a, b)) == (-128.0, 382.0)
    assert value_range(g, g.then("sub", a, b)) == (-127.0, 383.0)
    assert value_range(g, g.then("mul", a, b)) == (-32640.0, 32385.0)


def test_what_is_not_followed_has_the_bounds_of_its_dtype() -> None:
    g = Values()
    assert value_range(g, g.then("relu", g.given("float32"))) is None
    assert value_range(g, g.then("less", g.given("float32"), 0.5)) == (0.0, 1.0)
    assert value_range(g, None) is None
