"""Cases: matrix products and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.op_cases.runtimes import Case, Node, Sampler

sample = Sampler(3)
W = sample.normal(5, 4)


def matmul(a: tuple[int, ...], b: tuple[int, ...]) -> Case:
    return Case(
        "matmul", [sample.normal(*a), sample.normal(*b)], onnx=Node("MatMul"), torch=torch.matmul, bound=64
    )


def einsum(equation: str, *shapes: tuple[int, ...]) -> Case:
    return Case(
        "einsum",
        [sample.normal(*s) for s in shapes],
        {"equation": equation},
        onnx=Node("Einsum", {"equation": equation}),
        torch=lambda *t: torch.einsum(equation, *t),
        bound=64,
    )


def attention(
    q: tuple[int, ...],
    k: tuple[int, ...],
    mask: np.ndarray | None = None,
    *,
    scale: float = 0.3,
    causal: bool = False,
) -> Case:
    gqa = q[1] != k[1]
    operands = [sample.normal(*q), sample.normal(*k), sample.normal(*k[:-1], 6), mask]

    def in_torch(q: Any, k: Any, v: Any, mask: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=gqa)

    return Case(
        "attention",
        operands,
        {"scale": scale, "causal": causal, "gqa": gqa},
        onnx=Node("Attention", {"scale": scale, "is_causal": int(causal)}, opset=23),
        torch=None if causal and mask is not None else in_torch,
        bound=64,
    )


def multi_head_attention(
    heads: int,
    bias: np.ndarray | None = None,
    *,
    batch: int = 2,
    features: int = 4,
    values: int = 6,
    scale: float = 0.3,
) -> Case:
    widths = [heads * features, heads * features, heads * values]
    operands = [sample.normal(batch, n, w) for n, w in zip((4, 5, 5), widths, strict=True)]
    attributes = {"num_heads": heads, "scale": scale}
    return Case(
        "multi_head_attention",
        [*operands, bias],
        {"heads": heads, "scale": scale},
        onnx=Node(
            "MultiHeadAttention", attributes, inputs=[*operands, None, None, bias], domain="com.microsoft"
        ),
        bound=64,
    )


def moe(
    k: int, activation: str, *, biased: bool = False, tied: bool = False, batch: bool = False, **fields: Any
) -> Case:
    experts, width, hidden, halves = 5, 4, 6, 2 if activation == "swiglu" else 1
    x = sample.normal(*((2, 6) if batch else (12,)), width)
    logits = sample.integers(0, 2, 12, experts).astype(np.float32) if tied else sample.normal(12, experts)
    w1, w2 = sample.normal(experts, halves * hidden, width), sample.normal(experts, width, hidden)
    b1, b2 = (sample.normal(experts, halves * hidden), sample.normal(experts, width)) if biased else (None, None)
    attributes = {"k": k, "activation_type": activation}
    attributes["normalize_routing_weights"] = int(fields.get("normalize", False))
    if activation == "swiglu":
        named = {"activation_alpha": "alpha", "activation_beta": "beta", "swiglu_limit": "limit"}
        attributes |= {"swiglu_fusion": 1} | {a: fields[f] for a, f in named.items() if f in fields}
    node = Node("MoE", attributes, inputs=[x, logits, w1, b1, w2, b2], domain="com.microsoft")
    fields |= {"k": k, "activation": activation}
    return Case("moe", [x, logits, w1, w2, b1, b2], fields, onnx=node, bound=64)


KEEP = sample.bools(4, 5)
KEEP[:, 0] = True
BLIND = KEEP.copy()
BLIND[2] = False
MATRICES = [
    matmul((3, 4), (4, 5)),
    matmul((2, 1, 3, 4), (5, 4, 2)),
    matmul((4,), (4,)),
    matmul((4,), (2, 4, 3)),
    matmul((2, 3, 4), (4,)),
    matmul((0, 4), (4, 3)),
    matmul((3, 0), (0, 2)),
    Case("matmul", [sample.integers(-5, 5, 3, 4), sample.integers(-5, 5, 4, 2)], onnx=Node("MatMul")),
    Case(
        "linear",
        [sample.normal(3, 4), W, sample.normal(5)],
        onnx=Node("Gemm", {"transB": 1}),
        torch=F.linear,
        bound=64,
    ),
    Case("linear", [sample.normal(3, 4), W], onnx=Node("Gemm", {"transB": 1}), torch=F.linear, bound=64),
    Case("linear", [sample.normal(2, 3, 4), W, sample.normal(5)], torch=F.linear, bound=64),
    Case(
        "linear",
        [sample.normal(3, 5), W, sample.normal(4)],
        {"trans_w": False},
        onnx=Node("Gemm"),
        torch=lambda x, w, b: torch.addmm(b, x, w),
        bound=64,
    ),
    einsum("bhij,bhjk->bhik", (2, 3, 4, 5), (2, 3, 5, 2)),
    einsum("ij,j->i", (3, 4), (4,)),
    einsum("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)),
    einsum("i...,i...->...", (3, 2, 4), (3, 2, 1)),
    einsum("bij->bji", (2, 3, 4)),
    einsum("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
]
ATTENTIONS = [
    attention((2, 3, 4, 8), (2, 3, 5, 8)),
    attention((2, 3, 4, 8), (2, 3, 5, 8), scale=1.0),
    attention((2, 3, 4, 8), (2, 3, 5, 8), KEEP),
    attention((2, 3, 4, 8), (2, 3, 5, 8), BLIND),
    attention((2, 3, 4, 8), (2, 3, 5, 8), np.where(BLIND, np.float32(0.5), np.float32(-np.inf))),
    attention((2, 3, 4, 8), (2, 3, 5, 8), sample.normal(2, 1, 4, 5)),
    attention((2, 3, 5, 8), (2, 3, 5, 8), causal=True),
    attention((2, 3, 4, 8), (2, 3, 5, 8), causal=True),
    attention((2, 3, 4, 8), (2, 3, 5, 8), sample.normal(4, 5), causal=True),
    attention((2, 6, 4, 8), (2, 2, 5, 8)),
    attention((2, 6, 4, 8), (2, 2, 5, 8), KEEP),
]
HEADS = [
    multi_head_attention(1),
    multi_head_attention(3),
    multi_head_attention(2, values=4, scale=-1.5),
    multi_head_attention(3, batch=0),
    multi_head_attention(3, sample.normal(2, 3, 4, 5)),
    multi_head_attention(3, sample.normal(1, 1, 4, 5)),
    multi_head_attention(2, np.where(BLIND, np.float32(0.5), np.float32(-np.inf))[None, None]),
]
GROUPS = [
    Case(
        "grouped_matmul",
        [sample.normal(6, 4), sample.normal(3, 4, 8), np.asarray(ends, np.int32)],
        torch=torch.ops.aten._grouped_mm,
        bound=64,
    )
    for ends in ((2, 2, 6), (0, 5, 6))
]
MIXTURES = [
    *(moe(2, activation) for activation in ("relu", "gelu", "silu", "identity", "swiglu")),
    moe(1, "relu", biased=True, normalize=True),
    moe(3, "silu", tied=True, normalize=True),
    moe(5, "swiglu", biased=True, batch=True, alpha=1.702, beta=1.0, limit=0.5),
]
CASES = MATRICES + ATTENTIONS + HEADS + GROUPS + MIXTURES
