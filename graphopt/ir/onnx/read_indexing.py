"""Readers of gather, scatter, one-hot and quantisation."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.ir.graph import Value
from graphopt.ir.onnx.dtypes import NAMES
from graphopt.ir.onnx.reading import CannotRead, Reader, Reading, Said


def gather(n: Reading) -> Said:
    x, indices = n.operand(0), n.operand(1)
    return (x, indices), {"axis": n.axis(n.attr_int("axis", 0), x)}


def gather_nd(n: Reading) -> Said:
    return (n.operand(0), n.operand(1)), {"batch_dims": n.attr_int("batch_dims", 0)}


def _reduction(n: Reading) -> str | None:
    reduction = n.attr_string("reduction", "none")
    if reduction not in ("none", "add", "mul", "max", "min"):
        raise CannotRead(f"reduction is {reduction!r}")
    return None if reduction == "none" else reduction


def scatter_elements(n: Reading) -> Said:
    x = n.operand(0)
    return (x, n.operand(1), n.operand(2)), {
        "axis": n.axis(n.attr_int("axis", 0), x),
        "reduction": _reduction(n),
    }


def scatter_nd(n: Reading) -> Said:
    return (n.operand(0), n.operand(1), n.operand(2)), {"reduction": _reduction(n)}


def one_hot(n: Reading) -> Said:
    indices, axis = n.operand(0), n.attr_int("axis", -1)
    if axis < 0:
        axis += n.rank(indices) + 1
    return (indices, n.operand(1), n.operand(2)), {"axis": axis}


# ---- quantisation
# -------------------------------------------------------------------------------------------


def dequantize(n: Reading) -> Said:
    x, scale, zero = n.operand(0), n.operand(1), n.optional(2)
    _one_block(n)
    wanted = n.attr_int("output_dtype", 0)
    if wanted and NAMES.get(wanted) != n.dtype(scale):
        raise CannotRead("output_dtype differs from the type of the scale")
    return (x, scale, zero), {"axis": _quantization_axis(n, x, scale)}


def quantize(n: Reading) -> Said:
    x, scale, zero = n.operand(0), n.operand(1), n.optional(2)
    _one_block(n)
    n.only("precision", 0)
    wanted = n.attr_int("output_dtype", 0)
    dtype = n.dtype(zero) if zero is not None else NAMES.get(wanted or 2)
    if dtype is None or (wanted and NAMES.get(wanted) != dtype):
        raise CannotRead("the output type is not understood")
    if dtype.startswith("float8"):
        n.only("saturate", 1)
    n.only("saturate", 1, 0)
    return (x, scale, zero), {"axis": _quantization_axis(n, x, scale), "dtype": dtype}


def _one_block(n: Reading) -> None:
    n.only("block_size", 0)


def _quantization_axis(n: Reading, x: Value, scale: Value) -> int | None:
    """None if there is one scale for the whole tensor."""
    axis, shape = n.attr_int("axis", 1), n.shape(scale)
    if len(shape) == 0 or shape == (1,):
        return None
    if len(shape) != 1:
        raise CannotRead("one scale per block")
    return n.axis(axis, x)


READERS: Mapping[tuple[str, str], Reader] = {
    ("", "Gather"): Reader("gather", gather),
    ("", "GatherElements"): Reader("gather_elements", gather),
    ("", "GatherND"): Reader("gather_nd", gather_nd),
    ("", "ScatterElements"): Reader("scatter_elements", scatter_elements),
    ("", "Scatter"): Reader("scatter_elements", scatter_elements),
    ("", "ScatterND"): Reader("scatter_nd", scatter_nd),
    ("", "OneHot"): Reader("one_hot", one_hot),
    ("", "DequantizeLinear"): Reader("dequantize", dequantize),
    ("", "QuantizeLinear"): Reader("quantize", quantize),
    ("com.microsoft", "DequantizeLinear"): Reader("dequantize", dequantize),
    ("com.microsoft", "QuantizeLinear"): Reader("quantize", quantize),
}
