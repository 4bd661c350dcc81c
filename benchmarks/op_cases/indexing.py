"""Cases: gathers, scatters and quantisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.op_cases.runtimes import Case, Node, Sampler, int64

sample = Sampler(7)
X = sample.normal(4, 5, 3)
NUMBERS = sample.integers(-9, 9, 4, 5, 3)


def elements(axis: int, *shape: int, negative: bool = True) -> np.ndarray:
    size = X.shape[axis]
    return sample.integers(-size if negative else 0, size, *shape)


def distinct(axis: int, *shape: int) -> np.ndarray:
    """Indices that hit no element twice along `axis`."""
    order = np.argsort(sample.normal(*shape), axis=axis)
    return order.astype(np.int64)


GATHERS = [
    Case("gather", [X, indices], {"axis": axis}, Node("Gather", {"axis": axis}))
    for axis in (0, 1, 2)
    for indices in (
        elements(axis, 2, 4),
        elements(axis, 0),
        np.asarray(1),
        elements(axis, 3).astype(np.int32),
    )
]
GATHERS += [
    Case("gather", [X, elements(0, 2, 4)], {"axis": 0}, torch=lambda x, i: x[i]),
    Case("gather", [NUMBERS, elements(1, 6)], {"axis": 1}, torch=lambda x, i: x[:, i]),
    Case("gather", [X, elements(0, 7, negative=False)], {"axis": 0}, torch=lambda x, i: x.index_select(0, i)),
    *[
        Case(
            "gather_elements",
            [x, elements(axis, *shape)],
            {"axis": axis},
            Node("GatherElements", {"axis": axis}),
        )
        for x in (X, NUMBERS)
        for axis, shape in ((0, (6, 5, 3)), (1, (4, 2, 3)), (2, (4, 5, 7)))
    ],
    Case(
        "gather_elements",
        [X, elements(1, 2, 7, 1, negative=False)],
        {"axis": 1},
        torch=lambda x, i: torch.gather(x, 1, i),
    ),
    Case("gather_nd", [X, elements(2, 6, 2)], {}, Node("GatherND")),
    Case(
        "gather_nd", [X, elements(2, 2, 6, 3)], {}, Node("GatherND"), lambda x, i: x[tuple(i.movedim(-1, 0))]
    ),
    Case("gather_nd", [X, elements(2, 4, 2, 1)], {"batch_dims": 1}, Node("GatherND", {"batch_dims": 1})),
    Case("gather_nd", [X, elements(2, 4, 5, 1)], {"batch_dims": 2}, Node("GatherND", {"batch_dims": 2})),
]


def scatter_elements(x: np.ndarray, indices: np.ndarray, axis: int, reduction: str | None) -> Case:
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    updates = sample.normal(*indices.shape).astype(x.dtype)

    def in_torch(x: Any, i: Any, u: Any) -> Any:
        return x.scatter(axis, i, u) if reduction is None else x.scatter_reduce(axis, i, u, names[reduction])

    return Case(
        "scatter_elements",
        [x, indices, updates],
        {"axis": axis, "reduction": reduction},
        Node("ScatterElements", {"axis": axis, "reduction": reduction or "none"}),
        in_torch if indices.min(initial=0) >= 0 else None,
    )


def scatter_nd(indices: np.ndarray, reduction: str | None) -> Case:
    updates = sample.normal(*indices.shape[:-1], *X.shape[indices.shape[-1] :])
    accumulate = reduction == "add"
    return Case(
        "scatter_nd",
        [X, indices, updates],
        {"reduction": reduction},
        Node("ScatterND", {"reduction": reduction or "none"}),
        (lambda x, i, u: x.index_put(tuple(i.movedim(-1, 0)), u, accumulate))
        if reduction in (None, "add")
        else None,
    )


SCATTERS = [
    *[scatter_elements(X, elements(1, 3, 7, 2), 1, r) for r in ("add", "mul", "max", "min")],
    *[scatter_elements(X, elements(0, 6, 5, 3, negative=False), 0, r) for r in ("add", "mul", "max", "min")],
    scatter_elements(X, distinct(1, 4, 3, 3), 1, None),
    scatter_elements(X, distinct(2, 2, 5, 3) - 3, 2, None),
    scatter_elements(NUMBERS, distinct(0, 4, 5, 3), 0, None),
    scatter_elements(X, elements(1, 0, 5, 3), 1, None),
    scatter_nd(np.asarray([[3], [-3]]), None),
    scatter_nd(np.asarray([[0, 1], [2, -1], [3, 3]]), None),
    scatter_nd(np.asarray([[[0, 1], [2, -1], [1, 1]], [[3, 3], [2, 2], [0, 0]]]), None),
    *[scatter_nd(np.asarray([[0, 1], [2, -1], [0, 1]]), r) for r in ("add", "mul", "max", "min")],
]
ONE_HOTS = [
    Case(
        "one_hot",
        [int64(0, 3, -1, 4, -5, 7), np.asarray(depth), values],
        {"axis": axis},
        Node("OneHot", {"axis": axis}),
    )
    for axis in (0, 1)
    for depth, values in ((4, np.asarray([0.5, 2.0], np.float32)), ([5], int64(0, 1)))
]
ONE_HOTS += [
    Case(
        "one_hot",
        [sample.integers(0, 4, 2, 3), np.asarray(4), int64(0, 1)],
        {"axis": axis},
        Node("OneHot", {"axis": axis}),
        (lambda i, depth, values: torch.nn.functional.one_hot(i, 4)) if axis == 2 else None,
    )
    for axis in (0, 1, 2)
]

BYTES = sample.integers(0, 256, 2, 3, 4, dtype="uint8")
SIGNED = sample.integers(-128, 128, 2, 3, 4, dtype="int8")
SCALES, ZEROS = sample.positive(3) / 10, sample.integers(0, 256, 3, dtype="uint8")
FLOATS = sample.normal(2, 3, 4) * 20
HALVES = np.asarray([-1.5, -0.5, 0.5, 1.5, 2.5, 1e9, -1e9], np.float32)
QUANTIZATIONS = [
    Case("dequantize", [BYTES, np.float32(0.1), np.uint8(120)], {}, Node("DequantizeLinear")),
    Case("dequantize", [SIGNED, np.float32(0.1)], {}, Node("DequantizeLinear")),
    Case("dequantize", [SIGNED, SCALES[:1], SIGNED[0, 0, :1]], {}, Node("DequantizeLinear")),
    Case("dequantize", [BYTES, SCALES, ZEROS], {"axis": 1}, Node("DequantizeLinear", {"axis": 1})),
    Case("dequantize", [BYTES[:, :, :3], SCALES], {"axis": 2}, Node("DequantizeLinear", {"axis": 2})),
    Case("quantize", [FLOATS, np.float32(0.25), np.uint8(120)], {"dtype": "uint8"}, Node("QuantizeLinear")),
    Case("quantize", [FLOATS, np.float32(0.25), np.int8(-3)], {"dtype": "int8"}, Node("QuantizeLinear")),
    Case(
        "quantize",
        [FLOATS, SCALES, ZEROS],
        {"axis": 1, "dtype": "uint8"},
        Node("QuantizeLinear", {"axis": 1}),
    ),
    Case("quantize", [HALVES, np.float32(1)], {"dtype": "uint8"}, Node("QuantizeLinear")),
    Case("quantize", [HALVES, np.float32(1), np.int8(1)], {"dtype": "int8"}, Node("QuantizeLinear")),
]
CASES = GATHERS + SCATTERS + ONE_HOTS + QUANTIZATIONS
