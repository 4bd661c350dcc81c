"""Mutants of the arithmetic by which a rewrite makes new weights: a fold with one step of it got wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.mutant_families import other_op
from graphopt.ir.weights import Deferred, Number, TensorRef

Change = tuple[TensorRef, str]


def altered(data: Deferred, rng: random.Random) -> Change | None:
    """`data` with a change at one of its steps, and which; None if the step drawn has no such change."""
    step = rng.choice(list(_steps(data)))
    try:
        made = rng.choice((_larger, _swapped, _bypassed, _other, _reordered))(step, rng)
        return None if made is None else (_with(data, step, made[0]), f"{step.op} of its expression: {made[1]}")
    except Exception:  # shapes that do not go together: there is no such weight
        return None


def _steps(data: TensorRef) -> Iterator[Deferred]:
    if isinstance(data, Deferred):
        yield data
        for operand in data.operands:
            yield from _steps(operand)


def _with(data: TensorRef, old: Deferred, new: TensorRef) -> TensorRef:
    if data is old:
        return new
    if not isinstance(data, Deferred):
        return data
    return Deferred(data.op, tuple(_with(o, old, new) for o in data.operands), data.fields)


def _larger(step: Deferred, rng: random.Random) -> Change:
    """One operand is one percent larger."""
    i = rng.randrange(len(step.operands))
    operands = list(step.operands)
    operands[i] = operands[i] * 1.01
    return Deferred(step.op, tuple(operands), step.fields), f"operand {i} * 1.01"


def _swapped(step: Deferred, rng: random.Random) -> Change | None:
    if len(step.operands) < 2:
        return None
    i, j = rng.sample(range(len(step.operands)), 2)
    operands = list(step.operands)
    operands[i], operands[j] = operands[j], operands[i]
    return Deferred(step.op, tuple(operands), step.fields), f"operands {i} and {j} swapped"


def _bypassed(step: Deferred, rng: random.Random) -> Change | None:
    operand = rng.choice(step.operands)
    return None if isinstance(operand, Number) else (operand, "bypassed")


def _other(step: Deferred, rng: random.Random) -> Change | None:
    op = other_op(step.op, rng)
    return None if op is None else (Deferred(op, step.operands, step.fields), op)


def _reordered(step: Deferred, rng: random.Random) -> Change | None:
    """Axes or sizes in another order."""
    name = next((k for k, v in step.fields.items() if isinstance(v, tuple) and len(set(v)) > 1), None)
    if name is None:
        return None
    values = list(step.fields[name])
    rng.shuffle(values)
    return Deferred(step.op, step.operands, {**step.fields, name: tuple(values)}), f"{name} {tuple(values)}"
