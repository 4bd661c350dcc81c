"""Masks as attention ops take them: [batch or 1, heads or 1, queries, keys], added to the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graphopt.ir.graph import Dim
from graphopt.passes.attention_pattern import Attention, mask_of
from graphopt.rewrite.rule import Match

if TYPE_CHECKING:
    from graphopt.rewrite.builder import Builder


@dataclass(frozen=True)
class Bias:
    """How a mask becomes a bias [batch or 1, heads or 1, queries, keys]."""

    missing: int
    """Axes to be put in front."""
    expand: tuple[int, ...] | None
    """Shape to be broadcast with, if it has one query for all."""


def plan_bias(m: Match, found: Attention) -> Bias | None:
    """How the mask is made a bias for attention over [batch, heads, positions, features]."""
    return _plan(m, found, *found.q.batch)


def plan_bias_for_batch(m: Match, found: Attention) -> Bias | None:
    """How the mask is made a bias where all of the batch is one axis: it must be the same for all of it."""
    mask = mask_of(m)
    if mask is not None and m.rank(mask) == found.rank == 3 and (m.type(mask).shape or ())[0] != 1:
        m.fail("the mask is not the same for the whole batch")
    return _plan(m, found, 1, 1)


def _plan(m: Match, found: Attention, batch: Dim, heads: Dim) -> Bias | None:
    value = mask_of(m)
    if value is None:
        return None
    type_ = m.type(value)
    if type_.dtype != m.type(found.q.value).dtype:
        m.fail("the mask is {}, the scores are {}", type_.dtype, m.type(found.q.value).dtype)
    shape = type_.shape
    if shape is None or len(shape) > 4:
        m.fail("the shape of the mask is {}", type_)
    missing = 4 - len(shape)
    wanted = (batch, heads, found.q.shape[-2], found.k.shape[-2])
    given = (1,) * missing + shape
    for name, have, want in zip(("batch", "heads", "queries", "keys"), given, wanted, strict=True):
        if have is None or (have != want and (have != 1 or name == "keys")):
            m.fail("the mask has size {} for {} {}", have, want, name)
    if given[2] == wanted[2]:
        return Bias(missing, None)
    if not isinstance(wanted[2], int):
        m.fail("the mask has size 1 for {} queries, which have to be a number to broadcast it", wanted[2])
    return Bias(missing, (1, 1, wanted[2], 1))


def write_bias(m: Match, build: Builder, plan: Bias | None) -> Any:
    if plan is None:
        return None
    value = m.mask
    for _ in range(plan.missing):
        value = build.unsqueeze(value, axes=(0,))
    return value if plan.expand is None else build.expand(value, shape=plan.expand)
