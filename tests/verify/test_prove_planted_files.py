"""Pairs of files that differ in one attribute, operand or version of an op: on the runtime they differ, and no pair is
proved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from test_prove_models import decided, model, n

FLOAT, INT64, UINT8, INT8, BOOL = 1, 7, 2, 3, 9
ROW = np.asarray([[-2.5, 0.5, 3.0, 0.5]], np.float32)
SQUARE = np.asarray([[1.0, -2.0, 4.0], [0.5, 3.0, -1.0], [2.0, 5.0, -3.0]], np.float32)
IMAGE = (np.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6) % 7 - 3).astype(np.float32)


@dataclass(frozen=True)
class Planted:
    before: tuple[onnx.NodeProto, ...]
    after: tuple[onnx.NodeProto, ...]
    feeds: dict[str, Any]
    weights: dict[str, Any]
    opsets: tuple[int, int]

    @property
    def models(self) -> list[onnx.ModelProto]:
        types = {k: (onnx.helper.np_dtype_to_tensor_dtype(v.dtype), list(v.shape)) for k,
      v in self.feeds.items()}
        return [
            model(nodes, inputs=types, weights=self.weights, opset=opset)
            for nodes, opset in zip((self.before, self.after), self.opsets, strict=True)
        ]


WRONG: dict[str, Planted] = {}


def wrong(
    name: str, before: Any, after: Any, x: Any = ROW, opsets: tuple[int, int] = (18, 18), **more: Any
) -> None:
    """`more` are inputs if they are arrays that start with "in_", else weights."""
    sides = [tuple(s) if isinstance(s, list) else (s,) for s in (before, after)]
    feeds = {"x": x, **{k[3:]: v for k, v in more.items() if k.startswith("in_")}}
    weights = {k: np.asarray(v) for k, v in more.items() if not k.startswith("in_")}
    WRONG[name] = Planted(sides[0], sides[1], feeds, weights, opsets)


def unlike(
    name: str, op: str, operands: str, these: dict[str, Any], those: dict[str, Any], x: Any = ROW, **more: Any
) -> None:
    """The same op with other attributes."""
    wrong(name, n(op, operands, "y", **these), n(op, operands, "y", **those), x, **more)


# ---- axes and sums ---------------------------------------------------------------------------------------------------

unlike("a mean over no axes is one over all", "ReduceMean", "x none", {"noop_with_empty_axes": 0},
       {"noop_with_empty_axes": 1}, SQUARE, none=np.zeros(0, np.int64))  # fmt: skip
wrong("axes that are not kept", [n("ReduceSum", "x one", "s"), n("Sub", "x s", "y")],
      [n("ReduceSum", "x one", "s", keepdims=0), n("Sub", "x s", "y")], SQUARE, one=[1])  # fmt: skip
wrong("softmax of version 12 flattens", n("Softmax", "x", "y", axis=1), n("Softmax", "x", "y", axis=1),
      IMAGE, (12, 13))  # fmt: skip
unlike("softmax along another axis", "Softmax", "x", {"axis": 0}, {"axis": 1}, SQUARE)
unlike("hardmax along another axis", "Hardmax", "x", {"axis": 0}, {"axis": 1}, SQUARE)
unlike("norm of another order", "LpNormalization", "x", {"p": 1}, {"p": 2}, SQUARE)
unlike("a running sum without its own", "CumSum", "x zero", {}, {"exclusive": 1}, zero=np.asarray(1))
unlike("a running sum from the end", "CumSum", "x zero", {}, {"reverse": 1}, zero=np.asarray(1))
unlike("a trace", "Einsum", "x", {"equation": "ii->i"}, {"equation": "ij->i"}, SQUARE)
unlike("a sum of squares", "Einsum", "x x", {"equation": "ij,ij->i"}, {"equation": "ij,ji->i"}, SQUARE)

# ---- places ----------------------------------------------------------------------------------------------------------

wrong("an index from the end", n("Gather", "x last", "y", axis=1), n("Gather", "x first", "y", axis=1),
      last=[-1], first=[0])  # fmt: skip
unlike("elements of rows", "GatherElements", "x where", {"axis": 0}, {"axis": 1}, SQUARE, where=[[0, 1,
       2]] * 3)  # fmt: skip
unlike("indices by batches", "GatherND", "x where", {"batch_dims": 1}, {"batch_dims": 0}, np.stack([SQUARE,
       SQUARE + 1, SQUARE * 2]),
       where=[[[0, 1]], [[2, 2]], [[1, 0]]])  # fmt: skip
wrong("the last of two writes", n("ScatterND", "x w ab", "y"), n("ScatterND", "x w ba", "y"), SQUARE,
      w=[[0], [0]],
      ab=np.asarray([[1.0] * 3, [2.0] * 3]), ba=np.asarray([[2.0] * 3, [1.0] * 3]))  # fmt: skip
unlike("added for written", "ScatterElements", "x w u", {"axis": 1}, {"axis": 1, "reduction": "add"}, w=[[1]],
       u=np.asarray([[4.0]]))  # fmt: skip
unlike("the greatest for written", "ScatterElements", "x w u", {"axis": 1}, {"axis": 1,
       "reduction": "max"}, w=[[2]],
       u=np.asarray([[1.0]]))  # fmt: skip
wrong("the least for the greatest", n("TopK", "x two", "y i"), n("TopK", "x two", "y i", largest=0), two=[2])
wrong("places of the first of equals", [n("ArgMax", "x", "i", axis=1), n("Cast", "i", "y", to=FLOAT)],
      [n("ArgMax", "x", "i", axis=1, select_last_index=1), n("Cast", "i", "y", to=FLOAT)],
      np.asarray([[1.0, 2.0, 2.0]], np.float32))  # fmt: skip
wrong("which are not zero, row by row", [n("NonZero", "x", "i"), n("Cast", "i", "y", to=FLOAT)],
      [n("NonZero", "x", "i"), n("Transpose", "i", "t"), n("Reshape", "t s", "u"), n("Cast", "u", "y",
      to=FLOAT)], SQUARE, s=[2, 9])  # fmt: skip
unlike("the upper for the lower triangle", "Trilu", "x", {"upper": 1}, {"upper": 0}, SQUARE)
unlike("one hot along another axis", "OneHot", "x depth values", {"axis": 0}, {"axis": 1}, np.asarray([0,
       2, 1, 1]),
       depth=np.asarray(4), values=np.asarray([0.0, 1.0]))  # fmt: skip
wrong("a range of other steps", [n("Range", "a b c", "r"), n("Mul", "x r", "y")], [n("Range", "a b d",
      "r"), n("Gather", "r z", "s"), n("Mul", "x s", "y")],
      a=np.asarray(0.0), b=np.asarray(4.0), c=np.asarray(1.0), d=np.asarray(2.0), z=[0, 1, 1, 0])  # fmt: skip
unlike("a reversed sequence of the other axes", "ReverseSequence", "x l", {"time_axis": 0, "batch_axis": 1},
       {"time_axis": 1, "batch_axis": 0}, SQUARE, l=[2, 3, 1])  # fmt: skip
wrong("a condition by columns", n("Where", "c x z", "y"), [n("Transpose", "c", "t"), n("Where", "t x z",
      "y")], SQUARE,
      in_c=np.asarray([[True], [False], [True]]), z=np.asarray(0.0))  # fmt: skip

# ---- whole numbers ---------------------------------------------------------------------------------------------------

SIGNED = np.asarray([-7, 7, -128, 100], np.int8)
UNSIGNED = np.asarray([200, 100, 7, 255], np.uint8)
unlike("the sign of a remainder", "Mod", "x three", {}, {"fmod": 1}, np.asarray([-7, 7, -4, 5]), three=[3])
wrong("a quotient times its divisor", [n("Div", "x two", "q"), n("Mul", "q two", "y")], n("Identity", "x",
      "y"), np.asarray([7, 6]), two=[2])  # fmt: skip
wrong("bytes that wrap around", [n("Add", "x x", "s"), n("Cast", "s", "y", to=FLOAT)],
      [n("Cast", "x", "f", to=FLOAT), n("Add", "f f", "y")], UNSIGNED)  # fmt: skip
wrong("the least signed byte", [n("Neg", "x", "s"), n("Cast", "s", "y", to=FLOAT)],
      [n("Cast", "x", "f", to=FLOAT), n("Neg", "f", "y")], SIGNED)  # fmt: skip
wrong("a cast through bytes", [n("Cast", "x", "b", to=UINT8), n("Cast", "b", "y", to=INT64)], n("Identity",
      "x", "y"), np.asarray([300, 5]))  # fmt: skip
unlike("shifted the other way", "BitShift", "x one", {"direction": "LEFT"}, {"direction": "RIGHT"},
       UNSIGNED, one=np.asarray([1], np.uint8))  # fmt: skip
wrong("bits of both", n("BitwiseAnd", "x m", "y"), n("BitwiseOr", "x m", "y"), UNSIGNED, m=np.asarray([15],
      np.uint8))  # fmt: skip
wrong("bits that differ", n("BitwiseXor", "x m", "y"), n("Sub", "x m", "y"), UNSIGNED, m=np.asarray([15],
      np.uint8))  # fmt: skip
wrong("not of bits", n("BitwiseNot", "x", "y"), n("Neg", "x", "y"), SIGNED)
wrong("a fraction cut off", [n("Cast", "x", "i", to=INT64), n("Cast", "i", "y", to=FLOAT)], n("Floor", "x",
      "y"))  # fmt: skip
wrong("halves to even", n("Round", "x", "y"), [n("Add", "x h", "s"), n("Floor", "s", "y")], h=np.asarray(0.5))
wrong("a zero point left out", n("DequantizeLinear", "x s z", "y"), n("DequantizeLinear", "x s", "y"),
      UNSIGNED, s=np.asarray(0.5),
      z=np.asarray(3, np.uint8))  # fmt: skip
wrong("quantised and back", [n("QuantizeLinear", "x s", "q"), n("DequantizeLinear", "q s", "y")],
      n("Identity", "x", "y"), s=np.asarray(0.5))  # fmt: skip

# ---- functions -------------------------------------------------------------------------------------------------------

wrong("the ends of a clip swapped", n("Clip", "x a b", "y"), n("Clip", "x b a", "y"), a=np.asarray(-1.0),
      b=np.asarray(1.0))  # fmt: skip
unlike("another gelu", "Gelu", "x", {}, {"approximate": "tanh"}, opsets=(20, 20))
unlike("another celu", "Celu", "x", {"alpha": 1.0}, {"alpha": 2.0})
unlike("another threshold", "ThresholdedRelu", "x", {"alpha": 1.0}, {"alpha": 0.25})
unlike("shrunk without its bias", "Shrink", "x", {"lambd": 0.4, "bias": 0.0}, {"lambd": 0.4, "bias": 0.25})
wrong("inverse root of a square", [n("Mul", "x x", "s"), n("Sqrt", "s", "r"), n("Reciprocal", "r", "y")],
      n("Reciprocal", "x", "y"))  # fmt: skip
unlike("local responses of other sizes", "LRN", "x", {"size": 3}, {"size": 1}, IMAGE)
LAYER = {"axis": -1, "epsilon": 0.25}
wrong("epsilon outside of the root", n("LayerNormalization", "x g", "y", **LAYER),
      [n("ReduceMean", "x one", "m"), n("Sub", "x m", "d"), n("Mul", "d d", "q"), n("ReduceMean", "q one",
      "v"),
       n("Sqrt", "v", "r"), n("Add", "r e", "s"), n("Div", "d s", "t"), n("Mul", "t g", "y")],
      one=[1], e=np.asarray(0.25), g=np.asarray([1.0, 2.0, 0.5, 3.0]))  # fmt: skip

# ---- images ----------------------------------------------------------------------------------------------------------

wrong("repeated for mirrored borders", n("Pad", "x p", "y", mode="reflect"), n("Pad", "x p", "y",
      mode="edge"), p=[0, 2, 0, 1])  # fmt: skip
wrong("borders of another value", n("Pad", "x p", "y"), n("Pad", "x p v", "y"), p=[0, 2, 0, 1],
      v=np.asarray(1.0))  # fmt: skip
POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
unlike("averages that count the padding", "AveragePool", "x", {**POOL, "pads": [1, 1, 1, 1]},
       {**POOL, "pads": [1, 1, 1, 1], "count_include_pad": 1}, IMAGE)  # fmt: skip
unlike("padding on the other side", "MaxPool", "x", {**POOL, "auto_pad": "SAME_UPPER"}, {**POOL,
       "auto_pad": "SAME_LOWER"}, IMAGE)  # fmt: skip
unlike("channels the other way", "DepthToSpace", "x", {"blocksize": 2}, {"blocksize": 2, "mode": "CRD"},
       np.concatenate([IMAGE, IMAGE + 0.5], 1))  # fmt: skip
RESIZE = {"mode": "linear"}
unlike("pixels from their corners", "Resize", "x r s", RESIZE, {**RESIZE,
       "coordinate_transformation_mode": "asymmetric"},
       IMAGE, r=np.zeros(0), s=[1.0, 1.0, 2.0, 2.0])  # fmt: skip
unlike("nearest for linear", "Resize", "x r s", {"mode": "nearest"}, {"mode": "linear"}, IMAGE,
       r=np.zeros(0), s=[1.0, 1.0, 2.0, 2.0])  # fmt: skip
unlike("nearest rounded up", "Resize", "x r s", {"mode": "nearest", "nearest_mode": "floor"},
       {"mode": "nearest", "nearest_mode": "ceil"},
       IMAGE, r=np.zeros(0), s=[1.0, 1.0, 1.5, 1.5])  # fmt: skip
GRID = np.linspace(-1.2, 1.2, 2 * 3 * 3 * 2).reshape(2, 3, 3, 2)
unlike("corners of a grid", "GridSample", "x g", {}, {"align_corners": 1}, IMAGE, g=GRID)
unlike("beyond the border of a grid", "GridSample", "x g", {}, {"padding_mode": "border"}, IMAGE, g=GRID)


def run(proto: onnx.ModelProto, feeds: dict[str, Any]) -> Any:
    return onnxruntime.InferenceSession(proto.SerializeToString()).run(["y"], feeds)[0]


def test_there_are_many_kinds():
    assert len(WRONG) >= 50


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_fault_of_a_file_is_not_proved(name: str):
    planted = WRONG[name]
    models = planted.models
    one, other = (run(m, planted.feeds) for m in models)
    assert one.shape != other.shape or not np.allclose(one, other, rtol=1e-4, atol=1e-5), (one, other)
    integers = {k: v for k, v in planted.feeds.items() if v.dtype != np.float32}
    for seed in range(2):
        for pair in (models, models[::-1]):
            found = decided(*pair, seed=seed, examples=integers)
            assert not found.proof.holds and found.level != "executed", found
