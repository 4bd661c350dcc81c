"""Sizes to prove a fragment at. A proof at some sizes is as good as one at others where every op treats all positions
alike, so images are made small; everything else keeps its size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from graphopt.ir.graph import Call, Dim
from graphopt.ir.ops import ELEMENTWISE
from graphopt.verify.fragment import Fragment
from graphopt.verify.inputs import Sizes, kernel_extent, multiple_of, size_choices, treats_positions_alike

BATCH = 2
"""A batch of at least two samples is made as small as this: ops that are local see each by itself."""
RECURRENT = frozenset({"lstm", "lstm_layer", "gru"})


def proof_sizes(fragment: Fragment, calls: Sequence[Call]) -> Iterator[tuple[Sizes, bool]]:
    """Shapes for the inputs, the cheapest first, and whether known sizes were reduced.

    A spatial size is reduced to one that is the same modulo the strides and holds a position whose window lies inside
    and one at either border, none at both. Different sizes stay different, so that a rewrite that reads the wrong one
    is seen. Raises NoInputs.
    """
    seen: list[Sizes] = []
    if any(c.op in RECURRENT for c in calls):
        seen.append(_few_steps(fragment, next(size_choices(fragment, calls))))
        yield seen[0], False
    for sizes in size_choices(fragment, calls):
        if len(calls) == len(fragment.before.nodes) and treats_positions_alike(fragment, calls):
            small = _reduced(fragment, calls, sizes)
            if small not in seen:
                seen.append(small)
                yield small, _cuts(fragment, small)
        if sizes not in seen:
            seen.append(sizes)
            yield sizes, _cuts(fragment, sizes)


def _few_steps(fragment: Fragment, sizes: Sizes) -> Sizes:
    """`sizes` with two or three or so for each that is symbolic: what is computed step by step has a degree that grows
    with every step."""
    named: dict[Dim, int] = {}
    found = {}
    for value, shape in sizes.items():
        type_ = fragment.graph.type(value)
        known = shape if type_ is None or type_.shape is None else type_.shape
        parts = [(1, d) if d is None else multiple_of(d) for d in known]
        found[value] = tuple(
            factor * named.setdefault(name, 2 + len(named)) if isinstance(name, str) else size
            for (factor, name), size in zip(parts, shape, strict=True)
        )
    return found


def _reduced(fragment: Fragment, calls: Sequence[Call], sizes: Sizes) -> Sizes:
    step = math.prod(math.prod(c.fields.get("stride", ())) for c in calls)
    least = max(2, 2 * kernel_extent(fragment, calls) + step)
    chosen = {n: n for n in _stored(fragment, calls)}
    for n in sorted({n for shape in sizes.values() for n in shape[2:]} - set(chosen)):
        m = least + (n - least) % step
        while m in chosen.values():
            m += step
        chosen[n] = min(n, m)
    return {
        value: (min(shape[0], BATCH), shape[1], *(chosen[n] for n in shape[2:])) if len(shape) > 2 else shape
        for value, shape in sizes.items()
    }


def _stored(fragment: Fragment, calls: Sequence[Call]) -> set[int]:
    """Sizes of constants that meet images elementwise: they would be broadcast if the image had another."""
    constants = [
        data
        for call in calls
        if call.op in ELEMENTWISE
        for o in call.operands
        if o is not None and (data := fragment.before.declared.get(o) or fragment.graph.constant(o)) is not None
    ]
    return {n for data in constants for n in data.shape}


def _cuts(fragment: Fragment, sizes: Sizes) -> bool:
    """Whether a size that the model fixes is another one here."""
    for value, shape in sizes.items():
        type_ = fragment.graph.type(value)
        known = () if type_ is None or type_.shape is None else type_.shape
        if any(isinstance(k, int) and k != n for k, n in zip(known, shape, strict=False)):
            return True
    return False
