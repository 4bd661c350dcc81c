"""Check A, the float64 twin: the same rule, applied to a float64 copy of the fragment, must not change its result.

Independent of the dtype and of every runtime, so it decides about bfloat16 too. Correct rules stay below 1e-14
there, wrong ones start at about 1e-8 (a constant rounded through float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.ir.graph import CannotEmit, TensorType
from graphopt.ir.scratch import ScratchValue
from graphopt.ir.transcribe import transcribe
from graphopt.ir.weights import FLOATS, Array
from graphopt.rewrite.change import Change
from graphopt.rewrite.driver import sort_nodes, write_match
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.matcher import NoMatch
from graphopt.rewrite.rule import Refused
from graphopt.verify.compare import relative_error
from graphopt.verify.execute import evaluate
from graphopt.verify.fragment import Fragment, Side

TOLERANCE = 1e-9


class TwinFailed(Exception):
    """The rule does something else on the twin than it promises; carries the reason and the error."""

    def __init__(self, reason: str, error: float = float("inf")) -> None:
        super().__init__(reason)
        self.error = error


class NoTwin(Exception):
    """There is no twin: the fragment uses an op outside of the vocabulary. Carries the reason."""


def reference(fragment: Fragment, side: Side, feeds: Sequence[Array]) -> list[Array]:
    """One side in float64 by the vocabulary's meanings. Raises NoTwin if the vocabulary cannot say it."""
    try:
        scratch, _ = transcribe(
            fragment.graph, side.nodes, fragment.inputs, side.outputs, wide=True, declared=side.declared
        )
    except CannotEmit as error:
        raise NoTwin(str(error)) from error
    return evaluate(scratch, feeds)


def check_twin(change: Change, fragment: Fragment, feeds: Sequence[Array]) -> float:
    """Apply the rule of `change` to a float64 copy of the fragment; returns the relative error of the result.

    Raises TwinFailed if the rule does not match its own copy, fails there, or changes the result by more than
    `TOLERANCE`; NoTwin if the fragment cannot be copied.
    """
    assert change.rule is not None and change.match is not None
    before_side = fragment.before
    try:
        scratch, nodes = transcribe(
            fragment.graph,
            before_side.nodes,
            fragment.inputs,
            before_side.outputs,
            wide=True,
            declared=before_side.declared,
        )
    except CannotEmit as error:
        raise NoTwin(str(error)) from error
    before = evaluate(scratch, feeds, _retype)
    root = nodes[next(iter(change.match.calls))]
    found = change.rule.match(scratch, root)
    if isinstance(found, NoMatch):
        raise TwinFailed(f"the rule does not match its own float64 twin: {found.reason}")
    try:
        write_match(change.rule, found, sort_nodes(scratch, found), Journal(scratch))
    except CannotEmit as error:
        raise NoTwin(str(error)) from error
    except Refused as refused:
        raise TwinFailed(f"the rule refuses its own float64 twin: {refused.no_match.reason}") from refused
    after = evaluate(scratch, feeds)
    change_of = max((_difference(b, a) for b, a in zip(before, after, strict=True)), default=0.0)
    if not change_of <= TOLERANCE:
        raise TwinFailed(f"in float64 the result changes by {change_of:.1e} (allowed {TOLERANCE:.0e})", change_of)
    return change_of


def _difference(before: Array, after: Array) -> float:
    if before.dtype.name in FLOATS:
        return relative_error(before, after)
    return 0.0 if np.array_equal(before, after) else float("inf")


def _retype(value: ScratchValue, result: Any) -> None:
    """Let a value have the type that it really had."""
    array = np.asarray(result)
    value.type = TensorType(array.dtype.name, array.shape)
