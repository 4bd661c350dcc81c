"""Writers of gather, scatter, one-hot and quantisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graphopt.ir.graph import CannotEmit
from graphopt.ir.onnx.drafting import Draft, Fields, Slot, Writer
from graphopt.ir.onnx.dtypes import DATA_TYPES


def gather(d: Draft, f: Fields) -> list[Slot]:
    return d.node("Gather", [d.operand(0, "x"), d.operand(1, "indices")], {"axis": int(f["axis"])})


def gather_elements(d: Draft, f: Fields) -> list[Slot]:
    operands = [d.operand(0, "x"), d.operand(1, "indices")]
    return d.node("GatherElements", operands, {"axis": int(f["axis"])}, since=11)


def gather_nd(d: Draft, f: Fields) -> list[Slot]:
    batch = int(f["batch_dims"])
    since = 12 if batch else 11
    return d.node(
        "GatherND", [d.operand(0, "x"), d.operand(1, "indices")], {"batch_dims": batch or None}, since=since
    )


def _reduction(f: Fields) -> tuple[str | None, int]:
    """The attribute and the opset that knows it."""
    reduction = f["reduction"]
    return reduction, {None: 11, "add": 16, "mul": 16}.get(reduction, 18)


def scatter_elements(d: Draft, f: Fields) -> list[Slot]:
    reduction, since = _reduction(f)
    operands = [d.operand(0, "x"), d.operand(1, "indices"), d.operand(2, "updates")]
    return d.node("ScatterElements", operands, {"axis": int(f["axis"]), "reduction": reduction}, since=since)


def scatter_nd(d: Draft, f: Fields) -> list[Slot]:
    reduction, since = _reduction(f)
    operands = [d.operand(0, "x"), d.operand(1, "indices"), d.operand(2, "updates")]
    return d.node("ScatterND", operands, {"reduction": reduction}, since=since)


def one_hot(d: Draft, f: Fields) -> list[Slot]:
    operands = [d.operand(0, "indices"), d.operand(1, "depth"), d.operand(2, "values")]
    return d.node("OneHot", operands, {"axis": int(f["axis"])}, since=11)


def dequantize(d: Draft, f: Fields) -> list[Slot]:
    operands = [d.operand(0, "x"), d.operand(1, "scale"), d.optional(2)]
    return d.node("DequantizeLinear", operands, _axis(d, f, operands[1]), since=10)


def quantize(d: Draft, f: Fields) -> list[Slot]:
    """The type of the result is that of the zero point, without one uint8 or, from opset 21, an attribute."""
    operands, dtype = [d.operand(0, "x"), d.operand(1, "scale"), d.optional(2)], f["dtype"]
    attributes = _axis(d, f, operands[1])
    zero = operands[2]
    if zero is not None:
        if d.dtype(zero, "zero") != dtype:
            raise CannotEmit("the type of the zero point is not that of the result")
    elif dtype != "uint8":
        if d.opset < 21 or dtype not in DATA_TYPES:
            raise CannotEmit(f"QuantizeLinear to {dtype} without a zero point needs opset 21")
        attributes["output_dtype"] = int(DATA_TYPES[dtype])
    return d.node("QuantizeLinear", operands, attributes, since=10)


def _axis(d: Draft, f: Fields, scale: Slot | None) -> dict[str, Any]:
    axis = f["axis"]
    if axis is None:
        return {}
    if d.opset < 13:
        raise CannotEmit("quantisation along an axis needs opset 13")
    if scale is None or d.rank(scale, "scale") != 1:
        raise CannotEmit("quantisation along an axis needs a 1-D scale")
    return {"axis": int(axis)}


WRITERS: Mapping[str, Writer] = {
    "gather": gather,
    "gather_elements": gather_elements,
    "gather_nd": gather_nd,
    "scatter_elements": scatter_elements,
    "scatter_nd": scatter_nd,
    "one_hot": one_hot,
    "dequantize": dequantize,
    "quantize": quantize,
}
