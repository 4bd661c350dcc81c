"""Small scratch graphs and helpers for tests of the rewriting engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.ir.graph import TensorType
from graphopt.ir.scratch import ScratchGraph, ScratchValue
from graphopt.ir.weights import ArrayRef
from graphopt.rewrite.change import Editor, Verifier
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import Rule
from graphopt.verify.verifier import MatchVerifier

VECTOR = TensorType("float64", (4,))


def weight(*values: float) -> ArrayRef:
    return ArrayRef(np.asarray(values, np.float64))


def graph_of(*ops: str, type_: TensorType = VECTOR) -> tuple[ScratchGraph, list[ScratchValue]]:
    """A chain of unary ops; returns the graph and the value after each op."""
    graph = ScratchGraph()
    value = graph.add_input(type_)
    values = []
    for op in ops:
        value = graph.append(op, value, types=[type_])
        values.append(value)
    graph.add_output(value)
    return graph, values


def run_rules(
    graph: ScratchGraph,
    rules: Sequence[Rule],
    *,
    verifier: Verifier | None = None,
    ledger: Ledger | None = None,
) -> tuple[Driver, Ledger]:
    ledger = ledger or Ledger()
    ledger.open_pass("test")
    driver = Driver(rules, Editor(graph, ledger, verifier or MatchVerifier()))
    driver.run()
    return driver, ledger


def ops_of(graph: ScratchGraph) -> list[str]:
    return [graph.key(n) for n in graph.nodes()]
