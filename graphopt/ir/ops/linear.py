"""Matrix products, and attention, which is two of them."""

from __future__ import annotations

import math

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.normalization import softmax
from graphopt.ir.ops.spec import op


@op()
def matmul(d: Domain, a: Tensor, b: Tensor) -> Tensor:
    """a @ b as numpy has it: leading axes broadcast; a 1-D operand is a row on the left, a column on the
    right."""
    return d.matmul(a, b)


@op()
def linear(d: Domain, x: Tensor, w: Tensor, b: Tensor | None = None, *, trans_w: bool = True) -> Tensor:
    """x[..., in] @ w^T + b with w[out, in]; w is [in, out] and not transposed if trans_w is False."""
    y = d.matmul(x, np.transpose(w) if trans_w else w)
    return y if b is None else y + b


@op()
def grouped_matmul(d: Domain, x: Tensor, w: Tensor, ends: Tensor) -> Tensor:
    """x[S, in] in consecutive groups of rows, each times its own matrix of w[E, in, out]: group e is the rows from
    ends[e - 1] (from 0 for the first) to ends[e], excluded. Rows behind the last group give 0."""
    y = np.zeros_like(x, shape=(x.shape[0], w.shape[2]))
    start = 0
    for expert, end in enumerate(int(e) for e in np.ravel(ends)):
        if end > start:
            y[start:end] = d.matmul(x[start:end], w[expert])
            start = end
    return y


@op()
def einsum(d: Domain, *xs: Tensor, equation: str) -> Tensor:
    """Einstein's summation as numpy has it; "..." stands for axes that broadcast."""
    return d.einsum(equation, *xs)


@op()
def attention(
    d: Domain,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    gqa: bool = False,
) -> Tensor:
    """softmax(scale * q @ k^T + mask) @ v, of q[B,H,L,E], k[B,H,S,E], v[B,H,S,F].

    A bool mask says what to keep, a real one is added; a query that keeps no key gives 0. causal: query i
    sees keys 0..i. gqa: k and v have fewer heads, each serving H / heads consecutive ones of q.
    """
    if gqa:
        k, v = (np.repeat(t, q.shape[1] // t.shape[1], axis=1) for t in (k, v))
    scores = d.matmul(q * scale, np.swapaxes(k, -1, -2))
    if causal:
        seen = np.tril(np.ones(scores.shape[-2:], dtype=bool))
        scores = d.where(seen, scores, -math.inf)
    if mask is not None:
        scores = scores + mask if d.is_real(mask) else d.where(mask, scores, -math.inf)
    weights = softmax(d, scores, axis=3)
    if mask is not None:
        blind = d.equal(d.reduce_max(scores, (3,), True), -math.inf)
        weights = d.where(blind, 0.0, weights)
    return d.matmul(weights, v)


@op()
def multi_head_attention(
    d: Domain,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    heads: int,
    scale: float,
) -> Tensor:
    """softmax(scale * q @ k^T + bias) @ v for each head, of q[B,L,H*E], k[B,S,H*E], v[B,S,H*F]; gives [B,L,H*F].

    Features of one head are consecutive. bias[B or 1, H or 1, L, S]; a query that keeps no key gives NaN.
    """
    q, k, v = (_split_heads(t, heads) for t in (q, k, v))
    scores = d.matmul(q * scale, np.swapaxes(k, -1, -2))
    weights = softmax(d, scores if bias is None else scores + bias, axis=3)
    out = np.swapaxes(d.matmul(weights, v), 1, 2)
    return np.reshape(out, (*out.shape[:2], out.shape[2] * out.shape[3]))


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """x[B,S,H*E] as [B,H,S,E]."""
    batch, length, width = x.shape
    return np.swapaxes(np.reshape(x, (batch, length, heads, width // heads)), 1, 2)
