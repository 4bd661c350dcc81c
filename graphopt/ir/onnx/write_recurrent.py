"""Writer of recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.ir.onnx.drafting import Draft, Fields, Slot, Writer


def lstm(d: Draft, f: Fields) -> list[Slot]:
    weights = [d.operand(i, name) for i, name in enumerate(("x", "w", "r"))]
    direction = None if f["direction"] == "forward" else str(f["direction"])
    attributes = {"hidden_size": int(f["hidden"]), "direction": direction}
    operands = [*weights, d.optional(3), None, d.optional(4), d.optional(5)]
    return d.node("LSTM", operands, attributes, since=7, outputs=3)


def gru(d: Draft, f: Fields) -> list[Slot]:
    weights = [d.operand(i, name) for i, name in enumerate(("x", "w", "r"))]
    attributes = {
        "hidden_size": int(f["hidden"]),
        "direction": None if f["direction"] == "forward" else str(f["direction"]),
        "linear_before_reset": 1 if f["linear_before_reset"] else None,
    }
    return d.node("GRU", [*weights, d.optional(3), None, d.optional(4)], attributes, since=7, outputs=2)


WRITERS: Mapping[str, Writer] = {"lstm": lstm, "gru": gru}
