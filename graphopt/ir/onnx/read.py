"""The table of readers: which ONNX op is which op of the vocabulary."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.ir.onnx import (
    read_convolution,
    read_elementwise,
    read_indexing,
    read_layout,
    read_linear,
    read_normalization,
    read_recurrent,
)
from graphopt.ir.onnx.reading import AnyReader

READERS: Mapping[tuple[str, str], AnyReader] = {
    **read_elementwise.READERS,
    **read_linear.READERS,
    **read_convolution.READERS,
    **read_normalization.READERS,
    **read_layout.READERS,
    **read_indexing.READERS,
    **read_recurrent.READERS,
}
"""Reader by (domain, op type); the domain of ONNX itself is empty."""
