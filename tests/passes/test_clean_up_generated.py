"""Every rule of clean-up on graphs generated from its own pattern, on both storages.

A correct rule is never undone, and what it makes of a graph computes the same bits.
"""

from __future__ import annotations

import numpy as np
import pytest
from generated_moves import graphs
from hypothesis import HealthCheck, Phase, assume, given, settings

from graphopt.errors import UnsupportedError
from graphopt.ir.convert import from_scratch
from graphopt.ir.graph import Graph
from graphopt.ir.scratch import ScratchGraph
from graphopt.passes.clean_up import RULES
from graphopt.rewrite.change import Editor
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import Rule
from graphopt.verify.compare import bit_equal
from graphopt.verify.execute import model_runner
from graphopt.verify.floats import draw_float
from graphopt.verify.verifier import MatchVerifier


def feeds_of(graph: Graph) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    types = [graph.type(v) for v in graph.inputs()]
    return [
        draw_float(rng, t.shape, t.dtype, "normal")
        if t.dtype.startswith("float")
        else rng.integers(0, 2, t.shape).astype(t.dtype)
        for t in types
    ]


def check(scratch: ScratchGraph, rule: Rule, storage: str) -> int:
    """Apply `rule` to the graph in `storage`; returns how often it was kept."""
    try:
        model = from_scratch(scratch, storage)
    except UnsupportedError:
        assume(False)
    feeds = feeds_of(model.main)
    before = model_runner(model)(feeds)
    ledger = Ledger()
    ledger.open_pass("test")
    Driver([rule], Editor(model.main, ledger, MatchVerifier())).run()
    undone = [a for a in ledger.applications if a.status == "undone"]
    assert not undone, undone
    after = model_runner(model)(feeds)
    if isinstance(rule.contract, Exact):
        assert all(bit_equal(a, b) for a, b in zip(before, after, strict=True))
    else:
        assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True))
    return ledger.kept


@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.name)
@pytest.mark.parametrize(("storage", "examples"), [("onnx", 30), ("fx", 2)])
def test_a_rule_is_right_wherever_its_pattern_is_found(rule: Rule, storage: str, examples: int) -> None:
    kept = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs(rule))
    def run(scratch: ScratchGraph) -> None:
        nonlocal kept
        kept += check(scratch, rule, storage)

    run()
    assert kept or storage == "fx", "no generated graph let the rule apply, so this shows nothing"
