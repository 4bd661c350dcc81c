"""Weight expressions evaluated block by block have the bits that they have as a whole."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from graphopt.ir import rowwise
from graphopt.ir.ops.domain import Float64
from graphopt.ir.rowwise import evaluated, is_rowwise
from graphopt.ir.scratch import float64_leaf
from graphopt.ir.weights import ArrayRef, Deferred, TensorRef

RNG = np.random.default_rng(0)


def ref(*shape: int, dtype: Any = np.float32) -> ArrayRef:
    return ArrayRef(RNG.standard_normal(shape).astype(dtype))


def conv_fold(dtype: Any = np.float32) -> TensorRef:
    scale = ref(11, dtype=dtype) / (ref(11, dtype=dtype) * ref(11, dtype=dtype)).sqrt()
    return ref(11, 3, 2, 2, dtype=dtype) * scale.reshape(-1, 1, 1, 1)


EXPRESSIONS: dict[str, tuple[TensorRef, bool]] = {
    "conv": (conv_fold(), True),
    "conv bfloat16": (conv_fold(ml_dtypes.bfloat16), True),
    "columns": (ref(13, 5) * ref(5), True),
    "twice": (conv_fold() * ref(11).reshape(11, 1, 1, 1), True),
    "broadcast rows": (ref(1, 5) + ref(13, 5), True),
    "integers": (ArrayRef(np.arange(26).reshape(13, 2)) * ArrayRef(np.arange(2)), True),
    "grouped": ((ref(6, 4, 3).reshape(2, 3, 4, 3) * ref(2, 1, 4, 1)).reshape(6, 4, 3), False),
    "product": (ref(13, 5) @ ref(5, 4), False),
    "transposed": (ref(13, 5).transpose(1, 0) * ref(13), False),
    "two large": (ref(8, 9) * ref(9), False),
    "scalar": (ref() * ref(), False),
    "empty": (ref(0, 3) * ref(3), False),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_blocks_of_rows_give_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch):
    expression, splits = EXPRESSIONS[name]
    assert isinstance(expression, Deferred)
    with np.errstate(all="ignore"):
        exact = np.asarray(expression.evaluate(float64_leaf, Float64()))
    monkeypatch.setattr(rowwise, "BLOCK", 8)
    assert is_rowwise(expression) is splits
    whole = exact.astype(expression.numpy().dtype).reshape(expression.shape)
    assert expression.numpy().tobytes() == whole.tobytes()
    if exact.dtype == np.float64:
        assert evaluated(expression, np.dtype(np.float64)).tobytes() == exact.tobytes()


def test_no_float64_copy_of_the_whole_is_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rowwise, "BLOCK", 64)
    asked: list[tuple[int, int]] = []

    class Watched(ArrayRef):
        def rows(self, start: int, stop: int) -> Any:
            asked.append((start, stop))
            return super().rows(start, stop)

    weight = Watched(np.ones((20, 16), np.float32))
    assert (weight * ref(16)).numpy().shape == (20, 16)
    assert asked == [(i, i + 4) for i in range(0, 20, 4)]
