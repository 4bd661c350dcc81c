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
GRAPHS = 8
"""On how many graphs a rule is proved, where so many are found: one alone may be too regular to show a fault."""
CLAIMS = {
    "all": "all weights",
    "large": "all weights but those of a few elements, whose numbers it reads",
    "none": "the weights whose numbers it reads",
}
"""What a proof speaks of, from the strongest claim to the weakest."""


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
            return f"{self.claim}: {self.reason}"
        return f"{self.claim}, on {self.graphs} graphs made from its pattern"

    @property
    def claim(self) -> str:
        """What is proved, in words."""
        if self.proof is None or not self.proof.holds:
            return "not proved"
        return f"{self.proof.level} for {CLAIMS[self.proof.weights]}"


def prove_rule(rule: Rule, *, seed: int | None = None) -> RuleProof:
    """Prove `rule` on a few graphs made from its pattern, the same ones each time.

    Args:
        seed: of the random points of the proofs; drawn anew if absent.
    """
    if isinstance(rule.contract, Approximate):
        return RuleProof(None, 0, "it is approximate: what it gives is not equal")
    proofs: list[Proof] = []
    for sample in islice(samples(rule), DRAWS):
        try:
            fragment = None if sample is None else applied(rule, *sample)
        except Exception as error:  # a rule is anybody's code
            return RuleProof(None, len(proofs), f"it raised {type(error).__name__}: {error}")
        if fragment is not None:
            graph = fragment.graph
            proofs.append(prove(fragment, [zeros(graph.type(v)) for v in fragment.inputs], seed=seed))
        if len(proofs) == GRAPHS:
            break
    if not proofs:
        return RuleProof(None, 0, "of the graphs made from its pattern it applies to none")
    weakest = max(proofs, key=lambda p: (not p.holds, [*CLAIMS].index(p.weights), p.level))
    return RuleProof(weakest, len(proofs), weakest.reason)
