"""Cases: normalisations and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.op_cases.runtimes import Case, Node, Sampler

sample = Sampler(4)
X, EPS = sample.normal(2, 6, 4, 5), 1e-2
SCALE, SHIFT, MEAN, VAR = sample.normal(6), sample.normal(6), sample.normal(6), sample.positive(6)
ZEROS = np.zeros(6, np.float32)


def batch_norm_torch(training: bool) -> Any:
    def run(x: Any, scale: Any, shift: Any, mean: Any, var: Any) -> Any:
        return F.batch_norm(x, mean, var, scale, shift, training, 0.1, EPS)

    return run


def batch_norm(x: np.ndarray) -> Case:
    return Case(
        "batch_norm",
        [x, SCALE, SHIFT, MEAN, VAR],
        {"eps": EPS},
        onnx=Node("BatchNormalization", {"epsilon": EPS}),
        torch=batch_norm_torch(False),
    )


def layer_norm(*scale_and_shift: np.ndarray, axis: int) -> Case:
    shape = X.shape[axis:]
    return Case(
        "layer_norm",
        [X, *scale_and_shift],
        {"axis": axis, "eps": EPS},
        onnx=Node("LayerNormalization", {"axis": axis, "epsilon": EPS}) if scale_and_shift else None,
        torch=lambda x, *t: F.layer_norm(x, shape, *t, eps=EPS),
    )


def rms_norm(axis: int) -> Case:
    shape = X.shape[axis:]
    return Case(
        "rms_norm",
        [X, sample.normal(*shape)],
        {"axis": axis, "eps": EPS},
        onnx=Node("RMSNormalization", {"axis": axis, "epsilon": EPS}, opset=23),
        torch=lambda x, w: F.rms_norm(x, shape, w, EPS),
    )


NORMS = [
    *[
        Case(
            op,
            [0.01 * X, *operands],
            {"eps": 1e-4, **fields},
            Node(onnx, {"epsilon": 1e-4, **attributes}, opset=23),
        )
        for op, onnx, operands, fields, attributes in (
            ("batch_norm", "BatchNormalization", [SCALE, SHIFT, 0.01 * MEAN, 0.01 * VAR], {}, {}),
            ("instance_norm", "InstanceNormalization", [SCALE, SHIFT], {}, {}),
            ("group_norm", "GroupNormalization", [SCALE, SHIFT], {"groups": 2}, {"num_groups": 2}),
            ("layer_norm", "LayerNormalization", [SCALE[:5], SHIFT[:5]], {"axis": -1}, {"axis": -1}),
            ("rms_norm", "RMSNormalization", [SCALE[:5]], {"axis": -1}, {"axis": -1}),
        )
    ],
    batch_norm(X),
    batch_norm(X[..., 0]),
    batch_norm(X[..., 0, 0]),
    batch_norm(sample.normal(1, 6, 2, 3, 4)),
    Case(
        "batch_norm",
        [X, None, None, MEAN, VAR],
        {"eps": EPS},
        torch=batch_norm_torch(False),
    ),
    Case(
        "batch_norm",
        [X, SCALE, SHIFT, MEAN, VAR],
        {"eps": EPS, "training": True},
        onnx=Node("BatchNormalization", {"epsilon": EPS, "training_mode": 1}, unsaid=2),
        torch=batch_norm_torch(True),
    ),
    Case(
        "instance_norm",
        [X, SCALE, SHIFT],
        {"eps": EPS},
        onnx=Node("InstanceNormalization", {"epsilon": EPS}),
        torch=lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=EPS),
    ),
    Case("instance_norm", [X[..., 0]], {"eps": EPS}, torch=lambda x: F.instance_norm(x, eps=EPS)),
    *[
        Case(
            "group_norm",
            [X, SCALE, SHIFT],
            {"groups": groups, "eps": EPS},
            onnx=Node("GroupNormalization", {"num_groups": groups, "epsilon": EPS}),
            torch=lambda x, w, b, g=groups: F.group_norm(x, g, w, b, EPS),
        )
        for groups in (1, 2, 6)
    ],
    Case("group_norm", [X[..., 0]], {"groups": 3, "eps": EPS}, torch=lambda x: F.group_norm(x, 3, eps=EPS)),
    layer_norm(sample.normal(5), sample.normal(5), axis=-1),
    layer_norm(sample.normal(4, 5), sample.normal(4, 5), axis=-2),
    layer_norm(sample.normal(5), axis=-1),
    layer_norm(axis=-3),
    rms_norm(-1),
    rms_norm(-2),
]
SHARP = np.asarray([[1e4, 1e4 - 1, -1e4], [0, -np.inf, 1], [np.nan, 0, 1]], np.float32)
SOFTMAXES = [
    Case(
        op, [x], {"axis": axis}, onnx=Node(onnx, {"axis": axis}), torch=lambda x, a=axis, f=function: f(x, a)
    )
    for op, onnx, function in (
        ("softmax", "Softmax", torch.softmax),
        ("log_softmax", "LogSoftmax", torch.log_softmax),
    )
    for x, axis in ((X, 3), (X, 1), (X[0, 0], 0), (SHARP[:2], 1), (np.zeros((0, 3), np.float32), 1))
]
CASES = NORMS + SOFTMAXES
