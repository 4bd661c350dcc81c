"""The vocabulary: what graphs are read into, matched in and verified by. Importing this package fills
`OPS`."""

from graphopt.ir.ops import (
    convolution,
    elementwise,
    indexing,
    layout,
    linear,
    normalization,
    quantization,
    recurrent,
    reduction,
)
from graphopt.ir.ops.spec import OPS, REQUIRED, Fill, Op, op

__all__ = [
    "OPS",
    "REQUIRED",
    "Fill",
    "Op",
    "convolution",
    "elementwise",
    "indexing",
    "layout",
    "linear",
    "normalization",
    "op",
    "quantization",
    "recurrent",
    "reduction",
]
