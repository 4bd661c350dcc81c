"""The tables of the torch storage: importing this module fills `READERS` and `WRITERS`."""

from graphopt.ir.fx import (
    read_convolution,
    read_elementwise,
    read_indexing,
    read_layout,
    read_linear,
    read_recurrent,
    read_reduction,
    write_convolution,
    write_elementwise,
    write_layout,
    write_linear,
    write_recurrent,
)
from graphopt.ir.fx.read import KEYS, READERS, Target
from graphopt.ir.fx.write import WRITERS

__all__ = [
    "KEYS",
    "READERS",
    "Target",
    "WRITERS",
    "read_convolution",
    "read_elementwise",
    "read_indexing",
    "read_layout",
    "read_linear",
    "read_recurrent",
    "read_reduction",
    "write_convolution",
    "write_elementwise",
    "write_layout",
    "write_linear",
    "write_recurrent",
]
