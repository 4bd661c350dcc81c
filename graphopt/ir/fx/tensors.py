"""Between torch tensors and the numpy arrays, dtype names and TensorRefs of the core."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch

from graphopt.ir.graph import Dim, Literal, TensorType
from graphopt.ir.weights import Array, TensorRef, numpy_dtype, read_only

DTYPE_NAMES: dict[torch.dtype, str] = {
    dtype: str(dtype).removeprefix("torch.")
    for dtype in (
        torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16,
        torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64,
        torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2,
        torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    )
}  # fmt: skip
"""numpy's (and ml_dtypes') name of a torch dtype. A dtype that numpy cannot name has no type in the core."""
TORCH_DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}

_BITS = {1: torch.uint8, 2: torch.int16}
"""Carrier dtypes for the floats that numpy lacks, by item size."""


def to_numpy(tensor: torch.Tensor) -> Array:
    """`tensor` as an array of the same dtype and values; shares memory where torch and numpy can."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = DTYPE_NAMES[tensor.dtype]
    target = numpy_dtype(name)
    if target.type.__module__ == "numpy":
        return cast(Array, tensor.numpy())
    return cast(Array, tensor.contiguous().view(_BITS[target.itemsize]).numpy().view(target))


def to_torch(array: Array) -> torch.Tensor:
    """A tensor of the same dtype and values that shares no memory with `array`."""
    copied = np.array(array, order="C", copy=True)
    dtype = TORCH_DTYPES[array.dtype.name]
    if array.dtype.type.__module__ == "numpy":
        return torch.from_numpy(copied)
    carrier = {1: np.uint8, 2: np.int16}[array.dtype.itemsize]
    return torch.from_numpy(copied.view(carrier)).view(dtype)


class TorchRef(TensorRef):
    """A weight that stays in its torch storage. Tied weights, which share the storage, have one identity."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.dtype = DTYPE_NAMES[tensor.dtype]
        self.shape = tuple(tensor.shape)

    def numpy(self) -> Array:
        return read_only(to_numpy(self.tensor))

    @property
    def identity(self) -> object:
        return tensor_identity(self.tensor)

    @property
    def trainable(self) -> bool:
        return bool(self.tensor.requires_grad)


def tensor_identity(tensor: torch.Tensor) -> object:
    """Equal for tensors that are the same elements of the same storage in the same order."""
    if tensor.numel() == 0 or tensor.layout is not torch.strided:
        return id(tensor)
    address = (tensor.untyped_storage()._cdata, tensor.storage_offset()) if tensor.is_meta else tensor.data_ptr()
    return (tensor.device, address, tensor.dtype, tuple(tensor.shape), tensor.stride())


def stored_bytes(tensor: torch.Tensor) -> int:
    """The bytes of the numbers that are stored; of a sparse tensor without those of their places."""
    return int(tensor.nbytes) if tensor.layout is torch.strided else int(tensor._nnz()) * tensor.element_size()


def storage_pointer(tensor: torch.Tensor) -> int:
    """The address of the storage behind `tensor`; 0 if it has none."""
    return int(tensor.untyped_storage().data_ptr()) if tensor.layout is torch.strided else 0


class LiteralRef(TensorRef):
    """A number inside a node, as a 0-d tensor."""

    def __init__(self, literal: Literal) -> None:
        self.literal = literal
        self.dtype = literal.dtype
        self.shape = ()

    def numpy(self) -> Array:
        return np.asarray(self.literal.value).astype(numpy_dtype(self.dtype))

    @property
    def identity(self) -> object:
        return self.literal


def dim_of(size: Any) -> Dim:
    """A size as the core has it. A SymInt becomes the text of its expression: to compare it adds guards."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression) if expression.is_Integer else str(expression)


def dims_of(sizes: Sequence[Any]) -> tuple[Dim, ...]:
    return tuple([size if type(size) is int else dim_of(size) for size in sizes])


def type_of(value: Any) -> TensorType | None:
    """The type of what `meta["val"]` holds; None for what is no tensor or has a dtype unknown to numpy."""
    if getattr(value, "layout", None) is not torch.strided:  # It is no tensor, or a sparse one.
        return None
    try:
        return _static_type(value.dtype, value.shape)
    except TypeError:  # A symbolic size has no hash.
        name = DTYPE_NAMES.get(value.dtype)
        return None if name is None else _tensor_type(name, dims_of(value.shape))


@lru_cache(maxsize=4096)
def _static_type(dtype: torch.dtype, shape: torch.Size) -> TensorType | None:
    name = DTYPE_NAMES.get(dtype)
    return None if name is None else _tensor_type(name, dims_of(shape))


@lru_cache(maxsize=4096)
def _tensor_type(dtype: str, shape: tuple[Dim, ...]) -> TensorType:
    """Equal types are one object, found in less time than it takes to make another."""
    return TensorType(dtype, shape)
