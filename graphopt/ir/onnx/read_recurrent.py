"""Reader of recurrent layers."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.ir.onnx.reading import CannotRead, Reader, Reading, Said

_FUNCTIONS = ("Sigmoid", "Tanh", "Tanh")
_GRU_FUNCTIONS = ("Sigmoid", "Tanh")


def lstm(n: Reading) -> Said:
    """Without lengths of its own for each sample (operand 4) and without peepholes (7)."""
    if n.opset < 7:
        raise CannotRead("an LSTM before opset 7")
    n.only("activations", _FUNCTIONS, 2 * _FUNCTIONS)
    n.only("input_forget", 0)
    n.only("layout", 0)
    fields = {"hidden": n.attr_int("hidden_size"), "direction": n.attr_string("direction", "forward")}
    return (n.operand(0), n.operand(1), n.operand(2), n.optional(3), n.optional(5), n.optional(6)), fields


def gru(n: Reading) -> Said:
    """Without lengths of its own for each sample (operand 4)."""
    if n.opset < 7:
        raise CannotRead("a GRU before opset 7")
    n.only("activations", _GRU_FUNCTIONS, 2 * _GRU_FUNCTIONS)
    n.only("layout", 0)
    fields = {
        "hidden": n.attr_int("hidden_size"),
        "direction": n.attr_string("direction", "forward"),
        "linear_before_reset": n.attr_flag("linear_before_reset"),
    }
    return (n.operand(0), n.operand(1), n.operand(2), n.optional(3), n.optional(5)), fields


READERS: Mapping[tuple[str, str], Reader] = {
    ("", "LSTM"): Reader("lstm", lstm, outputs=3),
    ("", "GRU"): Reader("gru", gru, outputs=2),
}
