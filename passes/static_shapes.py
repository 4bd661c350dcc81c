"""Rules for shapes that types know: what is known of a result need not be computed beside it.

All are `Exact`. They rest on the types that import and shape inference established: a size that is a number
there is that number in every run.
"""

from __future__ import annotations

from typing import Any

from graphopt.rewrite.builder import Builder
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_
from graphopt.rewrite.rule import Match, rule


class _ToKnownShape:
    """A computed shape that types know already need not be computed."""

    def check(self, m: Match) -> None:
        if m.move.fields["shape"] is None:
            m.fail("the shape of the result is not known: {}", m.type(m.out))
        if not _computes_target(m):
            m.fail("the target is constant")
        m.rank(m.x)

    def rewrite(self, m: Match, build: Builder) -> Any:
        return getattr(build, m.move.op)(m.x, shape=m.move.fields["shape"], like=m.out)


def _computes_target(m: Match) -> bool:
    """Whether the storage holds a computed target where the vocabulary says a known shape (a scratch graph
    holds what the vocabulary says).
    """
    graph = m.graph
    targets = graph.raw_call(m.move.node).operands[1:]
    return graph.storage == "scratch" or any(t is not None and graph.constant(t) is None for t in targets)


@rule(contract=Exact())
class ReshapeToKnownShape(_ToKnownShape):
    """reshape(x, computed target) = reshape(x, constant) when all sizes of the result but one are known.

    None of the known ones is 0 then: beside it the open size, -1, has no meaning.
    """

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.reshape(x, shape=any_).named("move")


@rule(contract=Exact())
class ExpandToKnownShape(_ToKnownShape):
    """expand(x, computed target) = expand(x, constant) when the sizes of the result are known."""

    def pattern(self, op: PatternOps, x: Var) -> OpPattern:
        return op.expand(x, shape=any_).named("move")


# mypy takes a decorated class for the class, not for the Rule that the decorator returns.
RULES: tuple[Any, ...] = (
    ReshapeToKnownShape, ExpandToKnownShape,
)  # fmt: skip
