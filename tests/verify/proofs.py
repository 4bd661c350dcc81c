"""Applying rules without any check but proof, so that tests see what proof alone says of them."""

from __future__ import annotations

import numpy as np

from graphopt.ir.graph import Graph
from graphopt.ir.weights import numpy_dtype
from graphopt.rewrite.change import Change, Editor
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.driver import Driver
from graphopt.rewrite.ledger import Ledger
from graphopt.rewrite.rule import Rule
from graphopt.verify.fragment import cut
from graphopt.verify.prove import Proof, prove


class Proving:
    """Keeps every change, and the proof of it."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self.proofs: list[Proof] = []

    def verify(self, change: Change) -> Evidence:
        fragment = cut(change)
        feeds = []
        for value in fragment.inputs:
            type_ = fragment.graph.type(value)
            assert type_ is not None and type_.is_static and type_.shape is not None
            feeds.append(np.zeros(type_.shape, numpy_dtype(type_.dtype)))  # type: ignore[arg-type]
        self.proofs.append(prove(fragment, feeds, seed=self.seed))
        return Evidence("executed")


def proofs_of(graph: Graph, *rules: Rule, seed: int | None = None) -> list[Proof]:
    """Apply `rules` once each where they match first, and prove what they did. The graph is changed."""
    verifier = Proving(seed)
    ledger = Ledger(len(rules))
    ledger.open_pass("test")
    Driver(rules, Editor(graph, ledger, verifier)).run()
    return verifier.proofs
