"""Recurrent layers: each hidden unit has a row in every gate, and a column in what is made of the state."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.axes.analysis import Axes, Dims, rule
from graphopt.axes.rules.products import count_literal
from graphopt.axes.terms import Term
from graphopt.ir.graph import Call

GATES = "it numbers the gates"
DIRECTION = "it numbers the directions"
TIME = "it is time"


@rule("lstm")
def lstm(axes: Axes, call: Call) -> Sequence[Dims]:
    return _stacked(axes, call, 4)


@rule("gru")
def gru(axes: Axes, call: Call) -> Sequence[Dims]:
    return _stacked(axes, call, 3)


def _stacked(axes: Axes, call: Call, gates: int) -> Sequence[Dims]:
    """Weights are [directions, gates * hidden, ...], biases those of both."""
    x, w, r, b, *states = (None if o is None else axes.dims(o) for o in call.operands)
    assert x is not None and w is not None and r is not None
    hidden = axes.space.term(call.fields["hidden"])
    directions = axes.space.term(2 if call.fields["direction"] == "bidirectional" else 1, DIRECTION)
    _units(axes, call, x[2], w[1:], r[1:], hidden, 1, gates)
    if b is not None:
        axes.unify(b[1], (*axes.space.term(2 * gates, GATES), *hidden))
    for dims in (w, r, b, *states):
        if dims is not None:
            axes.unify(dims[0], directions)
    for state in states:
        if state is not None:
            axes.unify(state[1], x[1])
            axes.unify(state[2], hidden)
    axes.freeze(x[:1], TIME)
    count_literal(axes, call, "hidden", hidden)
    last = (directions, x[1], hidden)
    return [(x[0], *last), *[last] * len(states)]


@rule("lstm_layer")
def lstm_layer(axes: Axes, call: Call) -> Sequence[Dims]:
    """A direction has weights of its own, and as many hidden units."""
    x, h, c, *weights = (axes.dims(o) for o in call.operands)
    fields = call.fields
    each = 4 if fields["biases"] else 2
    directions = axes.space.term(2 if fields["bidirectional"] else 1, DIRECTION)
    hidden = h[2]
    for start in range(0, len(weights), each):
        w, r, *biases = weights[start : start + each]
        _units(axes, call, x[2], w, r, hidden, start + 3, 4)
        for bias in biases:
            axes.unify(bias[0], (*axes.space.term(4, GATES), *hidden))
    time, batch = (x[1], x[0]) if fields["batch_first"] else x[:2]
    for state in (h, c):
        for term, own in zip(state, (directions, batch, hidden), strict=True):
            axes.unify(term, own)
    axes.freeze([time], TIME)
    last = (directions, batch, hidden)
    return [(*x[:2], (*directions, *hidden)), last, last]


def _units(axes: Axes, call: Call, given: Term, w: Dims, r: Dims, hidden: Term, place: int, gates: int) -> None:
    """One or all directions, of which w is the operand at `place` and r the next."""
    for term in (w[0], r[0]):
        axes.unify(term, (*axes.space.term(gates, GATES), *hidden))
    axes.unify(given, w[1])
    axes.unify(r[1], hidden)
    axes.contract(call, w[1], 0, place)
    axes.contract(call, hidden, place + 1)
