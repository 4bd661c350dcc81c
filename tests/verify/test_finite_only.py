"""A contract that leaves NaN and infinities out: the rule says so, the evidence repeats it, the rest stays checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from planted import Maker

from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import TensorType
from graphopt.passes.attention_standard import MatmulsToAttention
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Application, Rounding
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify.fragment import Fragment, Side
from graphopt.verify.inputs import KINDS, draw
from graphopt.verify.verifier import FINITE_ONLY, MatchVerifier


def apply(graph: Any, rules: list[Rule]) -> list[Application]:
    ledger = Ledger(None)
    ledger.open_pass("test")
    Driver(rules, Editor(graph, ledger, MatchVerifier())).run()
    return ledger.applications


class WithoutGuard:
    def pattern(self, op, x):
        return op.where(op.is_nan(x), 0.0, x)

    def rewrite(self, m, build):
        return build.mul(m.x, build.const(1.0, dtype=m.type(m.x).dtype), like=m.out)


class WithoutClamp:
    """Right for what is small."""

    def pattern(self, op, x):
        return op.minimum(x, 40.0)

    def rewrite(self, m, build):
        return build.mul(m.x, build.const(1.0, dtype=m.type(m.x).dtype), like=m.out)


def guarded(storage: str) -> Any:
    m = Maker("float32")
    x = m.input(6, 7)
    found = m.graph.append("is_nan", x, types=[TensorType("bool", (6, 7))])
    return from_scratch(m.done(m.add("where", found, m.full(0.0), x, shape=(6, 7))), storage)


@pytest.mark.parametrize("storage", ["onnx", "fx"])
def test_where_nan_lands_is_promised_unless_the_rule_says_that_it_is_not(storage: str) -> None:
    for special, status in ((True, "undone"), (False, "kept")):
        contract = Rounding(special=special)
        (application,) = apply(guarded(storage).main, [rule(contract=contract, name="r")(WithoutGuard)])
        assert application.status == status, application
        if special:
            assert "on special inputs" in application.reason
        assert application.evidence.notes == (() if special else (FINITE_ONLY,))


def test_large_finite_inputs_stay_promised() -> None:
    m = Maker("float32")
    graph = from_scratch(m.done(m.add("minimum", m.input(50, 50), m.full(40.0), shape=(50, 50))), "onnx").main
    (application,) = apply(graph, [rule(contract=Rounding(special=False), name="r")(WithoutClamp)])
    assert application.status == "undone" and "on mixed inputs" in application.reason, application


def attention(queries: int, keys: int) -> Any:
    m = Maker("float32")
    q, k, v = (m.input(1, 2, n, 4) for n in (queries, keys, keys))
    turned = m.add("transpose", k, perm=(0, 1, 3, 2), shape=(1, 2, 4, keys))
    scores = m.add(
        "mul", m.add("matmul", q, turned, shape=(1, 2, queries, keys)), m.full(0.3), shape=(1, 2, queries, keys)
    )
    weights = m.add("softmax", scores, axis=3, shape=(1, 2, queries, keys))
    return from_scratch(m.done(m.add("matmul", weights, v, shape=(1, 2, queries, 4))), "fx").main


def test_attention_as_one_op_needs_this_contract() -> None:
    """Where NaN come out tells torch's kernels from a softmax between two matmuls, at some sizes."""
    strict = Rule(MatmulsToAttention.definition, Rounding(), "strict", True)
    assert MatmulsToAttention.contract == Rounding(special=False)
    sizes = [(5, 7), (6, 7), (5, 9), (3, 11)]
    undone = [a for size in sizes for a in apply(attention(*size), [strict]) if a.status == "undone"]
    assert undone and all("on special inputs" in a.reason for a in undone)
    assert [a.status for size in sizes for a in apply(attention(*size), [MatmulsToAttention])] == ["kept"] * 4


def test_special_inputs_without_nan_differ_in_nothing_else() -> None:
    m = Maker("float32")
    x = m.input(200)
    graph = from_scratch(m.done(m.add("neg", x, shape=(200,))), "onnx").main
    value = graph.inputs()[0]
    (node,) = graph.nodes()
    fragment = Fragment(graph, (value,), Side((node,), tuple(graph.outputs())), Side((), ()))
    for kind in KINDS:
        (plain,) = draw(fragment, {value: (200,)}, [graph.call(node)], kind, 0)
        (finite,) = draw(fragment, {value: (200,)}, [graph.call(node)], kind, 0, finite=True)
        assert np.isfinite(finite).all() and np.isfinite(plain).all() == (kind != "special")
        assert kind == "special" or np.array_equal(plain, finite)


def test_the_contract_prints_what_it_leaves_out() -> None:
    assert str(Rounding()) == "rounding(factor=8)"
    assert str(Rounding(special=False)) == "rounding(factor=8, finite inputs only)"
