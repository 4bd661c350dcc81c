"""Cases: recurrent layers."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.op_cases.runtimes import Case, Node, Sampler

sample = Sampler(9)


def lstm(hidden: int, direction: str, *, bias: bool = True, state: bool = True, steps: int = 4) -> Case:
    directions = 2 if direction == "bidirectional" else 1
    shapes = [(steps, 3, 5), (directions, 4 * hidden, 5), (directions, 4 * hidden, hidden)]
    x, w, r = (sample.normal(*shape) for shape in shapes)
    b = sample.normal(directions, 8 * hidden) if bias else None
    h, c = (sample.normal(directions, 3, hidden) if state else None for _ in range(2))
    node = Node("LSTM", {"hidden_size": hidden, "direction": direction}, inputs=[x, w, r, b, None, h, c], outputs=3)
    return Case("lstm", [x, w, r, b, h, c], {"hidden": hidden, "direction": direction}, onnx=node, bound=64)


def gru(hidden: int, direction: str, *, before: bool, bias: bool = True, state: bool = True, steps: int = 4) -> Case:
    directions = 2 if direction == "bidirectional" else 1
    shapes = [(steps, 3, 5), (directions, 3 * hidden, 5), (directions, 3 * hidden, hidden)]
    x, w, r = (sample.normal(*shape) for shape in shapes)
    b = sample.normal(directions, 6 * hidden) if bias else None
    h = sample.normal(directions, 3, hidden) if state else None
    attributes = {"hidden_size": hidden, "direction": direction, "linear_before_reset": int(before)}
    node = Node("GRU", attributes, inputs=[x, w, r, b, None, h], outputs=2)
    fields = {"hidden": hidden, "direction": direction, "linear_before_reset": before}
    return Case("gru", [x, w, r, b, h], fields, onnx=node, bound=64)


def lstm_layer(*, biases: bool = True, bidirectional: bool = False, batch_first: bool = False) -> Case:
    directions = 2 if bidirectional else 1
    operands = [sample.normal(4, 3, 5), *(sample.normal(directions, 4 if batch_first else 3, 6) for _ in range(2))]
    shapes = [(24, 5), (24, 6), *([(24,)] * 2 if biases else [])]
    operands += [sample.normal(*shape) for _ in range(directions) for shape in shapes]

    def in_torch(x: Any, h: Any, c: Any, *weights: Any) -> Any:
        return torch.lstm(x, (h, c), weights, biases, 1, 0.0, False, bidirectional, batch_first)

    fields = {"biases": biases, "bidirectional": bidirectional, "batch_first": batch_first}
    return Case("lstm_layer", operands, fields, torch=in_torch, bound=64)


CASES = [
    lstm(6, "forward"),
    lstm(6, "forward", bias=False),
    lstm(1, "reverse", state=False),
    lstm(7, "bidirectional"),
    lstm(6, "bidirectional", bias=False, state=False, steps=1),
    gru(6, "forward", before=False),
    gru(6, "forward", before=True),
    gru(6, "reverse", before=True, bias=False),
    gru(1, "reverse", before=False, state=False),
    gru(7, "bidirectional", before=True),
    gru(6, "bidirectional", before=False, bias=False, state=False, steps=1),
    lstm_layer(),
    lstm_layer(biases=False),
    lstm_layer(bidirectional=True),
    lstm_layer(batch_first=True),
    lstm_layer(biases=False, bidirectional=True, batch_first=True),
]
