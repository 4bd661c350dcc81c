"""Cases: ops that move elements or make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F

from benchmarks.op_cases.runtimes import Case, Node, Sampler, int64

sample = Sampler(6)
X = sample.normal(2, 3, 4)
INTEGERS = sample.integers(-9, 9, 2, 3, 4)
FAR = np.iinfo(np.int64).max


def reshape(x: np.ndarray, shape: tuple[int, ...], *, zero_copies: bool = False) -> Case:
    node = Node("Reshape", {"allowzero": 0 if zero_copies else 1}, inputs=[x, int64(*shape)])
    if zero_copies:
        return Case("reshape", [x, int64(*shape)], onnx=node)
    return Case("reshape", [x], {"shape": shape}, onnx=node, torch=lambda x: x.reshape(shape))


def reshape_by_operand(x: np.ndarray, shape: tuple[int, ...]) -> Case:
    operands = [x, int64(*shape)]
    return Case("reshape", operands, {"allow_zero": True}, onnx=Node("Reshape", {"allowzero": 1}, inputs=operands))


EMPTY = np.zeros((0, 6), np.float32)
RESHAPES = [
    reshape_by_operand(EMPTY, (2, 0, 5)),
    reshape(X, (6, 4)),
    reshape(INTEGERS, (2, -1)),
    reshape(X, (24,)),
    reshape(X[:1, 0, 0], ()),
    reshape(EMPTY, (2, 0, 5)),
    reshape(X, (0, -1), zero_copies=True),
    reshape(X, (2, 0, 2, 2), zero_copies=True),
    reshape(EMPTY, (0, 3, 2), zero_copies=True),
]


def slices(
    x: np.ndarray, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int], steps: Sequence[int]
) -> Case:
    fields = {"starts": tuple(starts), "ends": tuple(ends), "axes": tuple(axes), "steps": tuple(steps)}
    extra = [int64(*v) for v in (starts, ends, axes, steps)]

    def in_torch(x: Any) -> Any:
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
        return x

    return Case(
        "slice", [x], fields, onnx=Node("Slice", extra=extra), torch=in_torch if min(steps) > 0 else None
    )


SLICES = [
    slices(X, [1], [3], [2], [1]),
    slices(X, [-3, 0], [FAR, -1], [2, 1], [1, 2]),
    slices(X, [-100], [100], [1], [1]),
    slices(X, [3], [1], [2], [1]),
    slices(X, [-1], [-FAR], [2], [-1]),
    slices(X, [FAR, 2], [0, -FAR], [2, 1], [-2, -1]),
    slices(INTEGERS, [0, 1, 1], [1, 3, 4], [0, 1, 2], [1, 1, 2]),
]


def pad(
    x: np.ndarray, pads: Sequence[int], mode: str = "constant", value: Any = None, torch: Any = None
) -> Case:
    return Case(
        "pad",
        [x, value],
        {"pads": tuple(pads), "mode": mode},
        onnx=Node("Pad", {"mode": mode}, inputs=[x, int64(*pads), value]),
        torch=torch and (lambda x, v: torch(x)),
    )


PADS = [
    pad(X, [0, 0, 1, 0, 0, 2], torch=lambda x: F.pad(x, (1, 2))),
    pad(
        X, [0, 1, 2, 1, 0, 3], value=np.float32(1.5), torch=lambda x: F.pad(x, (2, 3, 1, 0, 0, 1), value=1.5)
    ),
    pad(X, [0, -1, 2, 0, 1, -3], torch=lambda x: F.pad(x, (2, -3, -1, 1))),
    pad(INTEGERS, [0, 0, 1, 0, 0, 2], value=np.int64(-7)),
    pad(X, [0, 0, 2, 0, 0, 3], "reflect", torch=lambda x: F.pad(x, (2, 3), "reflect")),
    pad(X, [0, 2, 1, 0, 1, 3], "reflect", torch=lambda x: F.pad(x[None], (1, 3, 2, 1), "reflect")[0]),
    pad(X, [0, 3, 2, 0, 1, 5], "edge", torch=lambda x: F.pad(x[None], (2, 5, 3, 1), "replicate")[0]),
    pad(X, [0, -1, 2, 0, 1, -1], "edge", torch=lambda x: F.pad(x[None], (2, -1, -1, 1), "replicate")[0]),
]

MOVES = [
    *[
        Case("transpose", [X], {"perm": p}, Node("Transpose", {"perm": p}), lambda x, p=p: x.permute(p))
        for p in ((2, 0, 1), (1, 2, 0), (0, 1, 2))
    ],
    Case("expand", [X[:, :1]], {"shape": (3, 1)}, Node("Expand", extra=[int64(3, 1)])),
    Case(
        "expand",
        [X[0]],
        {"shape": (5, 3, 4)},
        Node("Expand", extra=[int64(5, 3, 4)]),
        lambda x: x.expand(5, 3, 4),
    ),
    Case("expand", [X[0], int64(2, 1, 4)], onnx=Node("Expand")),
    Case("expand", [X[:, :1], int64(2, 0, 4)], onnx=Node("Expand")),
    *[
        Case("unsqueeze", [X], {"axes": axes}, Node("Unsqueeze", extra=[int64(*axes)]))
        for axes in ((0, 3), (1,), (3, 4))
    ],
    Case("unsqueeze", [X], {"axes": (2,)}, torch=lambda x: x.unsqueeze(2)),
    *[
        Case(
            "squeeze",
            [X.reshape(1, 6, 1, 4)],
            {"axes": axes},
            Node("Squeeze", extra=[int64(*axes)]),
            lambda x, axes=axes: x.squeeze(axes),
        )
        for axes in ((0, 2), (2,))
    ],
    *[
        Case(
            "concat",
            [x, x, x[:, :0] if axis == 1 else x],
            {"axis": axis},
            Node("Concat", {"axis": axis}),
            lambda *xs, axis=axis: torch.cat(xs, axis),
        )
        for x, axis in ((X, 1), (INTEGERS, 1), (X, 0), (X, 2))
    ],
    *[
        Case(
            "split",
            [X],
            {"sizes": sizes, "axis": axis},
            Node("Split", {"axis": axis}, extra=[int64(*sizes)], outputs=len(sizes)),
            lambda x, sizes=sizes, axis=axis: x.split(sizes, axis),
        )
        for sizes, axis in (((1, 0, 3), 2), ((2, 1), 1), ((2,), 0))
    ],
    *[
        Case("tile", [X], {"repeats": r}, Node("Tile", extra=[int64(*r)]), lambda x, r=r: x.repeat(r))
        for r in ((1, 2, 3), (1, 0, 3))
    ],
    *[
        Case("stack", [X, -X, X], {"axis": axis}, torch=lambda *xs, axis=axis: torch.stack(xs, axis))
        for axis in (0, 2, 3)
    ],
    *[
        Case(
            "repeat_interleave",
            [X],
            {"repeats": repeats, "axis": axis},
            torch=lambda x, repeats=repeats, axis=axis: x.repeat_interleave(repeats, axis),
        )
        for repeats, axis in ((1, 0), (3, 1), (2, 2))
    ],
    *[
        Case(
            "roll",
            [X],
            {"shifts": shifts, "axes": axes},
            torch=lambda x, shifts=shifts, axes=axes: x.roll(shifts, axes),
        )
        for shifts, axes in (((1,), (2,)), ((-1, 5), (1, 2)), ((0,), (0,)))
    ],
    Case("shape", [X], {}, Node("Shape")),
    Case("shape", [X], {"start": 1}, Node("Shape", {"start": 1})),
    Case("shape", [X], {"start": 1, "end": 2}, Node("Shape", {"start": 1, "end": 2})),
    *[
        Case(
            "trilu",
            [x],
            {"k": k, "upper": upper},
            Node("Trilu", {"upper": int(upper)}, [np.int64(k)]),
            lambda x, k=k, cut=torch.triu if upper else torch.tril: cut(x, k),
        )
        for x in (X, INTEGERS)
        for k in (-1, 0, 2)
        for upper in (True, False)
    ],
]


def tensor_of(value: Any, dtype: str) -> dict[str, Any]:
    return {"value": onnx.numpy_helper.from_array(np.asarray([value], dtype))}


def ranges(start: Any, stop: Any, step: Any) -> Case:
    return Case(
        "range",
        [np.asarray(start), np.asarray(stop), np.asarray(step)],
        onnx=Node("Range"),
        torch=lambda *t: torch.arange(*[v.item() for v in t], dtype=t[0].dtype),
    )


MADE = [
    *[
        Case(
            "fill",
            [int64(2, 3)] if by_operand else [None],
            {"value": value, "dtype": dtype, "shape": None if by_operand else (2, 3)},
            Node("ConstantOfShape", tensor_of(value, dtype), inputs=[int64(2, 3)]),
            lambda *_, v=value, t=dtype: torch.full((2, 3), v, dtype=getattr(torch, t)),
        )
        for value, dtype, by_operand in ((1.5, "float32", True), (-3, "int64", False), (True, "bool", False))
    ],
    ranges(np.int64(1), np.int64(10), np.int64(4)),
    ranges(np.int64(10), np.int64(1), np.int64(-3)),
    ranges(np.int32(0), np.int32(6), np.int32(2)),
    ranges(np.float32(0.5), np.float32(3.0), np.float32(0.5)),
    ranges(np.float32(0.0), np.float32(1.0), np.float32(0.3)),
    Case("range", [np.int64(5), np.int64(1), np.int64(1)], onnx=Node("Range")),
    Case("range", [np.float32(0.0), np.float32(0.3), np.float32(0.1)], onnx=Node("Range")),
]
CASES = RESHAPES + SLICES + PADS + MOVES + MADE
