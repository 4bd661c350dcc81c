"""A rewrite that hands over what is no operand is told so, and leaves the graph as it was."""

from __future__ import annotations

import re

import numpy as np
import pytest
from planted import Maker

from graphopt.ir.convert import from_scratch
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import rule
from graphopt.verify.verifier import MatchVerifier


class _Doubling:
    def __init__(self, operand: object) -> None:
        self.operand = operand

    def pattern(self, op, x):
        return op.neg(x)

    def rewrite(self, m, build):
        written = build.abs(m.x, like=m.x)
        return build.mul(written, self.operand, like=m.x)


@pytest.mark.parametrize("storage", ["onnx", "fx"])
@pytest.mark.parametrize(
    ("operand", "reason"),
    [(np.ones(3), "ndarray.*build.const"), (2.0, "float.*build.const"), (object(), "object|Error")],
)
def test_what_is_no_operand_undoes_the_application_alone(storage: str, operand: object, reason: str):
    m = Maker("float32")
    graph = from_scratch(m.done(m.add("neg", m.input(3), shape=(3,))), storage).main
    before = graph.fingerprint()
    wrong = type("Wrong", (_Doubling,), {"__init__": lambda self: _Doubling.__init__(self, operand)})
    ledger = Ledger(None)
    ledger.open_pass("test")
    Driver([rule(contract=Exact(), name="wrong")(wrong)], Editor(graph, ledger, MatchVerifier())).run()
    assert [a.status for a in ledger.applications] == ["undone"]
    assert graph.fingerprint() == before
    assert re.search(reason, ledger.applications[0].reason), ledger.applications[0].reason
