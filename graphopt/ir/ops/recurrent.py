"""Layers that carry a state from step to step: long short-term memory (Hochreiter & Schmidhuber 1997) and gated
recurrent units (Cho et al. 2014).

LSTM: c' = sigmoid(forget) * c + sigmoid(input) * tanh(cell), h' = sigmoid(output) * tanh(c'), where the four gates are
what one matrix makes of x and another of h. Storages keep the matrices in two ways, each of which is an op.
"""

from __future__ import annotations

import numpy as np

from graphopt.ir.ops.domain import Domain, Tensor
from graphopt.ir.ops.elementwise import sigmoid
from graphopt.ir.ops.spec import op

_BACKWARDS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


@op(outputs=3)
def lstm(
    d: Domain,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    h: Tensor | None = None,
    c: Tensor | None = None,
    *,
    hidden: int,
    direction: str = "forward",
) -> tuple[Tensor, ...]:
    """y[T,D,B,H] of x[T,B,I], and the last h and c[D,B,H], for w[D,4H,I], r[D,4H,H] and b[D,8H], that of w first.

    The gates stand in the order input, output, forget, cell. direction: "forward", "reverse", or "bidirectional" for
    D = 2. h and c start at 0 if they are absent.
    """
    backwards = _directions("lstm", r, 4, hidden, direction)
    zeros = d.full((x.shape[1], hidden), 0.0, "float32")
    found = []
    for i, turned in enumerate(backwards):
        start = (zeros if h is None else h[i], zeros if c is None else c[i])
        bias = d.number(0.0) if b is None else b[i, : 4 * hidden] + b[i, 4 * hidden :]
        found.append(_run(d, x, w[i], r[i], bias, start, "iofc", turned))
    return np.stack([y for y, _, _ in found], 1), np.stack([h for _, h, _ in found]), np.stack([c for _, _, c in found])


@op(outputs=3)
def lstm_layer(
    d: Domain,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    *weights: Tensor,
    biases: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, ...]:
    """y[T,B,D*H] of x[T,B,I], and the last h and c[D,B,H]; x and y are [B,T,...] if batch_first.

    weights are, for each direction, [4H,I] for x, [4H,H] for h and, if biases, [4H] for both. The gates stand in the
    order input, forget, cell, output.
    """
    directions = 2 if bidirectional else 1
    each = 4 if biases else 2
    if len(weights) != directions * each:
        raise ValueError(f"lstm_layer: {len(weights)} weights for {directions} directions")
    steps = np.swapaxes(x, 0, 1) if batch_first else x
    found = []
    for i in range(directions):
        w, r, *own = weights[i * each : (i + 1) * each]
        bias = own[0] + own[1] if biases else d.number(0.0)
        found.append(_run(d, steps, w, r, bias, (h[i], c[i]), "ifco", i == 1))
    y = np.concatenate([y for y, _, _ in found], 2)
    last = (np.stack([h for _, h, _ in found]), np.stack([c for _, _, c in found]))
    return (np.swapaxes(y, 0, 1) if batch_first else y, *last)


@op(outputs=2)
def gru(
    d: Domain,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    h: Tensor | None = None,
    *,
    hidden: int,
    direction: str = "forward",
    linear_before_reset: bool = False,
) -> tuple[Tensor, ...]:
    """y[T,D,B,H] of x[T,B,I], and the last h[D,B,H], for w[D,3H,I], r[D,3H,H] and b[D,6H], that of w first.

    h' = (1 - z) * tanh(new) + z * h with z = sigmoid(update). The gates stand in the order update, reset, new. What the
    matrix and the bias of h add to new is multiplied by sigmoid(reset) if linear_before_reset, else h is before the
    matrix. direction and absent h as for `lstm`.
    """
    backwards = _directions("gru", r, 3, hidden, direction)
    zeros = d.full((x.shape[1], hidden), 0.0, "float32")
    found = []
    for i, turned in enumerate(backwards):
        no_bias = d.full((3 * hidden,), 0.0, "float32")
        given_bias, own = (no_bias, no_bias) if b is None else np.split(b[i], 2)
        given = d.matmul(x, np.transpose(w[i])) + given_bias
        start = zeros if h is None else h[i]
        found.append(_run_gru(d, given, r[i], own, start, turned, linear_before_reset))
    return np.stack([y for y, _ in found], 1), np.stack([last for _, last in found])


def _directions(op: str, r: Tensor, gates: int, hidden: int, direction: str) -> tuple[bool, ...]:
    """For each direction whether it goes backwards. Raises ValueError if `r` has not as many matrices for h."""
    backwards = _BACKWARDS[direction]
    if r.shape != (len(backwards), gates * hidden, hidden):
        raise ValueError(f"{op}: r{r.shape} for {len(backwards)} directions of {hidden} units")
    return backwards


def _run_gru(
    d: Domain, given: Tensor, r: Tensor, bias: Tensor, h: Tensor, backwards: bool, linear_before_reset: bool
) -> tuple[Tensor, Tensor]:
    """One direction of which `given` is what x makes at every step: h at every step, and the last."""
    hidden = h.shape[1]
    gates, new = np.transpose(r[: 2 * hidden]), np.transpose(r[2 * hidden :])
    found = {}
    for t in reversed(range(len(given))) if backwards else range(len(given)):
        z, reset = np.split(sigmoid(d, given[t][:, : 2 * hidden] + d.matmul(h, gates) + bias[: 2 * hidden]), 2, axis=1)
        if linear_before_reset:
            added = reset * (d.matmul(h, new) + bias[2 * hidden :])
        else:
            added = d.matmul(reset * h, new) + bias[2 * hidden :]
        h = (d.number(1.0) - z) * d.tanh(given[t][:, 2 * hidden :] + added) + z * h
        found[t] = h
    return np.stack([found[t] for t in range(len(given))]), h


def _run(
    d: Domain, x: Tensor, w: Tensor, r: Tensor, bias: Tensor, start: tuple[Tensor, Tensor], order: str, backwards: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One direction: h at every step, and the last h and c."""
    h, c = start
    given = d.matmul(x, np.transpose(w)) + bias
    steps = range(len(x))
    found = {}
    for t in reversed(steps) if backwards else steps:
        gates = np.split(given[t] + d.matmul(h, np.transpose(r)), 4, axis=1)
        i, f, g, o = (gates[order.index(name)] for name in "ifco")
        c = sigmoid(d, f) * c + sigmoid(d, i) * d.tanh(g)
        h = sigmoid(d, o) * d.tanh(c)
        found[t] = h
    return np.stack([found[t] for t in steps]), h, c
