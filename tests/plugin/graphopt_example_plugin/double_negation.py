"""The pass `double-negation`.

Mathematics: -(-x) = x and |-x| = |x|. In floating point and in two's complement a negation loses nothing, so
both hold bit for bit, signed zeros, infinities and the least integer included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from graphopt import Exact, Rule, RulePass, rule


@rule(contract=Exact())
class DoubleNegation:
    """neg(neg(x)) becomes x."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.neg(op.neg(x))

    def rewrite(self, m: Any, build: Any) -> Any:
        return m.x


@rule(contract=Exact())
class AbsoluteOfNegation:
    """abs(neg(x)) becomes abs(x)."""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.abs(op.neg(x))

    def check(self, m: Any) -> None:
        if not m.type(m.x).dtype.startswith(("float", "bfloat", "int")):
            m.fail("{} is not a signed number", m.graph.name(m.x))

    def rewrite(self, m: Any, build: Any) -> Any:
        return build.abs(m.x, like=m.out)


@dataclass(frozen=True)
class RemoveDoubleNegation(RulePass):
    """Removes negations that do not show: under another one, and under an absolute value."""

    name: ClassVar[str] = "double-negation"
    contract: ClassVar[str] = "exact: the same bits for every input"

    absolute: bool = True
    "Whether negations under an absolute value are removed too."

    def rules(self) -> Sequence[Rule]:
        return [DoubleNegation, AbsoluteOfNegation] if self.absolute else [DoubleNegation]
