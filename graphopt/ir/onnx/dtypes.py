"""Element types and shapes between onnx_ir and the protocol: dtype names, TensorType of a value."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.ir.graph import Dim, TensorType

_D = ir.DataType
NAMES: Mapping[int, str] = {
    _D.FLOAT: "float32",
    _D.DOUBLE: "float64",
    _D.FLOAT16: "float16",
    _D.BFLOAT16: "bfloat16",
    _D.INT8: "int8",
    _D.INT16: "int16",
    _D.INT32: "int32",
    _D.INT64: "int64",
    _D.UINT8: "uint8",
    _D.UINT16: "uint16",
    _D.UINT32: "uint32",
    _D.UINT64: "uint64",
    _D.BOOL: "bool",
    _D.COMPLEX64: "complex64",
    _D.COMPLEX128: "complex128",
    _D.FLOAT8E4M3FN: "float8_e4m3fn",
    _D.FLOAT8E4M3FNUZ: "float8_e4m3fnuz",
    _D.FLOAT8E5M2: "float8_e5m2",
    _D.FLOAT8E5M2FNUZ: "float8_e5m2fnuz",
    _D.FLOAT8E8M0: "float8_e8m0fnu",
    _D.FLOAT4E2M1: "float4_e2m1fn",
    _D.INT4: "int4",
    _D.UINT4: "uint4",
    _D.INT2: "int2",
    _D.UINT2: "uint2",
}
"""onnx_ir's data type to our dtype name. Strings and undefined types have none."""
DATA_TYPES: Mapping[str, ir.DataType] = {name: _D(number) for number, name in NAMES.items()}


def dims(shape: ir.Shape) -> tuple[Dim, ...]:
    """Sizes and names of `shape`; a negative size, which some exporters write, says nothing."""
    return tuple([_dim(d) for d in shape.dims])


def _dim(d: int | ir.SymbolicDim) -> Dim:
    if isinstance(d, int):
        return d if d >= 0 else None
    return d.value or None


def declared_type(value: ir.Value) -> TensorType | None:
    """The type that the model itself declares for `value`; a tensor at hand counts as a declaration."""
    tensor = value.const_value if value.is_initializer() and not value.is_graph_input() else None
    if tensor is not None:
        name = NAMES.get(tensor.dtype)
        return None if name is None else TensorType(name, dims(ir.Shape(tensor.shape.numpy())))
    if not isinstance(value.type, ir.TensorType):
        return None
    name = NAMES.get(value.type.dtype)
    if name is None:
        return None
    return TensorType(name, None if value.shape is None else dims(value.shape))


def merged(a: TensorType | None, b: TensorType | None) -> TensorType | None:
    """What is known from either. Where the two contradict each other nothing is known; of two names `a`'s is
    kept."""
    if a is None or b is None:
        return a or b
    if a == b:
        return a
    if a.dtype != b.dtype:
        return None
    if a.shape is None or b.shape is None:
        return TensorType(a.dtype, a.shape if b.shape is None else b.shape)
    if len(a.shape) != len(b.shape):
        return TensorType(a.dtype, None)
    return TensorType(a.dtype, tuple(_merged_dim(x, y) for x, y in zip(a.shape, b.shape, strict=True)))


def _merged_dim(a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return a if a == b else None
    if isinstance(a, int) or b is None:
        return a
    if isinstance(b, int) or a is None:
        return b
    return a


def agrees(a: TensorType, b: TensorType) -> bool:
    """Whether `a` and `b` can describe the same tensor."""
    if a.dtype != b.dtype:
        return False
    if a.shape is None or b.shape is None:
        return True
    return len(a.shape) == len(b.shape) and all(
        x == y or not (isinstance(x, int) and isinstance(y, int))
        for x, y in zip(a.shape, b.shape, strict=True)
    )


def set_type(value: ir.Value, type_: TensorType) -> None:
    """Declare `type_` on `value`, so that it is serialised with the model."""
    value.type = ir.TensorType(DATA_TYPES[type_.dtype])
    value.shape = None if type_.shape is None else ir.Shape(type_.shape)
