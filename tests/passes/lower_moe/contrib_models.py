"""ONNX models of one com.microsoft::MoE behind a router, and what they compute in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

WIDE, HIDDEN = 16, 24
SWIGLU = {
    "activation_type": "swiglu", "swiglu_fusion": 1, "activation_alpha": 1.7, "activation_beta": 1.0,
    "swiglu_limit": 0.5,
}  # fmt: skip


def weights(experts: int, halves: int = 1, biased: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"router": (WIDE, experts), "w1": (experts, halves * HIDDEN, WIDE)}
    shapes |= {"b1": (experts, halves * HIDDEN)} if biased else {}
    shapes |= {"w2": (experts, WIDE, HIDDEN)} | ({"b2": (experts, WIDE)} if biased else {})
    scale = {"router": 1.0}
    return {n: rng.normal(size=s, scale=scale.get(n, 0.3)).astype(np.float32) for n, s in shapes.items()}


def mixture(
    stored: Mapping[str, np.ndarray], *, batch: bool = False, tokens: int | str = "tokens", opset: int = 18,
    op: str = "MoE", more: tuple[str, ...] = (), given: tuple[str, ...] = (), **attributes: Any,
) -> onnx.ModelProto:  # fmt: skip
    """`more` are names of stored operands behind b2, `given` those of stored ones that are inputs instead."""
    operands = [n if n in stored else "" for n in ("w1", "b1", "w2", "b2")]
    shape = [2, tokens, WIDE] if batch else [tokens, WIDE]
    nodes = [
        helper.make_node("Reshape", ["x", "flat"], ["rows"]),
        helper.make_node("MatMul", ["rows", "router"], ["scores"]),
        helper.make_node(op, ["x", "scores", *operands, *more], ["y"], domain="com.microsoft", **attributes),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    inputs += [helper.make_tensor_value_info(n, TensorProto.FLOAT, stored[n].shape) for n in given]
    kept = {n: a for n, a in stored.items() if n not in given} | {"flat": np.asarray([-1, WIDE])}
    graph = helper.make_graph(
        nodes, "mixture", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(a, n) for n, a in kept.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    return np.asarray(y)


ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "relu": lambda u: np.maximum(u, 0),
    "silu": lambda u: u / (1 + np.exp(-u)),
    "gelu": lambda u: u / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))),
    "identity": lambda u: u,
}


def in_float64(stored: Mapping[str, np.ndarray], x: np.ndarray, **attributes: Any) -> np.ndarray:
    """The same, token by token."""
    real = {n: a.astype(np.float64) for n, a in stored.items()}
    rows = x.astype(np.float64).reshape(-1, WIDE)
    scores = rows @ real["router"]
    gates = np.exp(scores - scores.max(1, keepdims=True))
    gates /= gates.sum(1, keepdims=True)
    total = np.zeros_like(rows)
    for row, gate, out in zip(rows, gates, total, strict=True):
        chosen = sorted(range(len(gate)), key=lambda e: (-gate[e], -e))[: attributes.get("k", 1)]
        whole = gate[chosen].sum() if attributes.get("normalize_routing_weights") else 1.0
        for e in chosen:
            hidden = real["w1"][e] @ row + (real["b1"][e] if "b1" in real else 0)
            made = real["w2"][e] @ _activated(hidden, attributes) + (real["b2"][e] if "b2" in real else 0)
            out += gate[e] / whole * made
    return total.reshape(x.shape)


def _activated(u: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    kind = attributes.get("activation_type", "relu")
    if kind != "swiglu":
        return ACTIVATIONS[kind](u)
    limit, alpha = attributes.get("swiglu_limit", np.inf), attributes.get("activation_alpha", 1.0)
    a, b = np.minimum(u[0::2], limit), np.clip(u[1::2], -limit, limit)
    return a / (1 + np.exp(-alpha * a)) * (b + attributes.get("activation_beta", 0.0))
