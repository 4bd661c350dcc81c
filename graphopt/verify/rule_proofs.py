"""What algebra says of a rule by itself: it is applied to graphs made from its own pattern, and each is proved."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from graphopt.rewrite.contract import Approximate, Proof
from graphopt.rewrite.rule import Rule
from graphopt.verify.prove import prove
from graphopt.verify.rerun import applied
from graphopt.verify.samples import samples
from graphopt.verify.shrink import zeros

DRAWS = 400
"""Graphs that are made before a rule is given up that applies to none of them."""
GRAPHS = 4
"""Graphs that a rule has to be proved on."""
ORDER = {"all": 0, "large": 1, "none": 2}


@dataclass(frozen=True)
class RuleProof:
    """What was found of one rule."""

    proof: Proof | None
    """The weakest of the proofs; None if none was tried."""
    graphs: int
    """On how many graphs made from its pattern."""
    reason: str = ""
    """Why it is not proved for all weights."""

    @property
    def for_all_weights(self) -> bool:
        return self.proof is not None and self.proof.holds and self.proof.weights == "all"

    def __str__(self) -> str:
        if self.proof is None or not self.proof.holds:
            return f"not proved: {self.reason}"
        claim = "for all weights" if self.for_all_weights else "for the constants that it asks for"
        return f"{self.proof.level}, {claim}, on {self.graphs} graphs made from its pattern"


def prove_rule(rule: Rule, *, seed: int | None = None) -> RuleProof:
    """Prove `rule` on a few graphs made from its pattern, the same ones each time.

    Args:
        seed: of the random points of the proofs; drawn anew if absent.
    """
    if isinstance(rule.contract, Approximate):
        return RuleProof(None, 0, "it is approximate: what it gives is not equal")
    proofs: list[Proof] = []
    for graph, root in islice(samples(rule), DRAWS):
        fragment = applied(rule, graph, root) if root.call.op else None
        if fragment is not None:
            proofs.append(prove(fragment, [zeros(graph.type(v)) for v in fragment.inputs], seed=seed))
        if len(proofs) == GRAPHS:
            break
    if not proofs:
        return RuleProof(None, 0, "of the graphs made from its pattern it applies to none")
    weakest = max(proofs, key=lambda p: (not p.holds, ORDER[p.weights], p.level))
    return RuleProof(weakest, len(proofs), weakest.reason)
