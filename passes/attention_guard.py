"""The guard behind a softmax, as torch exports attention with a mask of truth values: NaN become 0.

A softmax has NaN where its query may look at nothing, all its scores being minus infinity. A mask of finite numbers
leaves every query something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.ir.graph import Call, Graph, Value
from graphopt.passes.identities import require_removable
from graphopt.passes.value_ranges import value_range
from graphopt.rewrite.contract import Rounding
from graphopt.rewrite.pattern import OpPattern, PatternOps, Var, const
from graphopt.rewrite.rule import Match, rule

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder


def may_hide_all_keys(m: Match, mask: Value | None) -> bool:
    """Whether `mask` may put minus infinity on every key of a query, as far as it can be told.

    (A twin has the mask for an input; what holds of the real one is asked there.)
    """
    return mask is not None and m.graph.storage != "scratch" and value_range(m.graph, mask) is None


@rule(contract=Rounding(special=False))
class GuardOfSoftmax:
    """where(is_nan(w), 0, w) = w for w = softmax(scale * matmul + mask), or without scale or mask.

    Preconditions: scale and mask are known to be finite from how they are computed. Contract: rounding, for finite
    inputs: NaN of the scores reach the result, where the guard turned them into 0. Source: definition of the
    softmax, which is finite where one score is.
    """

    def pattern(self, op: PatternOps, w: Var) -> OpPattern:
        return op.where(op.is_nan(w), const(0.0), w)

    def check(self, m: Match) -> None:
        require_removable(m, m.w)
        if m.graph.storage == "scratch":
            return
        softmax = _call(m.graph, m.w, "softmax")
        if softmax is None:
            m.fail("what is guarded is no softmax")
        if not _is_finite(m.graph, softmax.operands[0]):
            m.fail("the scores may be minus infinity for all keys of a query")

    def rewrite(self, m: Match, build: Builder) -> Any:
        return m.w


def _is_finite(graph: Graph, scores: Value | None) -> bool:
    """Whether `scores` are a matrix product of whatever is finite, plus or times what is known to be finite."""
    if _call(graph, scores, "matmul", "einsum") is not None:
        return True
    call = _call(graph, scores, "add", "mul", "div")
    if call is None:
        return False
    a, b = call.operands
    known = value_range(graph, b) is not None
    if call.op == "div":
        return known and _is_finite(graph, a)
    return (known and _is_finite(graph, a)) or (value_range(graph, a) is not None and _is_finite(graph, b))


def _call(graph: Graph, value: Value | None, *ops: str) -> Call | None:
    node = None if value is None else graph.producer(value)
    call = None if node is None else graph.call(node)
    return call if isinstance(call, Call) and call.op in ops else None
