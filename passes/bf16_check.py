"""What an op in bfloat16 is held to: the op that it replaces, on operands that bfloat16 can hold."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphopt.ir.graph import Call
from graphopt.ir.weights import Array, numpy_dtype
from graphopt.rewrite.change import Change, Rejected
from graphopt.rewrite.contract import Evidence
from graphopt.verify.compare import EPS, mismatch, relative_error, rounding_ratio
from graphopt.verify.execute import CannotRun, Runner, side_runner
from graphopt.verify.fragment import Fragment, cut
from graphopt.verify.inputs import KINDS, NoInputs, Sizes, draw, size_choices
from graphopt.verify.twin import TOLERANCE, Meaning, NoTwin

if TYPE_CHECKING:
    from graphopt.pipeline.context import Context

FACTOR = 2.0
"""Units of rounding of bfloat16, of the largest value and in root mean square, that a result may be off: kernels sum in
float32, so that results are rounded once, in attention twice. Tiny DiT, PixArt, SD3 and UNet models stay below 0.6."""


class Bf16Verifier:
    """Judges conversions; where the run verifies types only, so does it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def verify(self, change: Change) -> Evidence:
        runs = self._context.verify in ("match", "model")
        evidence = check(change) if runs else self._context.verifier.verify(change)
        self._context.approximated += 1
        return evidence


def check(change: Change) -> Evidence:
    """Both sides on operands that bfloat16 holds, the side before with the declared weights. In float64 they are the
    same to 1e-9; natively each is within `FACTOR` units of rounding of bfloat16 from that.

    Raises:
        Rejected: they differ, or cannot be run.
    """
    fragment = cut(change)
    calls = [c for node in fragment.before.nodes if isinstance(c := change.graph.call(node), Call)]
    worst = twin = 0.0
    try:
        before, after = side_runner(fragment, fragment.before), side_runner(fragment, fragment.after)
        meaning = Meaning(fragment, fragment.before)
        runs = list(_runs(fragment, calls, before, change))
        for kind, feeds, old in runs:
            wide = meaning(feeds)
            if kind == KINDS[0]:
                twin = _twin_error(wide, Meaning(fragment, fragment.after)(feeds))
            new = after(feeds)
            if (reason := mismatch(old, new)) is not None:
                raise Rejected(reason, Evidence("executed", len(runs), float("inf"), twin))
            worst = max(worst, _worst(kind, wide, old, new))
    except (CannotRun, NoInputs, NoTwin) as error:
        raise Rejected(f"it cannot be run to be compared: {error}", Evidence("none")) from error
    evidence = Evidence("executed", len(runs), worst, twin, ("operands rounded to bfloat16",))
    if not twin <= TOLERANCE:
        raise Rejected(f"in float64 the result changes by {twin:.1e} (allowed {TOLERANCE:.0e})", evidence)
    if not worst <= 1.0:
        raise Rejected(f"the error is {worst:.3g} times what rounding to bfloat16 allows", evidence)
    return evidence


def _runs(
    fragment: Fragment, calls: Sequence[Call], before: Runner, change: Change
) -> Iterator[tuple[str, list[Array], list[Array]]]:
    """Kind, inputs and the original's results for each kind of inputs, in the first sizes that it accepts."""
    seed = zlib.crc32(change.id.encode())
    sizes, first = _first(fragment, calls, before, seed)
    yield KINDS[0], first, before(first)
    for number, kind in enumerate(KINDS[1:], 1):
        feeds = _narrowed(draw(fragment, sizes, calls, kind, seed + number, finite=True))
        yield kind, feeds, before(feeds)


def _first(fragment: Fragment, calls: Sequence[Call], before: Runner, seed: int) -> tuple[Sizes, list[Array]]:
    failure: CannotRun | None = None
    for sizes in size_choices(fragment, calls):
        feeds = _narrowed(draw(fragment, sizes, calls, KINDS[0], seed))
        try:
            before(feeds)
            return sizes, feeds
        except CannotRun as error:
            failure = failure or error
    raise failure or CannotRun("no sizes to try")


def _narrowed(feeds: Sequence[Array]) -> list[Array]:
    """What bfloat16 can hold of the float32 ones."""
    bfloat16 = numpy_dtype("bfloat16")
    return [f.astype(bfloat16).astype(f.dtype) if f.dtype == np.float32 else f for f in feeds]


def _twin_error(before: Sequence[Array], after: Sequence[Array]) -> float:
    return max(relative_error(a, b) for a, b in zip(before, after, strict=True))


def _worst(kind: str, wide: Sequence[Array], old: Sequence[Array], new: Sequence[Array]) -> float:
    """The largest error as a share of what is allowed. On normal inputs the original is held to the same, so that what
    it was read as is what it is."""
    eps, ratios = EPS["bfloat16"], [0.0]
    for exact, own, narrow in zip(wide, old, new, strict=True):
        ratios.append(rounding_ratio(exact, own, narrow, eps, FACTOR))
        if kind == KINDS[0]:
            ratios.append(rounding_ratio(exact, exact, own, eps, FACTOR))
    return max(ratios)
