"""What computes two equal halves from operands of two equal halves: one rule per op of the vocabulary.

A *twin* is a value whose first axis holds the same numbers twice, concat(h, h). What is not known to be a twin, and to
have a rule here, is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

from graphopt.ir.ops import ELEMENTWISE

Sizes: TypeAlias = tuple[int, ...]


class Kind(Enum):
    """What is known of a value's first axis."""

    WHOLE = "whole"
    """Nothing in it comes from either half: a weight, a number, what is computed from these."""
    TWIN = "twin"
    OTHER = "other"
    """It may differ between the halves."""


@dataclass(frozen=True)
class Site:
    """A call that reads at least one twin and nothing that differs between the halves; or that makes one of nothing."""

    op: str
    kinds: tuple[Kind | None, ...]
    """Of the operands; None for one that is absent."""
    shapes: tuple[Sizes, ...]
    """Of the operands; () for one that is absent."""
    fields: Mapping[str, Any]
    results: tuple[Sizes, ...]

    @property
    def rank(self) -> int:
        """Of the first result."""
        return len(self.results[0])

    def twin(self, index: int) -> bool:
        return index < len(self.kinds) and self.kinds[index] is Kind.TWIN

    def only_first(self) -> bool:
        """Whether the first operand is the only twin."""
        return self.twin(0) and not any(kind is Kind.TWIN for kind in self.kinds[1:])


Fields: TypeAlias = Mapping[str, Any]
"""The fields of the call on halves, as far as they are others."""
Rule: TypeAlias = Callable[[Site], Fields | None]
"""None: its results may be no twins."""


def half_call(site: Site) -> Fields | None:
    """How the fields of a call change that is given halves and returns halves; None if it cannot be."""
    if any(not shape or shape[0] % 2 for shape in site.results):
        return None
    rule = _RULES.get(site.op)
    return None if rule is None else rule(site)


def _elementwise(site: Site) -> Fields | None:
    """The axis of the halves is the first one of the result, and what is no twin is the same all along it."""
    for kind, shape in zip(site.kinds, site.shapes, strict=True):
        first = shape[0] if len(shape) == site.rank else 1
        if (kind is Kind.TWIN and len(shape) != site.rank) or (kind is Kind.WHOLE and first != 1):
            return None
    return {}


def _each_element(site: Site) -> Fields | None:
    """Ops that treat every element of the first operand's first axis by itself."""
    return {} if site.only_first() else None


def _along(name: str) -> Rule:
    """Ops that work along an axis, which must be another one; negative in the norms."""

    def rule(site: Site) -> Fields | None:
        axis = site.fields[name]
        axes = axis if isinstance(axis, tuple) else (axis,)
        inner = all(a % len(site.shapes[0]) for a in axes)
        return {} if site.only_first() and inner else None

    return rule


def _repeated(site: Site) -> Fields | None:
    return {} if site.only_first() and site.fields["repeats"][0] == 1 else None


def _unsqueeze(site: Site) -> Fields | None:
    return {} if all(a % site.rank for a in site.fields["axes"]) else None


def _joined(site: Site) -> Fields | None:
    """Along another axis, and of twins alone."""
    inner = site.fields["axis"] % site.rank
    return {} if inner and all(kind is Kind.TWIN for kind in site.kinds) else None


def _transpose(site: Site) -> Fields | None:
    return {} if site.fields["perm"][0] == 0 else None


def _pad(site: Site) -> Fields | None:
    pads = site.fields["pads"]
    return {} if site.only_first() and not pads[0] and not pads[len(pads) // 2] else None


def _resize(site: Site) -> Fields | None:
    sizes, scales = site.fields["sizes"], site.fields["scales"]
    if sizes is not None:
        same = len(sizes) == site.rank and sizes[0] == site.shapes[0][0]
        return {"sizes": (sizes[0] // 2, *sizes[1:])} if same else None
    return {} if scales is not None and len(scales) == site.rank and scales[0] == 1 else None


def _to_shape(site: Site) -> Fields | None:
    """Sizes are said anew. The first half of the elements in memory is the first half along the first axis, before a
    reshape and after it."""
    first, *others = site.results[0]
    return {"shape": (first // 2, *others)} if site.twin(0) else None


def _expand(site: Site) -> Fields | None:
    """One element along the first axis, or none, becomes as many as are wanted: halves of them, then."""
    first, *others = site.results[0]
    own = site.shapes[0][0] if len(site.shapes[0]) == site.rank else 1
    fits = own == first if site.twin(0) else own == 1
    return {"shape": (first // 2, *others)} if fits else None


def _matmul(site: Site) -> Fields | None:
    """Rows of a matrix, or matrices of a stack; what is multiplied is the same for all of them, or stacked alike."""
    a, b = site.shapes
    if site.twin(0) and site.twin(1):
        return {} if len(a) == len(b) == site.rank >= 3 else None
    one, other = (a, b) if site.twin(0) else (b, a)
    stacked = len(one) == site.rank and (len(one) >= 3 or site.twin(0))
    shared = len(other) < max(3, site.rank) or other[0] == 1
    return {} if stacked and shared else None


def _attention(site: Site) -> Fields | None:
    """Queries, keys and values of the same samples; a mask that is the same for all, or theirs."""
    if not all(site.twin(i) and len(site.shapes[i]) == site.rank >= 3 for i in range(3)):
        return None
    full = 4 if site.op == "multi_head_attention" else site.rank  # of a mask for each sample
    for kind, shape in zip(site.kinds[3:], site.shapes[3:], strict=True):
        first = shape[0] if len(shape) == full else 1
        if (kind is Kind.TWIN) != (first != 1):
            return None
    return {}


_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(
        ("conv", "conv_transpose", "fused_conv", "max_pool", "avg_pool", "batch_norm", "instance_norm", "group_norm",
         "depth_to_space", "space_to_depth"), _each_element),
    **dict.fromkeys(("layer_norm", "rms_norm", "softmax", "log_softmax", "split", "gather", "cumsum",
                     "repeat_interleave"), _along("axis")),
    **dict.fromkeys(("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_l2", "slice", "squeeze", "roll"),
                    _along("axes")),
    "linear": lambda site: {} if site.only_first() and site.rank >= 2 else None,
    "matmul": _matmul,
    "attention": _attention,
    "multi_head_attention": _attention,
    "reshape": _to_shape,
    "expand": _expand,
    "unsqueeze": _unsqueeze,
    "transpose": _transpose,
    "concat": _joined,
    "stack": _joined,
    "pad": _pad,
    "resize": _resize,
    "tile": _repeated,
}  # fmt: skip

