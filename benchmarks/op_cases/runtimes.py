"""Running one op three ways: by its meaning in float64, by onnxruntime and by torch in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from graphopt.ir.ops import OPS
from graphopt.ir.ops.domain import Float64

EPS = float(np.finfo(np.float32).eps)


@dataclass
class Node:
    """An ONNX node; its inputs are the case's operands followed by `extra`, unless `inputs` are given."""

    op_type: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    extra: Sequence[Any] = ()
    inputs: Sequence[Any] | None = None
    opset: int = 21
    domain: str = ""
    outputs: int = 1
    unsaid: int = 0
    """Trailing outputs that the node has and the op has not."""


@dataclass
class Case:
    """One call of an op, and how the runtimes say the same."""

    op: str
    operands: Sequence[Any]
    fields: Mapping[str, Any] = field(default_factory=dict)
    onnx: Node | None = None
    torch: Callable[..., Any] | None = None
    bound: float = 16.0
    """Allowed error in float32 eps."""


def parameters(cases: Sequence[Case]) -> list[Any]:
    """One pytest parameter for each runtime that a case names."""
    return [
        pytest.param(case, runtime, id=f"{case.op}-{index}-{runtime}")
        for index, case in enumerate(cases)
        for runtime in ("onnx", "torch")
        if getattr(case, runtime) is not None
    ]


def check(case: Case, runtime: str, *, elementwise: bool = False) -> None:
    """Assert that the meaning of the case's op agrees with `runtime`.

    The error allowed is relative to the greatest magnitude in the result, or if elementwise to each element's
    own (to 1 at least).
    """
    wanted = meaning(case.op, *case.operands, **case.fields)
    got = run_onnx(case) if runtime == "onnx" else run_torch(case)
    assert len(wanted) == len(got)
    for w, g in zip(wanted, got, strict=True):
        assert_close(w, g, case.bound * EPS, elementwise)


def meaning(op: str, *operands: Any, **fields: Any) -> list[np.ndarray]:
    """The op over Float64, floating-point operands up-cast, as a list of outputs."""
    with np.errstate(all="ignore"):
        result = OPS[op].meaning(Float64(), *[widened(x) for x in operands], **fields)
    return [np.asarray(r) for r in result] if isinstance(result, tuple) else [np.asarray(result)]


def widened(x: Any) -> Any:
    is_float = isinstance(x, np.ndarray | np.generic) and np.issubdtype(x.dtype, np.floating)
    return x.astype(np.float64) if is_float else x


def run_onnx(case: Case) -> list[np.ndarray]:
    node = case.onnx
    assert node is not None
    values = list(case.operands if node.inputs is None else node.inputs) + list(node.extra)
    names = [f"x{i}" if v is not None else "" for i, v in enumerate(values)]
    arrays = {n: np.asarray(v) for n, v in zip(names, values, strict=True) if n}
    outputs = [f"y{i}" for i in range(node.outputs + node.unsaid)]
    helper = onnx.helper
    graph = helper.make_graph(
        [helper.make_node(node.op_type, names, outputs, domain=node.domain, **node.attributes)],
        "case",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in arrays.items()
        ],
        [helper.make_empty_tensor_value_info(n) for n in outputs],
    )
    opsets = {"": node.opset, "com.microsoft": 1}
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()], ir_version=10
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(y) for y in session.run(outputs[: node.outputs], arrays)]


def run_torch(case: Case) -> list[np.ndarray]:
    assert case.torch is not None
    tensors = [torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray) else x for x in case.operands]
    with torch.no_grad():
        result = case.torch(*tensors)
    several = result if isinstance(result, tuple | list) else [result]
    return [np.asarray(r) for r in several]


def assert_close(wanted: np.ndarray, got: np.ndarray, tolerance: float, elementwise: bool) -> None:
    """Equal shapes and kinds; integers, NaN and infinities equal; the rest within the tolerance."""
    assert wanted.shape == got.shape
    if not np.issubdtype(got.dtype, np.floating):
        assert wanted.dtype == got.dtype
        np.testing.assert_array_equal(wanted, got)
        return
    assert wanted.dtype == np.float64
    finite = np.isfinite(got)
    np.testing.assert_array_equal(wanted[~finite].astype(np.float32), got[~finite])
    magnitude = (
        np.maximum(np.abs(got[finite]), 1.0) if elementwise else np.max(np.abs(got[finite]), initial=0.0)
    )
    excess = np.abs(wanted[finite] - got[finite]) - tolerance * magnitude
    assert np.all(excess <= 0), f"{np.sum(excess > 0)} elements differ, by up to {np.max(excess)} too much"


class Sampler:
    """Seeded random operands."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def normal(self, *shape: int) -> np.ndarray:
        return self._generator.normal(size=shape).astype(np.float32)

    def positive(self, *shape: int) -> np.ndarray:
        return self._generator.uniform(0.1, 3.0, size=shape).astype(np.float32)

    def integers(self, low: int, high: int, *shape: int, dtype: str = "int64") -> np.ndarray:
        """Uniform in [low, high)."""
        return self._generator.integers(low, high, size=shape).astype(dtype)

    def bools(self, *shape: int) -> np.ndarray:
        return self._generator.integers(0, 2, size=shape).astype(bool)


def int64(*values: int) -> np.ndarray:
    return np.asarray(values, dtype=np.int64)
