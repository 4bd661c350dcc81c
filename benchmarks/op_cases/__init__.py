"""Calls of ops with their corner cases, shared by tests and benchmarks.

Of every op of the vocabulary, with what onnxruntime and torch say for it, a file for each family; and of the torch ops
that are read (`torch_ops`).
"""

from benchmarks.op_cases import (
    elementwise,
    indexing,
    layout,
    linear,
    normalization,
    recurrent,
    reduction,
    spatial,
)

FAMILIES = (elementwise, indexing, layout, linear, normalization, recurrent, reduction, spatial)
CASES = [case for family in FAMILIES for case in family.CASES]
"""Of the vocabulary."""
