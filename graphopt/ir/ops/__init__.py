"""The vocabulary: what graphs are read into, matched in and verified by. Importing this package fills
`OPS`."""

from graphopt.ir.ops import (
    convolution,
    elementwise,
    experts,
    indexing,
    layout,
    linear,
    normalization,
    quantization,
    recurrent,
    reduction,
)
from graphopt.ir.ops.spec import OPS, REQUIRED, Fill, Op, op

ELEMENTWISE = frozenset(name for name, entry in OPS.items() if entry.meaning.__module__ == elementwise.__name__)
"""Ops in which an element of the result depends on one place of the operands."""

__all__ = [
    "ELEMENTWISE",
    "OPS",
    "REQUIRED",
    "Fill",
    "Op",
    "convolution",
    "elementwise",
    "experts",
    "indexing",
    "layout",
    "linear",
    "normalization",
    "op",
    "quantization",
    "recurrent",
    "reduction",
]
