"""What a rewrite promises about the numbers it changes, and the evidence that it kept the promise.

`Exact` and `Rounding` are judged against float64, with the original's own rounding error as the yardstick: a
rewrite may not be worse than a small multiple of what the original already does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graphopt.errors import RuleError


@dataclass(frozen=True)
class Contract:
    """Base of the three contracts."""


@dataclass(frozen=True)
class Exact(Contract):
    """Bit-equal results on the same kernels, for every input."""

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True)
class Rounding(Contract):
    """Error against the float64 result at most `factor` times the original's own, or `factor` units of rounding if that
    is larger; in root mean square and in maximum.

    `factor` 8 was chosen on 17 correct and 27 wrong rewrites and then held on fresh seeds: none of 1020 correct ones
    flagged (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3, gives the model).
    """

    factor: float = 8.0
    special: bool = True
    """Whether this holds for inputs with NaN and infinities too. A rule says False where two ways to compute the
    same numbers put NaN at different places; what is finite, however large, stays promised and checked."""

    def __str__(self) -> str:
        return f"rounding(factor={self.factor:g}{'' if self.special else ', finite inputs only'})"


@dataclass(frozen=True)
class Approximate(Contract):
    """`metric` stays within the budget that the user states, measured on calibration data. Never runs without one."""

    metric: str = "relative-error"

    def __str__(self) -> str:
        return f"approximate({self.metric})"


def require_contract(contract: Any, where: str) -> Contract:
    """`contract`, if it is one. Raises RuleError, which names `where`, otherwise."""
    if isinstance(contract, Contract):
        return contract
    advice = f"; write {contract.__name__}()" if isinstance(contract, type) and issubclass(contract, Contract) else ""
    raise RuleError(f"{where}: contract={contract!r}: expected Exact(), Rounding() or Approximate(){advice}")


@dataclass(frozen=True)
class Proof:
    """How far a rewrite is proved.

    `level` is "proof"; "proof+exp" if it rests on exp(a + b) = exp(a) exp(b), whose soundness over finite fields is
    conjectured (arXiv 2506.04529); "proof@reduced" if it was made at smaller sizes; "proof~const" if constants were
    read as the simple numbers that they are close to; "undecided" or "refuted".
    """

    level: str
    reason: str = ""
    """Why it is undecided, or the input that refutes it."""
    log2_error: float | None = None
    """Base-2 logarithm of the greatest chance that a wrong rewrite passes; None where chance has no part."""
    functions: tuple[str, ...] = ()
    """What was treated as unknown functions."""
    laws: tuple[str, ...] = ()
    """Laws of functions that the proof needs."""
    weights: str = "all"
    """"all" if it holds for all real weights; "large" if weights of up to 16 elements were taken as they are;
    "none" if all were."""
    sampled: tuple[str, ...] = ()
    """What was drawn and not left open: integer inputs, the order of numbers that are sorted."""
    reduced: bool = False
    """Whether it was made at smaller sizes than the model's."""
    seed: int = 0
    """Of the random point: with it, the same proof is made again."""
    milliseconds: float = field(default=0.0, compare=False)

    @property
    def holds(self) -> bool:
        return self.level.startswith("proof")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Proof:
        """What `vars` of one gives, with lists for tuples."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**known)


@dataclass(frozen=True)
class Evidence:
    """What is known about one application.

    `kind` is "bit-equal" or "executed" when both sides ran natively, "construction" when the change is right by how it
    is made (removal of what nothing reads, a copy of a branch that is always taken), "types" when only shapes and
    dtypes were compared, "none" when verification was off or the change was refused before anything ran. `worst` is the
    largest error found as a multiple of what the contract allows (1.0 is the limit), `twin` the relative error of the
    float64 twin.
    """

    kind: str
    inputs: int = 0
    worst: float = 0.0
    twin: float | None = None
    notes: tuple[str, ...] = ()
    proof: Proof | None = None
    """What algebra says of it, if it was asked; it stands beside the checks, never in their place."""

    @property
    def counts(self) -> bool:
        """Whether this is evidence at all."""
        return self.kind not in ("none", "types")


class Application(NamedTuple):
    """One application of one rule: what `--limit`, `--skip` and bisection count."""

    id: str
    """Stable between runs: "pass/rule#k", k counting the candidates of that rule in that pass."""
    rule: str
    nodes: tuple[str, ...]
    """Names of the matched nodes."""
    status: str
    """"kept", "undone" or "skipped"."""
    reason: str = ""
    evidence: Evidence = Evidence("none")
    repro: str | None = None
    """Folder that reproduces an undone application, when one was written."""
