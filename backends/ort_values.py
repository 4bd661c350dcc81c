"""Arrays in and out of onnxruntime, the dtypes that numpy lacks (bfloat16, float8 ...) included."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.onnx.dtypes import DATA_TYPES, NAMES
from graphopt.ir.weights import Array, numpy_dtype


def is_native(dtype: np.dtype[Any]) -> bool:
    """Whether numpy itself has `dtype`; the others come from ml_dtypes, and onnxruntime takes them as bytes
    only."""
    return dtype.type.__module__ == "numpy"


def run_arrays(
    session: Any, feeds: Mapping[str, Any], outputs: Sequence[str], *, bound: bool, native: bool
) -> list[Any]:
    """The outputs of `session` for `feeds`, in the order of `outputs`.

    Args:
        bound: run through an IO binding.
        native: whether numpy has the dtypes of all inputs and outputs; otherwise values go through OrtValues.
    """
    if native and not bound:
        return list(session.run(list(outputs), dict(feeds)))
    values = {name: to_ort(value) for name, value in feeds.items()}
    if not bound:
        return [from_ort(value) for value in session.run_with_ort_values(list(outputs), values)]
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name in outputs:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    return [from_ort(value) for value in binding.get_outputs()]


def to_ort(array: Array) -> Any:
    """`array` as an OrtValue on the CPU, sharing memory where the array is contiguous."""
    from onnxruntime import OrtValue

    array = np.asarray(array, order="C")
    if is_native(array.dtype):
        return OrtValue.ortvalue_from_numpy(array)
    return OrtValue.ortvalue_from_numpy_with_onnx_type(array, DATA_TYPES[array.dtype.name])


def from_ort(value: Any) -> Any:
    """The array in a CPU OrtValue; sequences come as onnxruntime gives them."""
    if not value.is_tensor():
        return value.numpy()
    element = ir.DataType(value.element_type())
    if element not in NAMES or is_native(numpy_dtype(NAMES[element])):
        return value.numpy()
    data = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(bytearray(data), numpy_dtype(NAMES[element])).reshape(value.shape())
