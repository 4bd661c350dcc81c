"""Cases: convolution, pooling, resizing and block rearrangement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F

from benchmarks.op_cases.runtimes import Case, Node, Sampler

sample = Sampler(2)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def conv(
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    bias: bool = True,
) -> Case:
    n = len(stride)
    fields = {
        "stride": tuple(stride),
        "pads": tuple(pads),
        "dilation": tuple(dilation),
        "groups": groups,
    }
    attributes = {"strides": stride, "pads": pads, "dilations": dilation, "group": groups}
    symmetric = tuple(pads[:n]) == tuple(pads[n:])
    return Case(
        "conv",
        [sample.normal(*x), sample.normal(*w), *([sample.normal(w[0])] if bias else [])],
        fields,
        onnx=Node("Conv", attributes),
        torch=(lambda *t: CONV[n](*t, stride=stride, padding=pads[:n], dilation=dilation, groups=groups))
        if symmetric
        else None,
        bound=64,
    )


def fused_conv(
    x: tuple[int, ...],
    w: tuple[int, ...],
    activation: str,
    contrib: str,
    parameters: tuple[float, ...] = (),
    *,
    stride: int = 1,
    pads: int = 0,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = True,
) -> Case:
    n = len(w) - 2
    case = conv(x, w, [stride] * n, [pads] * 2 * n, [dilation] * n, groups, bias)
    attributes = {**case.onnx.attributes, "activation": contrib}
    if parameters:
        attributes["activation_params"] = parameters
    fields = {**case.fields, "activation": activation, "parameters": tuple(float(np.float32(p)) for p in parameters)}
    return Case("fused_conv", case.operands, fields, Node("FusedConv", attributes, domain="com.microsoft"), bound=64)


def conv_transpose(
    x: tuple[int, ...],
    w: tuple[int, ...],
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int = 1,
    bias: bool = True,
) -> Case:
    n = len(stride)
    fields = {
        "stride": tuple(stride),
        "pads": tuple(pads),
        "dilation": tuple(dilation),
        "output_padding": tuple(output_padding),
        "groups": groups,
    }
    attributes = {
        "strides": stride,
        "pads": pads,
        "dilations": dilation,
        "output_padding": output_padding,
        "group": groups,
    }

    def in_torch(x: Any, w: Any, b: Any = None) -> Any:
        return CONV_TRANSPOSE[n](x, w, b, stride, pads[:n], output_padding, groups, dilation)

    return Case(
        "conv_transpose",
        [sample.normal(*x), sample.normal(*w), *([sample.normal(w[1] * groups)] if bias else [])],
        fields,
        onnx=Node("ConvTranspose", attributes),
        torch=in_torch if tuple(pads[:n]) == tuple(pads[n:]) else None,
        bound=64,
    )


CONVOLUTIONS = [
    conv((2, 3, 9), (4, 3, 3), [1], [0, 0], [1]),
    conv((2, 4, 10), (6, 2, 3), [2], [1, 2], [2], groups=2, bias=False),
    conv((2, 3, 8, 9), (4, 3, 3, 3), [1, 1], [1, 1, 1, 1], [1, 1]),
    conv((1, 3, 8, 9), (4, 3, 3, 2), [2, 1], [0, 1, 2, 0], [1, 1]),
    conv((1, 4, 11, 10), (6, 2, 3, 3), [2, 3], [2, 1, 2, 1], [2, 1], groups=2),
    conv((2, 4, 7, 7), (4, 1, 3, 3), [1, 1], [1, 1, 1, 1], [1, 1], groups=4),
    conv((2, 4, 7, 7), (8, 1, 3, 3), [2, 2], [1, 1, 1, 1], [1, 1], groups=4, bias=False),
    conv((1, 16, 5, 5), (8, 16, 1, 1), [1, 1], [0, 0, 0, 0], [1, 1]),
    conv((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), [1, 2, 1], [1, 1, 0, 1, 1, 0], [1, 1, 2]),
    conv((0, 3, 8, 8), (4, 3, 3, 3), [1, 1], [1, 1, 1, 1], [1, 1]),
    fused_conv((2, 3, 8, 9), (4, 3, 3, 3), "relu", "Relu", pads=1),
    fused_conv((2, 4, 10), (6, 2, 3), "clamp", "Clip", (-0.5, 0.75), stride=2, groups=2, bias=False),
    fused_conv((2, 3, 8, 9), (4, 3, 3, 3), "clamp", "Clip", (0.0, float("inf"))),
    fused_conv((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), "leaky_relu", "LeakyRelu", (0.2,), dilation=2),
    fused_conv((2, 3, 8, 9), (4, 3, 3, 3), "hard_sigmoid", "HardSigmoid", (0.2, 0.4)),
    fused_conv((2, 3, 8, 9), (4, 3, 3, 3), "sigmoid", "Sigmoid"),
    fused_conv((2, 3, 8, 9), (4, 3, 3, 3), "tanh", "Tanh"),
    conv_transpose((2, 4, 7), (4, 3, 3), [2], [1, 1], [1], [1]),
    conv_transpose((2, 4, 5, 6), (4, 3, 3, 3), [2, 2], [1, 1, 1, 1], [1, 1], [1, 1]),
    conv_transpose((1, 4, 5, 6), (4, 3, 3, 2), [2, 3], [0, 1, 1, 0], [1, 1], [0, 0], bias=False),
    conv_transpose((1, 6, 5, 6), (6, 2, 3, 3), [3, 2], [2, 1, 2, 1], [2, 1], [2, 0], groups=3),
    conv_transpose((1, 2, 3, 4, 3), (2, 3, 2, 3, 2), [2, 1, 2], [0, 1, 0, 0, 1, 0], [1, 1, 1], [0, 0, 1]),
]


def pools(
    x: tuple[int, ...],
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    dilation: Sequence[int],
    ceil: bool = False,
) -> list[Case]:
    """max_pool, and avg_pool without and with the padding counted."""
    n = len(kernel)
    operand = sample.normal(*x)
    fields = {
        "kernel": tuple(kernel),
        "stride": tuple(stride),
        "pads": tuple(pads),
        "dilation": tuple(dilation),
        "ceil": ceil,
    }
    attributes = {
        "kernel_shape": kernel,
        "strides": stride,
        "pads": pads,
        "dilations": dilation,
        "ceil_mode": int(ceil),
    }
    symmetric = tuple(pads[:n]) == tuple(pads[n:])
    max_pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[n]
    avg_pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[n]
    cases = [
        Case(
            "max_pool",
            [operand],
            fields,
            onnx=Node("MaxPool", attributes, opset=22),
            torch=(lambda x: max_pool(x, kernel, stride, pads[:n], dilation, ceil)) if symmetric else None,
        )
    ]
    for counted in (False, True):
        cases.append(
            Case(
                "avg_pool",
                [operand],
                fields | {"count_include_pad": counted},
                onnx=Node("AveragePool", attributes | {"count_include_pad": int(counted)}, opset=22),
                torch=(lambda x, c=counted: avg_pool(x, kernel, stride, pads[:n], ceil, c))
                if symmetric and set(dilation) == {1}
                else None,
            )
        )
    return cases


BYTES = sample.integers(0, 256, 1, 2, 6, 6, dtype="uint8")
WITH_NAN = sample.normal(1, 2, 6, 6)
WITH_NAN[0, 0, 2, 3] = np.nan
WITH_NAN[0, 1, 1, 1] = np.inf
POOLS = [
    *pools((2, 3, 9), [3], [2], [1, 1], [1]),
    *pools((2, 3, 8, 9), [3, 2], [2, 1], [1, 1, 1, 1], [1, 1]),
    *pools((2, 3, 8, 9), [3, 3], [2, 2], [0, 1, 1, 0], [1, 1]),
    *pools((2, 3, 8, 9), [3, 2], [1, 2], [1, 0, 1, 0], [2, 3]),
    *pools((1, 2, 8, 10), [3, 3], [2, 2], [0, 0, 0, 0], [1, 1], ceil=True),
    *pools((1, 2, 7, 7), [2, 2], [3, 3], [1, 1, 1, 1], [1, 1], ceil=True),
    *pools((1, 2, 6, 6), [3, 3], [4, 2], [1, 1, 1, 1], [1, 1], ceil=True),
    *pools((1, 2, 6, 6), [3, 3], [3, 3], [1, 1, 1, 1], [1, 1], ceil=True),
    *pools((1, 2, 5, 5), [2, 2], [3, 3], [1, 1, 1, 1], [1, 1], ceil=True),
    *pools((1, 2, 10, 10), [3, 2], [2, 3], [1, 0, 0, 1], [2, 3], ceil=True),
    *pools((1, 2, 4, 5, 6), [2, 2, 3], [2, 1, 2], [0, 1, 1, 0, 1, 1], [1, 1, 1]),
    Case(
        "max_pool",
        [BYTES],
        {"kernel": (3, 3), "stride": (2, 2), "pads": (1, 1, 1, 1), "dilation": (1, 1)},
        onnx=Node("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ),
    Case(
        "max_pool",
        [WITH_NAN],
        {"kernel": (2, 2), "stride": (1, 1), "pads": (0, 0, 0, 0), "dilation": (1, 1)},
        torch=lambda x: F.max_pool2d(x, 2, 1),
    ),
]


def resize_onnx(case: dict[str, Any], dtype: str = "float32") -> Node:
    x, sizes, scales = case["x"], case.get("sizes"), case.get("scales")
    attributes = {
        "mode": case["mode"],
        "coordinate_transformation_mode": case["coordinates"],
        **({"nearest_mode": case["nearest"]} if "nearest" in case else {}),
    }
    inputs = [
        x,
        None,
        None if scales is None else np.asarray(scales, np.float32),
        None if sizes is None else np.asarray(sizes, np.int64),
    ]
    return Node("Resize", attributes, inputs=inputs)


def resize(**case: Any) -> Case:
    x = sample.normal(*case.pop("shape"))
    in_torch = case.pop("torch", None)
    return Case("resize", [x], case, onnx=resize_onnx(case | {"x": x}), torch=in_torch, bound=32)


SCALES = (1.0, 1.0, 2.0, 3.0)
DOWN = (1.0, 1.0, 0.6, 0.4)
RESIZES = [
    resize(
        shape=(1, 2, 4, 5),
        scales=SCALES,
        mode="nearest",
        coordinates="asymmetric",
        nearest="floor",
        torch=lambda x: F.interpolate(x, scale_factor=(2, 3), mode="nearest"),
    ),
    *[
        resize(shape=(1, 2, 4, 5), scales=scales, mode="nearest", coordinates="half_pixel", nearest=nearest)
        for scales in (SCALES, DOWN)
        for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    ],
    *[
        resize(shape=(1, 2, 5, 6), scales=scales, mode="linear", coordinates=coordinates)
        for scales in (SCALES, DOWN)
        for coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ],
    *[
        resize(shape=(1, 2, 5, 6), sizes=(1, 2, 7, 1), mode=mode, coordinates=coordinates)
        for mode in ("linear", "cubic")
        for coordinates in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    ],
    resize(
        shape=(1, 2, 5, 6),
        sizes=(1, 2, 8, 4),
        mode="linear",
        coordinates="half_pixel",
        torch=lambda x: F.interpolate(x, (8, 4), mode="bilinear"),
    ),
    resize(
        shape=(1, 2, 5, 6),
        sizes=(1, 2, 8, 4),
        mode="linear",
        coordinates="align_corners",
        torch=lambda x: F.interpolate(x, (8, 4), mode="bilinear", align_corners=True),
    ),
    resize(
        shape=(1, 2, 5, 6),
        sizes=(1, 2, 8, 4),
        mode="cubic",
        coordinates="half_pixel",
        torch=lambda x: F.interpolate(x, (8, 4), mode="bicubic"),
    ),
    resize(
        shape=(1, 2, 7),
        sizes=(1, 2, 4),
        mode="linear",
        coordinates="half_pixel",
        torch=lambda x: F.interpolate(x, 4, mode="linear"),
    ),
    resize(
        shape=(1, 2, 3, 4, 3),
        sizes=(1, 2, 5, 2, 6),
        mode="linear",
        coordinates="half_pixel",
        torch=lambda x: F.interpolate(x, (5, 2, 6), mode="trilinear"),
    ),
    resize(shape=(1, 1, 5, 5), scales=(1.0, 1.0, 1.4, 1.1), mode="linear", coordinates="half_pixel"),
    Case(
        "resize",
        [sample.normal(1, 1, 5, 5)],
        {
            "sizes": (1, 1, 7, 7),
            "scales": (1.0, 1.0, 1.5, 1.5),
            "mode": "linear",
            "coordinates": "half_pixel",
        },
        torch=lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", recompute_scale_factor=False),
        bound=32,
    ),
]

BLOCKS = [
    *[
        Case(
            "depth_to_space",
            [sample.normal(2, 3 * block * block, 2, 3)],
            {"block": block, "mode": mode},
            onnx=Node("DepthToSpace", {"blocksize": block, "mode": mode}),
            torch=(lambda x, block=block: F.pixel_shuffle(x, block)) if mode == "CRD" else None,
        )
        for block, mode in ((2, "DCR"), (3, "DCR"), (2, "CRD"), (3, "CRD"))
    ],
    *[
        Case(
            "space_to_depth",
            [sample.normal(2, 3, 6, 12)],
            {"block": block},
            onnx=Node("SpaceToDepth", {"blocksize": block}),
        )
        for block in (2, 3)
    ],
]
CASES = CONVOLUTIONS + POOLS + RESIZES + BLOCKS
