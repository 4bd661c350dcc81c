"""What a run leaves behind on random graphs: the same meaning, and nothing that a rule still could do."""

from __future__ import annotations

import random

import numpy as np
from graphs import VECTOR, run_rules

from graphopt.ir.scratch import ScratchGraph
from graphopt.rewrite.contract import Evidence, Rounding
from graphopt.rewrite.matcher import NoMatch
from graphopt.rewrite.pattern import any_of
from graphopt.rewrite.rule import Rule, rule
from graphopt.verify.execute import evaluate

SEEDS = 300


def rules(r: random.Random) -> list[Rule]:
    def made(name, pattern, rewrite) -> Rule:
        body = {"pattern": pattern, "rewrite": rewrite}
        return rule(contract=Rounding(), name=name, keep_shared=r.random() < 0.5)(type("Made", (), body))

    return [
        made("neg-neg", lambda self, op, x: op.neg(op.neg(x)), lambda self, m, build: m.x),
        made("relu-relu", lambda self, op, x: op.relu(op.relu(x)), lambda self, m, build: build.relu(m.x)),
        made("abs", lambda self, op, x: op.abs(any_of(op.neg(x), op.abs(x))), lambda self, m, build: build.abs(m.x)),
        made("abs-of-relu", lambda self, op, x: op.abs(op.neg(op.relu(x))), lambda self, m, build: build.relu(m.x)),
        made("sub", lambda self, op, x, y: op.add(x, op.neg(y)), lambda self, m, build: build.sub(m.x, m.y)),
        made("two", lambda self, op, x: (op.relu(x), op.relu(x)), lambda self, m, build: (build.relu(m.x),) * 2),
    ]


def random_graph(r: random.Random) -> ScratchGraph:
    graph = ScratchGraph()
    values = [graph.add_input(VECTOR) for _ in range(2)]
    for _ in range(r.randint(4, 14)):
        op = r.choice(("neg", "relu", "abs", "relu", "add", "sub"))
        operands = [r.choice(values[-5:]) for _ in range(2 if op in ("add", "sub") else 1)]
        values.append(graph.append(op, *operands, types=[VECTOR]))
    for value in values[-2:]:
        graph.add_output(value)
    return graph


class Unverified:
    """The driver alone is under test: what it writes must be right without anybody looking at it."""

    def verify(self, change: object) -> Evidence:
        return Evidence("none")


def test_the_meaning_stays_and_no_rule_could_do_more() -> None:
    kept = 0
    for seed in range(SEEDS):
        r = random.Random(seed)
        graph, given = random_graph(r), rules(r)
        feeds = [np.random.default_rng(i).standard_normal(4) for i in range(2)]
        before = evaluate(graph, feeds)
        driver, ledger = run_rules(graph, given, verifier=Unverified())
        np.testing.assert_allclose(evaluate(graph, feeds), before, rtol=1e-12, atol=1e-12)
        for node in graph.nodes():
            for each in given:
                match = NoMatch("") if graph.key(node) != each.key else each.match(graph, node)
                assert isinstance(match, NoMatch) or driver.refusal(each, match, node) is not None, (seed, each)
        kept += ledger.kept
    assert kept > SEEDS
