"""Check A, the float64 twin: the same rule, applied to a float64 copy of the fragment, must not change its result.

Independent of the dtype and of every runtime, so it decides about bfloat16 too. Correct rules stay below 1e-14
there, wrong ones start at about 1e-8 (a constant rounded through float32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphopt.ir.graph import CannotEmit, TensorType
from graphopt.ir.scratch import ScratchValue, float64_leaf
from graphopt.ir.transcribe import transcribe
from graphopt.ir.weights import FLOATS, Array, TensorRef
from graphopt.rewrite.change import Change
from graphopt.rewrite.driver import sort_nodes, write_match
from graphopt.rewrite.journal import Journal
from graphopt.rewrite.matcher import NoMatch
from graphopt.rewrite.rule import Refused
from graphopt.verify.compare import relative_error
from graphopt.verify.execute import evaluate
from graphopt.verify.fragment import Fragment, Side

TOLERANCE = 1e-9
KEPT = 1 << 22
"""Largest weight that is held in float64 from one run to the next, in numbers (32 MB)."""


class TwinFailed(Exception):
    """The rule does something else on the twin than it promises; carries the reason and the error."""

    def __init__(self, reason: str, error: float = float("inf")) -> None:
        super().__init__(reason)
        self.error = error


class NoTwin(Exception):
    """There is no twin: the fragment uses an op outside of the vocabulary. Carries the reason."""


class Meaning:
    """One side in float64 by the vocabulary's meanings, to be called with its inputs. NoTwin if the vocabulary
    cannot say it."""

    def __init__(self, fragment: Fragment, side: Side) -> None:
        try:
            self._scratch, _ = transcribe(
                fragment.graph, side.nodes, fragment.inputs, side.outputs, wide=True, declared=side.declared
            )
        except CannotEmit as error:
            raise NoTwin(str(error)) from error
        self._widened: dict[TensorRef, Array] = {}

    def __call__(self, feeds: Sequence[Array]) -> list[Array]:
        return evaluate(self._scratch, feeds, leaf=self._leaf)

    def _leaf(self, data: TensorRef) -> Array:
        """Weights are widened once for all runs, unless they are so large that they had better not stay."""
        if data.size > KEPT:
            return float64_leaf(data)
        if data not in self._widened:
            self._widened[data] = widened = float64_leaf(data)
            widened.flags.writeable = False
        return self._widened[data]


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
    for old, new in zip(before, after, strict=True):
        if old.shape != new.shape:
            raise TwinFailed(f"a result of shape {list(old.shape)} becomes one of shape {list(new.shape)}")
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
