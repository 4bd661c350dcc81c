"""In which form experts are computed, and why.

    dense: each expert for every token, E products a token.  sorted: each for its own tokens, k products a token
    loop: sorted, in a loop over stacked weights
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Form = Literal["auto", "sorted", "dense", "contrib", "loop"]
WORTH = 1.25
"""Experts for each that is picked, from which on picking is faster than computing all. Measured on onnxruntime 1.32
(one thread, two products): the break-even is 1.2 for 64 features, between 1 and 1.14 for 256 and 512."""


@dataclass(frozen=True)
class Choice:
    """A form, and the reason for it in words."""

    form: str
    why: str

    def __str__(self) -> str:
        return f"form {self.form}: {self.why}"


def choose(asked: Form, experts: int, k: int) -> Choice:
    """The form for `k` of `experts` experts a token: what is asked for, or what the cost model says."""
    cost = f"{k} of {experts} experts a token, {experts / k:.3g} times less work than all"
    if asked != "auto":
        return Choice(asked, f"asked for ({cost})")
    if experts < WORTH * k:
        return Choice("dense", f"{cost}, for which moving rows is not worth it (below {WORTH:g})")
    return Choice("sorted", f"{cost} (from {WORTH:g} on moving rows is worth it)")
