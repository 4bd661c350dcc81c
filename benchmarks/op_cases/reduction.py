"""Cases: reductions, running sums and selections."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.op_cases.runtimes import Case, Node, Sampler, int64

sample = Sampler(5)
X = sample.normal(3, 4, 5)
TIES = sample.integers(-2, 3, 3, 4, 5)
WITH_NAN = X.copy()
WITH_NAN[1, 2, 3] = np.nan

REDUCERS: list[tuple[str, str, Any]] = [
    ("reduce_sum", "ReduceSum", torch.sum),
    ("reduce_mean", "ReduceMean", torch.mean),
    ("reduce_max", "ReduceMax", torch.amax),
    ("reduce_min", "ReduceMin", torch.amin),
    ("reduce_l2", "ReduceL2", torch.linalg.vector_norm),
]


def reduction(op: str, onnx: str, x: np.ndarray, axes: tuple[int, ...], keepdims: bool, torch: Any) -> Case:
    return Case(
        op,
        [x],
        {"axes": axes, "keepdims": keepdims},
        onnx=Node(onnx, {"keepdims": int(keepdims)}, extra=[int64(*axes)]),
        torch=torch and (lambda x: torch(x, dim=axes, keepdim=keepdims)),
        bound=32,
    )


REDUCTIONS = [
    reduction(op, onnx, X, axes, keepdims, function)
    for op, onnx, function in REDUCERS
    for axes in ((0,), (1, 2), (0, 1, 2))
    for keepdims in (False, True)
]
REDUCTIONS += [
    reduction("reduce_prod", "ReduceProd", X, (1,), False, None),
    reduction("reduce_prod", "ReduceProd", TIES, (0, 2), True, None),
    Case("reduce_prod", [X], {"axes": (2,), "keepdims": False}, torch=lambda x: torch.prod(x, 2)),
    reduction("reduce_sum", "ReduceSum", TIES.astype(np.int32), (1,), False, None),
    reduction("reduce_sum", "ReduceSum", TIES, (1,), True, torch.sum),
    reduction("reduce_mean", "ReduceMean", TIES, (1,), True, None),
    reduction("reduce_max", "ReduceMax", TIES, (1, 2), True, torch.amax),
    reduction("reduce_min", "ReduceMin", TIES, (1, 2), True, torch.amin),
    reduction("reduce_sum", "ReduceSum", np.zeros((3, 0), np.float32), (1,), False, torch.sum),
    Case(
        "reduce_sum",
        [TIES > 0],
        {"axes": (1,), "keepdims": False},
        torch=lambda x: torch.sum(x, dim=1),
    ),
    Case("reduce_max", [WITH_NAN], {"axes": (2,), "keepdims": True}, torch=lambda x: x.amax(2, keepdim=True)),
    Case("reduce_min", [WITH_NAN], {"axes": (2,), "keepdims": True}, torch=lambda x: x.amin(2, keepdim=True)),
]


def arg(op: str, onnx: str, function: Any, x: np.ndarray, axis: int, keepdims: bool, torch: bool) -> Case:
    return Case(
        op,
        [x],
        {"axis": axis, "keepdims": keepdims},
        onnx=Node(onnx, {"axis": axis, "keepdims": int(keepdims)}),
        torch=(lambda x: function(x, axis, keepdims)) if torch else None,
    )


ARGS = [
    arg(op, onnx, function, x, axis, keepdims, exact)
    for op, onnx, function in (("arg_max", "ArgMax", torch.argmax), ("arg_min", "ArgMin", torch.argmin))
    for x, exact in ((X, True), (TIES, False))  # torch does not say which of equal elements it takes
    for axis, keepdims in ((0, True), (2, False))
]


def cumsum(x: np.ndarray, axis: int, exclusive: bool, reverse: bool) -> Case:
    plain = not exclusive and not reverse
    return Case(
        "cumsum",
        [x],
        {"axis": axis, "exclusive": exclusive, "reverse": reverse},
        onnx=Node("CumSum", {"exclusive": int(exclusive), "reverse": int(reverse)}, extra=[np.int64(axis)]),
        torch=(lambda x: torch.cumsum(x, axis)) if plain else None,
    )


CUMSUMS = [
    cumsum(x, axis, exclusive, reverse)
    for x in (X, TIES)
    for axis in (0, 2)
    for exclusive in (False, True)
    for reverse in (False, True)
]
CUMSUMS += [cumsum(TIES.astype(np.int32), 1, True, False)]


def topk(x: np.ndarray, k: int, axis: int, largest: bool, torch: Any = None) -> Case:
    return Case(
        "topk",
        [x],
        {"k": k, "axis": axis, "largest": largest},
        onnx=Node("TopK", {"axis": axis, "largest": int(largest)}, extra=[int64(k)], outputs=2),
        torch=torch and (lambda x: torch(x, k, axis, largest)),
    )


TOPKS = [
    *[topk(X, k, axis, largest, torch.topk) for k, axis in ((1, 0), (3, 2), (4, 1)) for largest in (True, False)],
    topk(TIES, 3, 2, True),
    topk(TIES, 3, 2, False),
    topk(X, 0, 1, True),
]
SORTS = [
    Case(
        "sort",
        [x],
        {"axis": axis, "descending": down},
        torch=partial(torch.sort, dim=axis, descending=down, stable=True),
    )
    for x in (X, TIES)
    for axis, down in ((0, False), (2, False), (1, True))
]
HISTOGRAMS = [
    Case("histogram", [x.ravel()], {"bins": bins, "low": low, "high": high},
         torch=partial(torch.histc, bins=bins, min=low, max=high))
    for x in (X, TIES.astype(np.float32))
    for bins, low, high in ((4, 0.0, 3.0), (7, -1.0, 0.5))
]  # fmt: skip
COUNTED = [Case("cumsum", [TIES], {"axis": 1, "dtype": "int32"}, torch=lambda x: torch.cumsum(x, 1, dtype=torch.int32))]
CASES = REDUCTIONS + ARGS + CUMSUMS + TOPKS + SORTS + HISTOGRAMS + COUNTED
