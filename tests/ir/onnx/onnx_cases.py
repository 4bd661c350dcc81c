"""One small ONNX node per reader, with what it has to be read as. Shared by the reader and the writer
tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RNG = np.random.default_rng(0)
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Const:
    """An operand that is an initialiser."""

    array: np.ndarray


@dataclass(frozen=True)
class Case:
    op_type: str
    inputs: Sequence[Any]
    """Arrays (graph inputs), Consts (initialisers) or None (absent)."""
    op: str
    fields: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 18
    operands: Sequence[int | str | None] | None = None
    """Input number per operand, "literal", or None if absent; by default all inputs in order."""
    outputs: int = 1
    domain: str = ""
    runs: bool = True
    """Whether onnxruntime has a kernel."""
    refuses: str = ""
    """Part of the reason for which the writer cannot say it at this opset."""
    other_kernel: bool = False
    """Whether the node is written as another op, whose kernel may round differently."""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.op_type}-{self.opset}{'-' if self.name else ''}{self.name}"

    def model(self) -> onnx.ModelProto:
        names, infos, initializers = [], [], []
        for i, operand in enumerate(self.inputs):
            if operand is None:
                names.append("")
                continue
            names.append(f"in{i}")
            if isinstance(operand, Const):
                initializers.append(numpy_helper.from_array(operand.array, f"in{i}"))
            else:
                elem = helper.np_dtype_to_tensor_dtype(operand.dtype)
                infos.append(helper.make_tensor_value_info(f"in{i}", elem, operand.shape))
        outputs = [f"out{i}" for i in range(self.outputs)]
        node = helper.make_node(self.op_type, names, outputs, "node", domain=self.domain, **self.attributes)
        graph = helper.make_graph(
            [node], "g", infos, [onnx.ValueInfoProto(name=o) for o in outputs], initializers
        )
        imports = [helper.make_opsetid("", self.opset)]
        if self.domain:
            imports.append(helper.make_opsetid(self.domain, 1))
        model = helper.make_model(graph, opset_imports=imports, ir_version=10)
        inferred = onnx.shape_inference.infer_shapes(model)
        model.graph.ClearField("output")
        model.graph.output.extend(inferred.graph.output)
        for i, output in enumerate(model.graph.output):
            if not output.type.tensor_type.elem_type:
                rank = self.inputs[0].ndim
                output.CopyFrom(helper.make_tensor_value_info(outputs[i], TensorProto.FLOAT, [None] * rank))
        return model

    def feeds(self) -> dict[str, np.ndarray]:
        return {f"in{i}": a for i, a in enumerate(self.inputs) if isinstance(a, np.ndarray)}


def real(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return (RNG.random(shape) + 0.5).astype(np.float32)


def flags(*shape: int) -> np.ndarray:
    return RNG.random(shape) > 0.5


def c(values: Any, dtype: Any = np.int64) -> Const:
    return Const(np.asarray(values, dtype))


def weight(*shape: int) -> Const:
    return Const(real(*shape))


X, IMAGE = real(2, 3, 4), real(1, 4, 8, 8)
EPS = float(np.float32(1e-5))
UNARY = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Exp": "exp", "Neg": "neg", "Abs": "abs",
    "Floor": "floor",
    "Ceil": "ceil", "Round": "round", "Erf": "erf", "Sin": "sin", "Cos": "cos", "Sign": "sign",
    "Mish": "mish",
    "IsNaN": "is_nan", "Identity": "identity", "Softsign": "softsign", "HardSwish": "hard_swish",
}  # fmt: skip
BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Equal": "equal", "Less": "less", "LessOrEqual": "less_equal",
    "Greater": "greater", "GreaterOrEqual": "greater_equal", "PRelu": "prelu", "Max": "maximum",
    "Min": "minimum",
    "Sum": "add", "Pow": "pow",
}  # fmt: skip
WINDOW = {"stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1)}
RESIZE = {"mode": "linear", "coordinates": "half_pixel", "nearest": None, "sizes": None, "scales": None}
ATTENTION = {"scale": 0.5, "causal": False, "gqa": False}

ELEMENTWISE = [
    *(Case(name, [X], op) for name, op in UNARY.items()),
    *(Case(name, [positive(2, 3)], op) for name, op in {"Log": "log", "Sqrt": "sqrt",
         "Reciprocal": "reciprocal"}.items()),
    *(Case(name, [positive(2, 3), positive(3)], op) for name, op in BINARY.items()),
    Case("Relu", [X], "relu", opset=6, runs=False),
    Case("Not", [flags(4)], "logical_not"),
    *(Case(n, [flags(4), flags(4)], f"logical_{n.lower()}") for n in ("And", "Or", "Xor")),
    Case("Div", [X, X], "div", {"rounding": None}),
    Case("Div", [np.arange(6) - 3, np.full(6, 2)], "div", {"rounding": "trunc"}, name="integer"),
    Case("Mod", [X, X], "mod", {"fmod": True}, {"fmod": 1}),
    Case("Mod", [np.arange(6) - 3, np.full(6, 2)], "mod", {"fmod": False}, name="integer"),
    Case("LeakyRelu", [X], "leaky_relu", {"slope": 0.01}),
    Case("LeakyRelu", [X], "leaky_relu", {"slope": 0.25}, {"alpha": 0.25}, name="slope"),
    Case("Elu", [X], "elu", {"alpha": 0.5}, {"alpha": 0.5}),
    Case("Softplus", [X], "softplus", {"beta": 1.0, "threshold": None}),
    Case("HardSigmoid", [X], "hard_sigmoid", {"alpha": 0.25, "beta": 0.5}, {"alpha": 0.25}),
    Case("Gelu", [X], "gelu", {"approximate": "none"}, opset=20),
    Case("Gelu", [X], "gelu", {"approximate": "tanh"}, {"approximate": "tanh"}, opset=20, name="tanh"),
    Case("Gelu", [X], "gelu", {"approximate": "none"}, opset=20, domain="com.microsoft",
         other_kernel=True, name="microsoft"),
    Case("FastGelu", [X], "gelu", {"approximate": "tanh"}, opset=20, domain="com.microsoft",
         other_kernel=True),
    Case("QuickGelu", [X], "silu", {}, {"alpha": 1.0}, domain="com.microsoft",
         refuses="Swish needs opset 24"),
    Case("Swish", [X], "silu", opset=24),
    Case("Clip", [X, c(-1, np.float32), c(1, np.float32)], "clamp", opset=13),
    Case("Clip", [X, None, c(1, np.float32)], "clamp", opset=13, name="high only"),
    Case("Clip", [X], "clamp", {}, {"min": 0.0, "max": 6.0}, 10, [0, "literal", "literal"],
         refuses="low cannot be an operand"),
    Case("Clip", [X], "clamp", {}, {}, 10, [0, None, None], name="open"),
    Case("Cast", [X], "cast", {"dtype": "int64"}, {"to": TensorProto.INT64}),
    Case("CastLike", [X, c([1], np.float16)], "cast", {"dtype": "float16"}, operands=[0]),
    Case("Where", [flags(2, 3, 4), X, X], "where"),
    Case("Dropout", [X], "identity", {}, {"ratio": 0.5}, 10),
    Case("Dropout", [X, c(0.5, np.float32), c(False, bool)], "identity", opset=13, operands=[0]),
]  # fmt: skip

MIXTURE = {"normalize": False, "alpha": 1.0, "beta": 0.0, "limit": None}
LINEAR = [
    Case("MatMul", [real(2, 3, 4), weight(4, 5)], "matmul"),
    Case("FusedMatMul", [real(3, 4), weight(4, 5)], "matmul", {}, {"alpha": 1.0}, domain="com.microsoft",
         other_kernel=True),
    Case("Gemm", [real(3, 4), weight(5, 4), weight(5)], "linear", {"trans_w": True}, {"transB": 1}),
    Case("Gemm", [real(3, 4), weight(4, 5)], "linear", {"trans_w": False}, operands=[0, 1, None]),
    Case("Einsum", [real(2, 3), real(3, 4)], "einsum", {"equation": "ij,jk->ik"}, {"equation": "ij,jk->ik"}),
    Case("Attention", [real(1, 2, 5, 4)] * 3, "attention", ATTENTION, {}, 23, [0, 1, 2, None]),
    Case("Attention", [real(1, 2, 5, 4)] * 3 + [flags(5, 5)], "attention", ATTENTION | {"scale": 0.25},
         {"scale": 0.25}, 24, name="mask"),
    Case("Attention", [real(1, 4, 5, 4), real(1, 2, 5, 4), real(1, 2, 5, 4)], "attention",
         ATTENTION | {"causal": True, "gqa": True}, {"is_causal": 1}, 23, [0, 1, 2, None], name="grouped"),
    Case("MultiHeadAttention", [real(2, 5, 12)] * 3, "multi_head_attention", {"heads": 3, "scale": 0.5},
         {"num_heads": 3}, 18, [0, 1, 2, None], domain="com.microsoft"),
    Case("MultiHeadAttention", [real(2, 5, 12)] * 3 + [None, None, real(1, 3, 5, 5)], "multi_head_attention",
         {"heads": 3, "scale": 0.25}, {"num_heads": 3, "scale": 0.25, "mask_filter_value": -1.0}, 18, [0, 1, 2, 5],
         domain="com.microsoft", name="bias"),
    Case("MoE", [real(6, 4), real(6, 3), weight(3, 5, 4), None, weight(3, 4, 5)], "moe",
         MIXTURE | {"k": 2, "activation": "silu"}, {"k": 2, "activation_type": "silu", "activation_alpha": 2.0}, 18,
         [0, 1, 2, 4, None, None], domain="com.microsoft"),
    Case("MoE", [real(2, 3, 4), real(6, 3), weight(3, 10, 4), weight(3, 10), weight(3, 4, 5), weight(3, 4)], "moe",
         {"k": 1, "activation": "swiglu", "normalize": True, "alpha": 1.5, "beta": 1.0, "limit": 0.5},
         {"k": 1, "activation_type": "swiglu", "normalize_routing_weights": 1, "activation_alpha": 1.5,
          "activation_beta": 1.0, "swiglu_limit": 0.5, "swiglu_fusion": 1},
         18, [0, 1, 2, 4, 3, 5], domain="com.microsoft", name="swiglu"),
]  # fmt: skip

CONVOLUTION = [
    Case("Conv", [IMAGE, weight(6, 2, 3, 3), weight(6)], "conv",
         {"stride": (2, 1), "pads": (1, 0, 2, 1), "dilation": (1, 2), "groups": 2},
         {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2], "group": 2, "kernel_shape": [3, 3]}),
    Case("Conv", [IMAGE, weight(6, 4, 1, 1)], "conv", WINDOW | {"groups": 1}, {}, 11, [0, 1, None],
         name="plain"),
    Case("Conv", [real(1, 2, 9), weight(3, 2, 3)], "conv",
         {"stride": (2,), "pads": (1, 1), "dilation": (1,), "groups": 1}, {"auto_pad": "SAME_UPPER",
         "strides": [2]},
         operands=[0, 1, None], name="same"),
    Case("Conv", [real(1, 2, 8), weight(3, 2, 2)], "conv",
         {"stride": (1,), "pads": (1, 0), "dilation": (1,), "groups": 1}, {"auto_pad": "SAME_LOWER"},
         operands=[0, 1, None], name="same lower"),
    Case("FusedConv", [IMAGE, weight(6, 4, 3, 3), weight(6)], "fused_conv",
         {"stride": (2, 1), "pads": (1, 0, 2, 1), "dilation": (1, 2), "groups": 1, "activation": "clamp",
          "parameters": (0.0, 6.0)},
         {"strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2], "activation": "Clip",
          "activation_params": [0.0, 6.0]}, domain="com.microsoft"),
    Case("ConvTranspose", [IMAGE, weight(4, 3, 3, 3), weight(6)], "conv_transpose",
         {"stride": (2, 2), "pads": (1, 1, 1, 1), "dilation": (1, 1), "output_padding": (1, 0), "groups": 2},
         {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 0], "group": 2}),
    Case("MaxPool", [IMAGE], "max_pool", {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1),
         "dilation": (1, 1), "ceil": True}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4,
         "ceil_mode": 1}),
    Case("MaxPool", [IMAGE], "max_pool", WINDOW | {"kernel": (2, 2), "ceil": False}, {"kernel_shape": [2,
         2]}, 8),
    Case("AveragePool", [IMAGE], "avg_pool", WINDOW | {"kernel": (2, 2), "pads": (1, 1, 1, 1), "ceil": False,
         "count_include_pad": True}, {"kernel_shape": [2, 2], "pads": [1] * 4, "count_include_pad": 1}),
    Case("GlobalAveragePool", [IMAGE], "reduce_mean", {"axes": (2, 3), "keepdims": True}, other_kernel=True),
    Case("GlobalMaxPool", [IMAGE], "reduce_max", {"axes": (2, 3), "keepdims": True}),
    Case("DepthToSpace", [IMAGE], "depth_to_space", {"block": 2, "mode": "CRD"}, {"blocksize": 2,
         "mode": "CRD"}),
    Case("SpaceToDepth", [IMAGE], "space_to_depth", {"block": 2}, {"blocksize": 2}),
    Case("Resize", [IMAGE, None, c([1, 1, 2, 2], np.float32)], "resize", RESIZE | {"scales": (1.0, 1.0,
         2.0, 2.0)},
         {"mode": "linear"}, operands=[0]),
    Case("Resize", [IMAGE, None, None, c([1, 4, 5, 9])], "resize",
         RESIZE | {"sizes": (1, 4, 5, 9), "mode": "nearest", "coordinates": "asymmetric", "nearest": "floor"},
         {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
         operands=[0],
         name="sizes"),
    Case("Resize", [IMAGE, None, c([2, 3], np.float32)], "resize", RESIZE | {"scales": (1.0, 1.0, 2.0, 3.0)},
         {"mode": "linear", "axes": [2, 3]}, operands=[0], name="axes"),
    Case("Resize", [IMAGE, c([], np.float32), c([1, 1, 2, 2], np.float32)], "resize",
         RESIZE | {"scales": (1.0, 1.0, 2.0, 2.0), "mode": "cubic"}, {"mode": "cubic"}, 11, [0],
         name="cubic"),
    Case("Resize", [IMAGE, c([1, 1, 2, 2], np.float32)], "resize",
         RESIZE | {"scales": (1.0, 1.0, 2.0, 2.0), "mode": "nearest", "coordinates": "asymmetric",
         "nearest": "floor"},
         {}, 10, [0], refuses="Resize needs opset 11"),
]  # fmt: skip

NORM = [weight(4), weight(4), weight(4), Const(positive(4))]
REDUCED = {"axes": (0, 2), "keepdims": False}
NORMALIZATION = [
    Case("BatchNormalization", [IMAGE, *NORM], "batch_norm", {"eps": 0.5, "training": False},
         {"epsilon": 0.5}),
    Case("BatchNormalization", [IMAGE, *NORM], "batch_norm", {"eps": EPS, "training": False},
         {"momentum": 0.8}, 8),
    Case("BatchNormalization", [IMAGE, *NORM], "batch_norm", {"eps": EPS, "training": True},
         {"training_mode": 1},
         outputs=1, runs=False, name="training"),
    Case("InstanceNormalization", [IMAGE, weight(4), weight(4)], "instance_norm", {"eps": EPS}),
    Case("LayerNormalization", [X, weight(4), weight(4)], "layer_norm", {"axis": -1, "eps": EPS}),
    Case("LayerNormalization", [X, weight(3, 4)], "layer_norm", {"axis": -2, "eps": 0.5},
         {"axis": 1, "epsilon": 0.5}, operands=[0, 1, None], name="two axes"),
    Case("RMSNormalization", [X, weight(4)], "rms_norm", {"axis": -1, "eps": EPS}, opset=23),
    Case("GroupNormalization", [IMAGE, weight(4), weight(4)], "group_norm", {"groups": 2, "eps": EPS},
         {"num_groups": 2}, 21),
    Case("Softmax", [X], "softmax", {"axis": 1}, {"axis": -2}, 13),
    Case("Softmax", [X], "softmax", {"axis": 2}, {"axis": 2}, 11),
    Case("LogSoftmax", [X], "log_softmax", {"axis": 2}),
    *(Case(f"Reduce{n}", [X], f"reduce_{n.lower()}", REDUCED, {"axes": [0, -1], "keepdims": 0}, 11,
         name="attribute")
      for n in ("Mean", "Sum", "Max", "Min", "Prod", "L2")),
    *(Case(f"Reduce{n}", [X, c([0, -1])], f"reduce_{n.lower()}", REDUCED, {"keepdims": 0}, operands=[0])
      for n in ("Mean", "Sum", "Max", "Min", "Prod", "L2")),
    Case("ReduceSum", [X], "reduce_sum", {"axes": (0, 1, 2), "keepdims": True}, opset=13, name="all"),
    Case("ArgMax", [X], "arg_max", {"axis": 2, "keepdims": False}, {"axis": -1, "keepdims": 0}),
    Case("ArgMin", [X], "arg_min", {"axis": 0, "keepdims": True}),
    Case("CumSum", [X, c(1)], "cumsum", {"axis": 1, "exclusive": True, "reverse": False}, {"exclusive": 1},
         operands=[0]),
    Case("TopK", [X, c([2])], "topk", {"k": 2, "axis": 2, "largest": False}, {"largest": 0}, operands=[0],
         outputs=2),
]  # fmt: skip

SLICE = {"starts": (1, -1), "ends": (INT64_MAX, -4), "axes": (0, 2), "steps": (1, -2)}
LAYOUT = [
    Case("Reshape", [X, c([0, -1])], "reshape", {"shape": (2, -1)}, operands=[0, None]),
    Case("Reshape", [np.zeros((0, 3), np.float32), c([3, 0])], "reshape", {"shape": (3, 0)}, {"allowzero": 1},
         operands=[0, None], name="zero"),
    Case("Flatten", [X], "reshape", {"shape": (2, 12)}, operands=[0, None]),
    Case("Transpose", [X], "transpose", {"perm": (2, 1, 0)}),
    Case("Transpose", [X], "transpose", {"perm": (1, 0, 2)}, {"perm": [1, 0, 2]}, name="perm"),
    Case("Expand", [real(3, 1), c([2, 1, 4])], "expand", {"shape": (2, 1, 4)}, operands=[0, None]),
    Case("Unsqueeze", [X, c([-1, 0])], "unsqueeze", {"axes": (0, 4)}, operands=[0]),
    Case("Unsqueeze", [X], "unsqueeze", {"axes": (1,)}, {"axes": [1]}, 11),
    Case("Squeeze", [real(1, 3, 1), c([-1])], "squeeze", {"axes": (2,)}, operands=[0]),
    Case("Squeeze", [real(1, 3, 1)], "squeeze", {"axes": (0, 2)}, {}, 11),
    Case("Concat", [X, X], "concat", {"axis": 2}, {"axis": -1}),
    Case("Split", [X, c([1, 3])], "split", {"sizes": (1, 3), "axis": 2}, {"axis": 2}, operands=[0],
         outputs=2),
    Case("Split", [X], "split", {"sizes": (2, 2), "axis": 2}, {"axis": -1}, 11, outputs=2),
    Case("Split", [X], "split", {"sizes": (2, 1), "axis": 1}, {"axis": 1, "num_outputs": 2}, outputs=2,
         name="uneven"),
    Case("Slice", [X, c([1, -1]), c([INT64_MAX, -4]), c([0, -1]), c([1, -2])], "slice", SLICE, operands=[0]),
    Case("Slice", [X], "slice", {"starts": (1,), "ends": (3,), "axes": (1,), "steps": (1,)},
         {"starts": [1], "ends": [3], "axes": [1]}, 9),
    Case("Pad", [X, c([0, 1, 0, 0, 0, 2]), c(3, np.float32)], "pad",
         {"pads": (0, 1, 0, 0, 0, 2), "mode": "constant"}, {}, 13, [0, 2]),
    Case("Pad", [X, c([1, 1]), None, c([-1])], "pad", {"pads": (0, 0, 1, 0, 0, 1), "mode": "reflect"},
         {"mode": "reflect"}, operands=[0, None], name="axes"),
    Case("Pad", [X], "pad", {"pads": (0, 1, 0, 0, 0, 2), "mode": "edge"}, {"pads": [0, 1, 0, 0, 0, 2],
         "mode": "edge"},
         10, [0, None]),
    Case("Pad", [X], "pad", {"pads": (0, 1, 0, 0, 0, 2), "mode": "constant"}, {"pads": [0, 1, 0, 0, 0, 2],
         "value": 2.0},
         10, [0, "literal"], refuses="value cannot be an operand", name="value"),
    Case("Tile", [X, c([1, 2, 3])], "tile", {"repeats": (1, 2, 3)}, operands=[0]),
    Case("Shape", [X], "shape", {"start": 0, "end": None}),
    Case("Shape", [X], "shape", {"start": 1, "end": -1}, {"start": 1, "end": -1}, name="part"),
    Case("ConstantOfShape", [np.asarray([2, 3])], "fill", {"value": 7, "dtype": "int64", "shape": None},
         {"value": numpy_helper.from_array(np.asarray([7]))}),
    Case("Range", [np.asarray(1), np.asarray(9), np.asarray(3)], "range"),
    Case("Trilu", [X, c(1)], "trilu", {"k": 1, "upper": False}, {"upper": 0}, operands=[0]),
]  # fmt: skip

INDEX = np.asarray([[1, 0], [0, -1]])
INDEXING = [
    Case("Gather", [X, INDEX], "gather", {"axis": 2}, {"axis": -1}),
    Case("GatherElements", [real(2, 2), INDEX], "gather_elements", {"axis": 1}, {"axis": 1}),
    Case("GatherND", [X, INDEX], "gather_nd", {"batch_dims": 0}),
    Case("GatherND", [X, np.asarray([[1], [0]])], "gather_nd", {"batch_dims": 1}, {"batch_dims": 1},
         name="batch"),
    Case("ScatterElements", [real(2, 2), np.asarray([[0, 1]]), real(1, 2)], "scatter_elements",
         {"axis": 0, "reduction": "add"}, {"reduction": "add"}),
    Case("Scatter", [real(2, 2), np.asarray([[0, 1]]), real(1, 2)], "scatter_elements",
         {"axis": 1, "reduction": None}, {"axis": 1}, 10, refuses="ScatterElements needs opset 11"),
    Case("ScatterND", [real(4), np.asarray([[0], [3]]), real(2)], "scatter_nd", {"reduction": None}),
    Case("OneHot", [np.asarray([0, 2]), np.asarray(3), np.asarray([0.0, 1.0], np.float32)], "one_hot",
         {"axis": 1}),
    Case("DequantizeLinear", [np.arange(4, dtype=np.int8), c(0.5, np.float32), c(1, np.int8)], "dequantize",
         {"axis": None}),
    Case("DequantizeLinear", [np.arange(6, dtype=np.uint8).reshape(2, 3), c([0.5, 1, 2], np.float32)],
         "dequantize",
         {"axis": 1}, operands=[0, 1, None], name="axis"),
    Case("QuantizeLinear", [X, c(0.5, np.float32)], "quantize", {"axis": None, "dtype": "uint8"},
         operands=[0, 1, None]),
    Case("QuantizeLinear", [X, c([0.5, 1, 2], np.float32), c([0, 1, 2], np.int8)], "quantize",
         {"axis": 1, "dtype": "int8"}, {"axis": -2}, name="axis"),
]  # fmt: skip

STEPS = [real(4, 2, 3), weight(2, 20, 3), weight(2, 20, 5)]
RECURRENT = [
    Case("LSTM", [real(4, 2, 3), weight(1, 20, 3), weight(1, 20, 5)], "lstm", {"hidden": 5, "direction": "forward"},
         {"hidden_size": 5}, operands=[0, 1, 2, None, None, None], outputs=3),
    Case("LSTM", [*STEPS, weight(2, 40), None, real(2, 2, 5), real(2, 2, 5)], "lstm",
         {"hidden": 5, "direction": "bidirectional"}, {
             "hidden_size": 5, "direction": "bidirectional", "layout": 0, "input_forget": 0,
             "activations": ["Sigmoid", "Tanh", "Tanh"] * 2,
         }, operands=[0, 1, 2, 3, 5, 6], outputs=3, opset=14, name="bidirectional"),
    Case("GRU", [real(4, 2, 3), weight(1, 15, 3), weight(1, 15, 5)], "gru",
         {"hidden": 5, "direction": "reverse", "linear_before_reset": False},
         {"hidden_size": 5, "direction": "reverse"}, operands=[0, 1, 2, None, None], outputs=2),
    *(
        Case("GRU", [real(4, 2, 3), weight(2, 15, 3), weight(2, 15, 5), weight(2, 30), None, real(2, 2, 5)], "gru",
             {"hidden": 5, "direction": "bidirectional", "linear_before_reset": bool(before)}, {
                 "hidden_size": 5, "direction": "bidirectional", "layout": 0, "linear_before_reset": before,
                 "activations": ["Sigmoid", "Tanh"] * 2,
             }, operands=[0, 1, 2, 3, 5], outputs=2, opset=14, name=f"bidirectional {before}")
        for before in (0, 1)
    ),
]  # fmt: skip

CASES = ELEMENTWISE + LINEAR + CONVOLUTION + NORMALIZATION + LAYOUT + INDEXING + RECURRENT
