"""States that can be read: past model outputs, past clean images and the like, instead of linear combinations.

A state of the last few tensors of some kinds (the last two model outputs, say) can always be carried: the newest is
made in the call, the others move up; a call of which later ones use nothing is passed over. It serves if at every cut
it spans what later calls need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

from graphopt.program.rows import Cut, Floats, Need, SymbolRows, applied, without

# What a natural state may leave out, in units of the samples that it changes.
LEFT_OUT = 1e-11
# A tensor known to float32 is taken for the one that the scheduler keeps if it is this close to it.
SAME = 1e-5


@dataclass(frozen=True)
class Kind:
    """A tensor that each call makes, as coefficients on the symbols of the call."""

    name: str
    coefficients: Floats  # (R, n)
    inexact: bool  # known to float32 only, in some call


def natural_state(
    rows: SymbolRows, inputs: Floats, needs: list[Need], live: int, named: Mapping[str, Floats]
) -> list[Cut] | None:
    """The state of `live` tensors at each cut in the simplest kinds that serve; None if none does."""
    if live == 1:
        return [Cut(("x",), need.sample[None]) for need in needs]
    kinds = _kinds(rows, named)
    for counts in _counts(len(kinds), live - 1):
        cuts = _carried(rows, inputs, needs, [(kind, n) for kind, n in zip(kinds, counts, strict=True) if n])
        if cuts is not None:
            return cuts
    return None


def _counts(kinds: int, total: int) -> Iterator[tuple[int, ...]]:
    """How many past tensors of each kind to keep, `total` in all: few kinds first, then the first kinds."""
    every = (counts for counts in product(range(total + 1), repeat=kinds) if sum(counts) == total)
    return iter(sorted(every, key=lambda counts: (sum(n > 0 for n in counts), [-n for n in counts])))


def _carried(rows: SymbolRows, inputs: Floats, needs: list[Need], kept: list[tuple[Kind, int]]) -> list[Cut] | None:
    """The cuts of a state of the last n tensors of each kind, or None if it does not span what is needed."""
    cuts = [Cut(("x",), needs[0].sample[None])]
    past: list[list[Floats]] = [[] for _ in kept]
    used = _used_later(rows)
    for j in range(rows.calls):
        need = needs[j + 1]
        for (kind, count), tensors in zip(kept, past, strict=True):
            if not len(need.rest):
                tensors.clear()
            elif used[j]:
                tensors.insert(0, applied(kind.coefficients[j : j + 1], inputs)[0])
                del tensors[count:]
            if kind.inexact:
                tensors[:] = [_onto(tensor, need) for tensor in tensors]
        names = ["x"] + [f"{kind.name}[-{i + 1}]" for kind, count in kept for i in range(count)]
        padded = [
            tensors + [np.zeros(rows.symbols)] * (n - len(tensors)) for (_, n), tensors in zip(kept, past, strict=True)
        ]
        basis = np.stack([need.sample, *(tensor for tensors in padded for tensor in tensors)])
        if len(need.rest) and np.abs(without(need.weighted, basis)).max() > LEFT_OUT:
            return None
        cuts.append(Cut(tuple(names), basis))
    return cuts


def _used_later(rows: SymbolRows) -> list[bool]:
    """Whether calls after a call use anything that appeared in it."""
    used_by = np.where((rows.outputs != 0) | (rows.clip_arguments != 0), np.arange(rows.calls)[:, None], -1)
    last_use, first_call = used_by.max(axis=0), rows.row_of_symbol()
    return [bool((last_use[first_call == j] > j).any()) for j in range(rows.calls)]


def _onto(tensor: Floats, need: Need) -> Floats:
    """The nearest tensor that is needed, if the tensor is that but for rounding."""
    rest = without(tensor[None], np.concatenate([need.sample[None], need.rest]))[0]
    return tensor - rest if np.linalg.norm(rest) <= SAME * np.linalg.norm(tensor) else tensor


def _kinds(rows: SymbolRows, named: Mapping[str, Floats]) -> list[Kind]:
    """The kinds to choose from, best first."""
    calls = range(rows.calls)
    unit = np.eye(rows.symbols)
    kinds = [Kind("m", unit[rows.model], False)]
    if (rows.clip >= 0).all():
        kinds.append(Kind("clipped", unit[rows.clip], False))
    kept = _kept(rows)
    matched = False
    for name, coefficients in named.items():
        if not np.isfinite(coefficients).all():
            continue
        exact = np.stack([_matched(coefficients[j], kept[j]) for j in calls])
        matched |= all(_matches(coefficients[j], kept[j]) for j in calls if kept[j] is not None)
        kinds.append(Kind(name, _over_symbols(rows, exact), True))
    if not matched and any(direction is not None for direction in kept):
        own = np.stack([np.array([0.0, 1.0]) if direction is None else direction for direction in kept])
        kinds.append(Kind("kept", _over_symbols(rows, own), False))
    kinds.append(Kind("x", unit[rows.sample], False))
    return kinds


def _kept(rows: SymbolRows) -> list[Floats | None]:
    """For each call, the one combination (2,) of its sample and model output that later calls use, if it is one."""
    found: list[Floats | None] = []
    for j in range(rows.calls):
        columns = [rows.sample[j], rows.model[j]]
        later = np.concatenate([rows.outputs[j + 1 :, columns], rows.clip_arguments[j + 1 :, columns]])
        if not later.any():
            found.append(None)
            continue
        _, values, directions = np.linalg.svd(later, full_matrices=False)
        alone = len(values) == 1 or values[1] < 1e-12 * values[0]
        found.append(_positive(directions[0]) if alone else None)
    return found


def _positive(direction: Floats) -> Floats:
    """The direction with a positive coefficient on the model's output, or else on the sample."""
    deciding = direction[1] if direction[1] != 0 else direction[0]
    return -direction if deciding < 0 else direction


def _matches(coefficients: Floats, kept: Floats | None) -> bool:
    if kept is None:
        return False
    rest = coefficients - (coefficients @ kept) * kept
    return bool(np.linalg.norm(rest) <= SAME * np.linalg.norm(coefficients))


def _matched(coefficients: Floats, kept: Floats | None) -> Floats:
    """The tensor that the scheduler keeps, if it is this one but for rounding, in this one's scale."""
    if kept is None or not _matches(coefficients, kept):
        return coefficients
    scaled: Floats = (coefficients @ kept) * kept
    return scaled


def _over_symbols(rows: SymbolRows, coefficients: Floats) -> Floats:
    """(R, 2) on (x_j, m_j) as (R, n) on all symbols."""
    spread = np.zeros((rows.calls, rows.symbols))
    spread[np.arange(rows.calls), rows.sample] = coefficients[:, 0]
    spread[np.arange(rows.calls), rows.model] = coefficients[:, 1]
    return spread
