"""Mixtures of experts."""

from __future__ import annotations

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.elementwise import gelu, relu, sigmoid, silu
from graphopt.ir.ops.normalization import softmax
from graphopt.ir.ops.reduction import topk
from graphopt.ir.ops.spec import op


@op()
def moe(
    d: Domain,
    x: Tensor,
    logits: Tensor,
    w1: Tensor,
    w2: Tensor,
    b1: Tensor | None = None,
    b2: Tensor | None = None,
    *,
    k: int,
    activation: str,
    normalize: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
    limit: float | None = None,
) -> Tensor:
    """sum over the k experts e of each token of gate[e] * (act(x @ w1[e]^T + b1[e]) @ w2[e]^T + b2[e]), of tokens
    x[T, in] or [B, S, in] (T = B * S) and weights w1[E, f, in], w2[E, in, h].

    The k greatest of softmax(logits[T, E]) are chosen, of equals the last, and are the gates; normalize: divided by
    their sum. A gate of zero adds nothing, whatever its expert computes. activation is relu, gelu (with tanh), silu,
    identity (h = f) or swiglu (h = f / 2): of a and b, which take turns, min(a, limit) * sigmoid(alpha * min(a, limit))
    * (clamp(b, -limit, limit) + beta).
    """
    tokens, last = np.reshape(x, (-1, x.shape[-1])), logits.shape[1] - 1
    gates, places = topk(d, np.flip(softmax(d, logits, axis=1), axis=1), k=k, axis=1)
    gates = gates / np.sum(gates, axis=1, keepdims=True) if normalize else gates
    total = np.zeros_like(tokens)
    for expert in range(last + 1):
        hidden = d.matmul(tokens, np.transpose(w1[expert]))
        hidden = _activated(d, hidden if b1 is None else hidden + b1[expert], activation, alpha, beta, limit)
        made = d.matmul(hidden, np.transpose(w2[expert]))
        chosen = d.where(d.equal(places, last - expert), gates, 0.0)
        gate = np.sum(chosen, axis=1, keepdims=True)
        total = total + d.where(d.equal(gate, 0.0), 0.0, gate * (made if b2 is None else made + b2[expert]))
    return np.reshape(total, x.shape)


def _activated(d: Domain, x: Tensor, activation: str, alpha: float, beta: float, limit: float | None) -> Tensor:
    match activation:
        case "relu":
            return relu(d, x)
        case "gelu":
            return gelu(d, x, approximate="tanh")
        case "silu":
            return silu(d, x)
        case "identity":
            return x
        case "swiglu":
            a, b = x[:, 0::2], x[:, 1::2]
            if limit is not None:
                a, b = d.minimum(a, limit), d.maximum(d.minimum(b, limit), -limit)
            return a * sigmoid(d, alpha * a) * (b + beta)
    raise ValueError(f"moe: activation must be relu, gelu, silu, identity or swiglu, got {activation!r}")
