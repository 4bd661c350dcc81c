"""What is tidied around experts so that they are seen, and so that rows are moved once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.ir.graph import Value
from graphopt.rewrite.contract import Exact
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, any_
from graphopt.rewrite.rule import Match, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder


@rule(contract=Exact(), keep_shared=True)
class GatherOfRows:
    """gather_nd(x, unsqueeze(i)) with a new last axis of i is gather(x, i) along axis 0: what torch's exporter makes of
    plain indexing.

    Precondition: no batch dimensions (the default). Contract: exact. Source: GatherND, ONNX operators, opset 13: each
    row of indices of length 1 is an index of axis 0.
    """

    def pattern(self, op: PatternOps, x: Var, i: Var) -> OpPattern:
        return op.gather_nd(x, op.unsqueeze(i, axes=any_).named("column"))

    def check(self, m: Match) -> None:
        if m.column.fields["axes"] != (m.rank(i_of(m)),):
            m.fail("the indices have no last axis of their own")

    def rewrite(self, m: Match, build: Builder) -> Value:
        return build.gather(m.x, i_of(m), axis=0, like=m.out)


def i_of(m: Match) -> Value:
    """The indices, one for each row."""
    value: Value = m.bindings.values["i"]
    return value


PREPARING: tuple[Any, ...] = (GatherOfRows,)
"""Rules that let experts be seen."""
