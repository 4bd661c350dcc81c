"""Rules as they are made, and how they say why they do not apply."""

from __future__ import annotations

import pytest
from graphs import graph_of, run_rules

from graphopt.errors import RuleError
from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.matcher import NoMatch
from graphopt.rewrite.rule import rule


@pytest.mark.parametrize("where", ["check", "pays", "rewrite"])
def test_a_reason_whose_text_has_more_places_than_values_is_a_reason_nevertheless(where):
    definition = type("Said", (), {"pattern": lambda self, op, x: op.neg(op.neg(x)), "rewrite": lambda self, m, b: m.x})
    setattr(definition, where, lambda self, m, *_: m.fail("of {} and {}", 1))
    graph, _ = graph_of("neg", "neg", "exp")
    _, ledger = run_rules(graph, [rule(contract=Exact())(definition)])
    assert "of {} and {} (1,)" in [*ledger.rule("said").refused, *(a.reason for a in ledger.applications)]


def test_a_reason_without_values_is_said_as_it_is():
    assert NoMatch("the fields are {'axis': 1}").reason == "the fields are {'axis': 1}"


@pytest.mark.parametrize("method", ["rewrite", "check", "pays"])
def test_what_is_no_method_is_refused_when_the_rule_is_made(method):
    members = {"pattern": lambda self, op, x: op.neg(x), "rewrite": lambda self, m, b: m.x, method: None}
    with pytest.raises(RuleError, match=f"rule of-none: {method} is not a method"):
        rule(contract=Exact())(type("OfNone", (), members))


@pytest.mark.parametrize("size", [3, 4])
def test_what_does_not_pay_is_refused_with_the_reason(size):
    @rule(contract=Exact())
    class Halves:
        def pattern(self, op, x):
            return op.neg(op.neg(x))

        def pays(self, m):
            if m.type(m.x).shape[0] < 4:
                m.fail("{} elements are few", m.type(m.x).shape[0])

        def rewrite(self, m, build):
            return m.x

    graph = ScratchGraph()
    value = graph.add_input(TensorType("float64", (size,)))
    for _ in range(2):
        value = graph.append("neg", value, types=[value.type])
    graph.add_output(graph.append("relu", value, types=[value.type]))
    _, ledger = run_rules(graph, [Halves])
    assert ledger.kept == (size == 4)
    assert dict(ledger.rule("halves").refused) == ({} if size == 4 else {"3 elements are few": 1})
