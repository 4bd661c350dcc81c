"""A rewrite may go on reading what the match computes, if that has other readers or the rule says so."""

from __future__ import annotations

import pytest
from planted import Maker

from graphopt.ir.convert import from_scratch
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact, Rounding
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import rule
from graphopt.verify.verifier import MatchVerifier


@rule(contract=Rounding())
class AddOfNeg:
    "-x + y is y - x, whatever y is: -x as well."

    def pattern(self, op, x, y):
        return op.add(op.neg(x), y)

    def rewrite(self, m, build):
        return build.sub(m.y, m.x, like=m.out)


@rule(contract=Exact(), keep_shared=True)
class AbsOfAbs:
    "abs(abs(-x)) is abs(-x), which the match computes in two steps."

    def pattern(self, op, x):
        return op.abs(op.abs(op.neg(x).named("negated")).named("once"))

    def rewrite(self, m, build):
        return m.once.outputs[0]


@rule(contract=Exact(), keep_shared=True)
class Forgetful:
    "Wrong: it reads a part of the match and drops what the match makes of it."

    def pattern(self, op, x):
        return op.tanh(op.exp(op.neg(x).named("negated")))

    def rewrite(self, m, build):
        return build.tanh(m.negated.outputs[0], like=m.out)


def statuses(rule_, graph):
    ledger = Ledger(None)
    ledger.open_pass("test")
    Driver([rule_], Editor(graph, ledger, MatchVerifier())).run()
    return [a.status for a in ledger.applications]


@pytest.fixture(params=["onnx", "fx"])
def build(request):
    def make(write):
        m = Maker("float32")
        return from_scratch(m.done(write(m, m.input(3))), request.param).main

    return make


def test_an_operand_that_is_the_other_operand(build):
    def write(m, x):
        negated = m.add("neg", x, shape=(3,))
        return m.add("add", negated, negated, shape=(3,))

    graph = build(write)
    assert statuses(AddOfNeg, graph) == ["kept"]
    assert [graph.key(n) for n in graph.nodes()] == ["neg", "sub"]


def test_an_inner_value_with_what_it_is_computed_from(build):
    def write(m, x):
        once = m.add("abs", m.add("neg", x, shape=(3,)), shape=(3,))
        return m.add("abs", once, shape=(3,))

    graph = build(write)
    assert statuses(AbsOfAbs, graph) == ["kept"]
    assert [graph.key(n) for n in graph.nodes()] == ["neg", "abs"]


def test_a_wrong_use_of_an_inner_value_is_undone(build):
    def write(m, x):
        return m.add("tanh", m.add("exp", m.add("neg", x, shape=(3,)), shape=(3,)), shape=(3,))

    graph = build(write)
    before = graph.fingerprint()
    assert statuses(Forgetful, graph) == ["undone"]
    assert graph.fingerprint() == before
