"""What is tidied around experts so that they are seen, and so that rows are moved once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

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
        if m.column.fields["axes"] != (m.rank(m.i),):
            m.fail("the indices have no last axis of their own")

    def rewrite(self, m: Match, build: Builder) -> Value:
        return build.gather(m.x, m.i, axis=0, like=m.out)


@rule(contract=Exact(), keep_shared=True)
class RowsOfRepeated:
    """gather(x with each row k times, i) is gather(x, i // k), so that the repeated rows are never made.

    Repeating is what torch's exporter writes for it: a new axis 1, expanded to k, joined with axis 0. i // k is written
    as (i - i mod k) / k, which is the same for negative i. Precondition: nothing but rows is repeated. Contract: exact.
    Source: element r of the repeated axis is element r // k of the axis.
    """

    def pattern(self, op: PatternOps, x: Var, i: Var) -> OpPattern:
        column = op.unsqueeze(x, axes=(1,)).named("column")
        repeated = op.reshape(op.expand(column, shape=any_).named("repeated"), shape=any_).named("rows")
        return op.gather(repeated, i, axis=0)

    def check(self, m: Match) -> None:
        before, repeated, rows = m.type(m.x).shape, m.type(m.repeated.outputs[0]).shape, m.type(m.rows.outputs[0]).shape
        if before is None or repeated is None or rows is None:
            m.fail("ranks are not known")
        if not (isinstance(repeated[1], int) and repeated[1] > 0):
            m.fail("how often rows are repeated is not known")
        if repeated[0] is None or repeated[0] != before[0]:
            m.fail("there are {} rows and they are expanded to {}", before[0], repeated[0])
        inner = before[1:]
        if not all(isinstance(d, int) and d > 0 for d in inner) or repeated[2:] != inner or rows[1:] != inner:
            m.fail("more than rows is repeated or joined: {} to {} to {}", before, repeated, rows)
        if m.type(m.i).dtype != "int64":
            m.fail("the indices are {}", m.type(m.i).dtype)

    def rewrite(self, m: Match, build: Builder) -> Value:
        repeated = m.type(m.repeated.outputs[0]).shape
        assert repeated is not None
        times = build.const(np.asarray(repeated[1], np.int64), "times")
        first = build.sub(m.i, build.mod(m.i, times, fmod=False, like=m.i), like=m.i)
        token = build.div(first, times, rounding="trunc", like=m.i)
        return build.gather(m.x, token, axis=0, like=m.out)


PREPARING: tuple[Any, ...] = (GatherOfRows,)
"""Rules that let experts be seen."""
FOLLOWING: tuple[Any, ...] = (RowsOfRepeated,)
"""Rules that move rows once where experts were written."""
