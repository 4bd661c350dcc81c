"""Writer of recurrent layers."""

from __future__ import annotations

import torch

from graphopt.ir.fx.write import Plan, Writing, writes


@writes("lstm_layer")
def lstm_layer(w: Writing) -> Plan:
    x, h, c, *weights = w.all_tensors()
    layers, dropout, train = 1, 0.0, False
    biases, bidirectional, batch_first = (w.field(n) for n in ("biases", "bidirectional", "batch_first"))
    arguments = (x, [h, c], weights, biases, layers, dropout, train, bidirectional, batch_first)
    return Plan(torch.ops.aten.lstm.input, arguments)
