"""Masked equals sliced: what shortening an axis must not change, checked on the part of the graph that it touches.

Three checks, each of which sees what the others cannot: in float64, the part before with zeros in what goes equals the
part after; slicing a tensor at the wrong places would have been seen, unless no result depends on the axis; what was
written runs natively and computes its float64 meaning. Nodes at which indices depend on each other are restricted,
before, to what stays: what that does to the model is the price of the axis and not an error.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from graphopt.axes.analysis import Axes, Kept, Shortened
from graphopt.axes.free import FreeAxis, is_needed
from graphopt.axes.region import Region, first_run, masks, picked, run_masked, run_now, stored, widened
from graphopt.axes.shorten import shorten, sliced
from graphopt.axes.terms import Mask
from graphopt.ir.graph import Node, Value
from graphopt.ir.weights import FLOATS, Array
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.rewrite.journal import Journal
from graphopt.verify.compare import EPS, relative_error
from graphopt.verify.execute import CannotRun, native_runner
from graphopt.verify.floats import shake

TOLERANCE = 1e-10
"""Relative error between masked and sliced in float64; right ones stay below 1e-13."""
SEEN = 1e-6
"""Relative error that slicing at the wrong places must make at the least."""
DRAWS = 4
"""Sets of inputs that are tried: with one, few indices that stay may all be cut off by a relu."""
NATIVE_UNITS = 64.0
"""Units of rounding that the native result may be from the float64 one, times its sensitivity to rounding."""


def shorten_checked(
    axes: Axes, axis: FreeAxis, keep: Mask, journal: Journal, *, check: bool = True, lossless: bool = False
) -> Evidence:
    """Shorten one axis to the indices in `keep`; committed if the result is right, rolled back if not.

    With `lossless`, what goes must not matter: the part computes on the stored tensors what it computed before.

    Raises:
        Rejected: masked and sliced differ, a fault would not be seen, or what goes matters.
        CannotEmit: the storage cannot say the result.
    """
    nodes = axes.current(axis.nodes)
    values = list(dict.fromkeys(m.value for m in axis.members))
    for attempt in range(DRAWS):
        try:
            before = _Before(axes, axis, keep, lossless, attempt) if check else None
            edit = shorten(axes, {axis.leaf: keep}, values, nodes, journal)
            evidence = Evidence("none") if before is None else before.compare(edit)
            break
        except BaseException as error:
            journal.rollback()
            if not isinstance(error, _Unseen) or attempt == DRAWS - 1:
                raise
    journal.commit()
    edit.removed.update(journal.removed)
    axes.follow(edit)
    return evidence


class _Unseen(Rejected):
    """With these inputs a fault would not be seen: with others it may."""


@dataclass(frozen=True)
class _Now:
    """What stands for a part after the edit."""

    nodes: Sequence[Node]
    outputs: Sequence[Value]


class _Before:
    """What is to be compared with, taken before the edit."""

    def __init__(self, axes: Axes, axis: FreeAxis, keep: Mask, lossless: bool, attempt: int) -> None:
        self._axes = axes
        self._axis = axis
        self._nodes = nodes = axes.current(axis.nodes)
        self._kept = Kept(axes.space, {axis.leaf: keep})
        self._wrong = Kept(axes.space, {axis.leaf: _shifted(keep)})
        coupling = set(axes.current(axis.coupling))
        seed = zlib.crc32(f"{axis.name}:{axis.size}".encode()) + attempt
        masked = partial(run_masked, axes, coupling, self._kept)
        self._region, self._expected = first_run(axes, nodes, seed, masked)
        if not self._region.outputs:
            raise Rejected("no result depends on it: dead-code removes it", Evidence("none"))
        if not all(np.isfinite(m).all() for m in self._expected):
            raise Rejected("what it is compared with is not finite", Evidence("none"))
        self._unchanged = run_now(self._region, nodes, self._stored(), self._region.outputs) if lossless else None
        self._sliced = {
            v: sliced(axes, self._kept, v, stored(axes.graph, v)).numpy() for v in {m.value for m in axis.members}
        }
        self._slices = {v: masks(axes, self._kept, v) for v in self._region.weights}
        self._wrong_slices = {v: masks(axes, self._wrong, v) for v in self._region.weights}

    def compare(self, edit: Shortened) -> Evidence:
        """The evidence for the edit. Raises Rejected if there is none."""
        replaced = dict(edit.values)
        nodes = [now for n in self._nodes for now in (*edit.fills.get(n, ()), edit.nodes.get(n, n))]
        now = _Now(nodes, [replaced.get(o, o) for o in self._region.outputs])
        self._check_stored()
        error = self._error(now, {v: picked(w, self._slices[v]) for v, w in self._region.weights.items()})
        if not error <= TOLERANCE:
            raise Rejected(
                f"masked and sliced differ by {error:.1e} in float64 (allowed {TOLERANCE:.0e})",
                Evidence("executed", 1, error / TOLERANCE, error),
            )
        control = self._control(now)
        idle = not control >= SEEN and not is_needed(self._axes, self._axis)
        if not control >= SEEN and not idle:
            raise _Unseen(
                f"slicing at the wrong places would not be seen: it changes the result by {control:.1e} only",
                Evidence("executed", 1, 0.0, error),
            )
        check_native(self._region, now.nodes, now.outputs)
        if self._unchanged is not None:
            self._check_unchanged(self._unchanged, now)
        axis = self._axis
        how = "exact" if axis.exact else f"coupled at {', '.join(axis.coupled[:3])}"
        seen = f"slicing at the wrong places would change the result by {control:.1e}"
        notes = (how, "no result depends on it" if idle else seen)
        return Evidence("executed", 2, error / TOLERANCE, error, notes)

    def _error(self, now: _Now, weights: Mapping[Value, Array]) -> float:
        return _compare(self._expected, run_now(self._region, now.nodes, weights, now.outputs))

    def _stored(self) -> dict[Value, Array]:
        return {v: widened(stored(self._axes.graph, v).numpy()) for v in self._region.weights}

    def _check_unchanged(self, before: Sequence[Array], now: _Now) -> None:
        moved = _compare(before, run_now(self._region, now.nodes, self._stored(), now.outputs))
        if not moved <= TOLERANCE:
            raise Rejected(
                f"what goes matters: the result changes by {moved:.1e} in float64 (allowed {TOLERANCE:.0e})",
                Evidence("executed", 2, moved / TOLERANCE, moved),
            )

    def _check_stored(self) -> None:
        graph = self._axes.graph
        for value, data in self._sliced.items():
            if not np.array_equal(stored(graph, value).numpy(), data, equal_nan=data.dtype.name in FLOATS):
                raise Rejected(f"{graph.name(value)} is stored otherwise than it was sliced", Evidence("none"))

    def _control(self, now: _Now) -> float:
        """What slicing a tensor that has the axis at other places does to the result: of the first for which it does
        anything, since after a softmax over one index the logits, for example, do not matter."""
        right = {v: picked(w, self._slices[v]) for v, w in self._region.weights.items()}
        error = 0.0
        for value in (v for v, slices in self._slices.items() if any(m is not None for m in slices)):
            wrong = picked(self._region.weights[value], self._wrong_slices[value])
            error = self._error(now, right | {value: wrong})
            if error >= SEEN:
                break
        return error


def _shifted(keep: Mask) -> Mask:
    """As many other indices."""
    moved = np.roll(keep, 1)
    return moved if not np.array_equal(moved, keep) else ~keep


def _compare(expected: Sequence[Array], got: Sequence[Array]) -> float:
    return max((relative_error(a, b) for a, b in zip(expected, got, strict=True)), default=0.0)


def check_native(region: Region, nodes: Sequence[Node], outputs: Sequence[Value]) -> None:
    """What was written runs natively, on the tensors that are stored, and computes its float64 meaning.

    Raises:
        Rejected: it does not.
    """
    graph = region.graph
    weights = {v: widened(stored(graph, v).numpy()) for v in region.weights}
    reference = run_now(region, nodes, weights, outputs)
    try:
        native = native_runner(graph, nodes, region.inputs, outputs)(region.feeds)
    except CannotRun as failure:
        raise Rejected(f"the shortened part cannot be run: {failure}", Evidence("none")) from failure
    eps = max((EPS[n.dtype.name] for n in native if n.dtype.name in FLOATS), default=0.0)
    rng = np.random.default_rng(0)
    shaken = {v: shake(w, eps, rng) if w.dtype == np.float64 else w for v, w in weights.items()}
    moved = run_now(region, nodes, shaken, outputs, [shake(f, eps, rng) for f in region.feeds])
    allowed = NATIVE_UNITS * max(eps, _compare(reference, moved))
    error = _compare(reference, [widened(n) for n in native])
    if not error <= allowed:
        raise Rejected(
            f"the native result of the shortened part is {error:.1e} from its float64 meaning, allowed {allowed:.1e}",
            Evidence("executed", 1, error / allowed if allowed else float("inf")),
        )
