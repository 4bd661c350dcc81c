"""The fewest tensors that must live from one denoiser call to the next, and the rows that carry them.

A scheduler is a linear time-varying system with inputs (x_0, m_j, z_j, c_j). What the calls from j on need to know
of the calls before j is the row space of a Hankel block (past inputs to future outputs); its rank is the number of
live tensors. See Dewilde and van der Veen, Time-Varying Systems and Computations (1998), chapter 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphopt.errors import UnsupportedError
from graphopt.program.natural import natural_state
from graphopt.program.rows import Cut, Floats, Need, SymbolRows, applied, without

# A direction of the state counts if it changes a later sample by more than this, relative to that sample.
SIGNIFICANT = 1e-12
# Coefficients this small beside the others of their sum are rounding.
NEGLIGIBLE = 1e-13
# How far the rows found may be from those seen, relative to the sample.
REPRODUCED = 1e-9


@dataclass(frozen=True)
class Realisation:
    """Rows over k live tensors: S' = A S + b m + g clamp(p S + q m, low, high) + N z."""

    transition: Floats  # (R, k, k)
    model_gain: Floats  # (R, k)
    noise_gain: Floats  # (R, k, d)
    clip_state: Floats  # (R, k)
    clip_model: Floats  # (R,)
    clip_gain: Floats  # (R, k)
    state_names: tuple[str, ...]  # (k,)


def realise(rows: SymbolRows, named: Mapping[str, Floats] | None = None) -> Realisation:
    """Find a state of the fewest tensors with S[0] = x, and rows over it.

    Args:
        rows: what the scheduler returned, over symbols.
        named: tensors of a call to keep under their names where they serve, each (R, 2) as coefficients on
            (x_j, m_j); they may be as inexact as float32.

    Raises:
        UnsupportedError: the rows are too badly conditioned to be written so.
    """
    inputs = rows.substitution()
    needs = _needs(rows, inputs)
    live = 1 + max(len(need.rest) for need in needs)
    cuts = natural_state(rows, inputs, needs, live, named or {}) or [_combined(need) for need in needs]
    found = _rows_over(rows, inputs, cuts, live)
    _check_reproduced(rows, inputs, found)
    return found


def _needs(rows: SymbolRows, inputs: Floats) -> list[Need]:
    """For each cut 0..R, what must be known there of the symbols before it."""
    first_call = rows.row_of_symbol()
    future = np.zeros((0, rows.symbols))
    needs = [_need(rows.sample_at(rows.calls, inputs), applied(future, inputs))]
    for j in range(rows.calls - 1, -1, -1):
        size = max(float(np.linalg.norm(rows.sample_at(j + 1, inputs))), 1e-12)
        own = np.stack([rows.outputs[j], rows.clip_arguments[j]]) / size
        future = _compressed(np.concatenate([future, own]) * (first_call < j))
        needs.append(_need(rows.sample_at(j, inputs), applied(future, inputs)))
    return needs[::-1]


def _compressed(functionals: Floats) -> Floats:
    """The same row space and weights in as few rows as its rank."""
    _, values, directions = np.linalg.svd(functionals, full_matrices=False)
    kept = values > 1e-15 * max(float(values.max(initial=0)), 1e-300)
    compressed: Floats = values[kept, None] * directions[kept]
    return compressed


def _need(sample: Floats, functionals: Floats) -> Need:
    _, values, directions = np.linalg.svd(without(functionals, sample[None]), full_matrices=False)
    return Need(sample, directions[values > SIGNIFICANT], functionals)


def _combined(need: Need) -> Cut:
    """A state of linear combinations, independent of each other and of the sample."""
    names = ("x", *(f"h{i + 1}" for i in range(len(need.rest))))
    return Cut(names, np.concatenate([need.sample[None], need.rest]))


def _rows_over(rows: SymbolRows, inputs: Floats, cuts: list[Cut], live: int) -> Realisation:
    """Write each call's outputs over the tensors of its cut."""
    calls, draws = rows.calls, max((len(columns) for columns in rows.noise), default=0)
    transition, model_gain = np.zeros((calls, live, live)), np.zeros((calls, live))
    noise_gain, clip_gain = np.zeros((calls, live, draws)), np.zeros((calls, live))
    clip_state, clip_model = np.zeros((calls, live)), np.zeros(calls)
    first_call = rows.row_of_symbol()
    for j in range(calls):
        now, later = cuts[j].basis, cuts[j + 1].basis
        past = (first_call < j) | (np.arange(rows.symbols) == rows.sample[0])
        clipped = applied(rows.clip_arguments[j : j + 1], inputs)[0]
        solved = _solve(now[:, past], np.concatenate([later, clipped[None]])[:, past])
        transition[j, : len(later), : len(now)] = solved[:-1]
        clip_state[j, : len(now)] = solved[-1]
        clip_model[j] = clipped[rows.model[j]]
        model_gain[j, : len(later)] = later[:, rows.model[j]]
        noise_gain[j, : len(later), : len(rows.noise[j])] = later[:, list(rows.noise[j])]
        if rows.clip[j] >= 0:
            clip_gain[j, : len(later)] = later[:, rows.clip[j]]
    _drop_rounding(transition, model_gain[..., None], noise_gain, clip_gain[..., None])
    _drop_rounding(clip_state[:, None], clip_model[:, None, None])
    return Realisation(transition, model_gain, noise_gain, clip_state, clip_model, clip_gain, _names(cuts, live))


def _solve(basis: Floats, functionals: Floats) -> Floats:
    """Coefficients on the basis; a functional that is of the basis itself gets exactly that coefficient."""
    size = np.linalg.norm(basis, axis=1)
    size[size == 0] = 1
    found, *_ = np.linalg.lstsq((basis / size[:, None]).T, functionals.T, rcond=1e-14)
    coefficients: Floats = found.T / size
    for row, functional in enumerate(functionals):
        same = np.flatnonzero((basis == functional).all(axis=1))
        if len(same) and functional.any():
            coefficients[row] = np.eye(len(basis))[same[0]]
    return coefficients


def _drop_rounding(*sums: Floats) -> None:
    """Set what is only rounding to zero, in place; the last axes of the arrays together are one sum."""
    largest = np.abs(np.concatenate(sums, axis=-1)).max(axis=-1, keepdims=True)
    for coefficients in sums:
        coefficients[np.abs(coefficients) <= NEGLIGIBLE * largest] = 0


def _names(cuts: list[Cut], live: int) -> tuple[str, ...]:
    """One name a slot: the tensor's own where it is the same in every row."""
    names = []
    for slot in range(live):
        used = {cut.names[slot] for cut in cuts if len(cut.names) > slot}
        names.append(used.pop() if len(used) == 1 else f"h{slot}")
    return tuple(names)


def _check_reproduced(rows: SymbolRows, inputs: Floats, found: Realisation) -> None:
    """Follow the rows found from the first sample on: every sample must be the one that was seen."""
    state = np.zeros((found.transition.shape[1], rows.symbols))
    state[0] = rows.sample_at(0, inputs)
    for j in range(rows.calls):
        state = found.transition[j] @ state
        state[:, rows.model[j]] += found.model_gain[j]
        state[:, list(rows.noise[j])] += found.noise_gain[j, :, : len(rows.noise[j])]
        if rows.clip[j] >= 0:
            state[:, rows.clip[j]] += found.clip_gain[j]
        expected = rows.sample_at(j + 1, inputs)
        error = np.linalg.norm(state[0] - expected) / np.linalg.norm(expected)
        if not error <= REPRODUCED:
            raise UnsupportedError(
                f"call {j}: the rows found differ by {error:.1e} from what the scheduler returned; its coefficients "
                "are too badly conditioned to be carried in few tensors."
            )
