"""Fragments are computed in one thread; whoever called has the threads that he had."""

from __future__ import annotations

import pytest
import torch
from planted import Maker
from threadpoolctl import ThreadpoolController

from graphopt.ir.convert import from_scratch
from graphopt.rewrite.change import Change, Editor
from graphopt.rewrite.contract import Evidence, Exact
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import rule
from graphopt.verify.verifier import MatchVerifier


class TwoNegations:
    def pattern(self, op, x):
        return op.neg(op.neg(x))

    def rewrite(self, m, build):
        return m.x


def threads() -> list[int]:
    return [pool["num_threads"] for pool in ThreadpoolController().info()] + [torch.get_num_threads()]


class Watching(MatchVerifier):
    """Notes the threads of each check and fails after it, if told to."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.seen: list[list[int]] = []

    def _check(self, change: Change) -> Evidence:
        self.seen.append(threads())
        if self.error is not None:
            raise self.error
        return super()._check(change)


@pytest.fixture
def two_threads():
    """More than one thread in every pool, whatever the environment says."""
    torch.set_num_threads(2)
    with ThreadpoolController().limit(limits=2):
        yield threads()


@pytest.mark.parametrize("error", [None, RuntimeError("the check broke")])
def test_a_check_has_one_thread_and_gives_back_what_there_was(two_threads, error):
    verifier = Watching(error)
    make = Maker("float32")
    negated = make.add("neg", make.input(3), shape=(3,))
    graph = from_scratch(make.done(make.add("neg", negated, shape=(3,))), "onnx").main
    assert max(two_threads) == 2
    ledger = Ledger(None)
    ledger.open_pass("test")
    Driver([rule(contract=Exact())(TwoNegations)], Editor(graph, ledger, verifier)).run()
    assert [set(seen) for seen in verifier.seen] == [{1}]
    assert ledger.applications[0].status == ("kept" if error is None else "undone")
    assert threads() == two_threads
