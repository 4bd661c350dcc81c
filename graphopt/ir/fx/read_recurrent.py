"""Reader of recurrent layers."""

from __future__ import annotations

from graphopt.ir.fx.read import Reading, Said, reads


@reads("lstm_layer", "lstm.input")
def lstm_layer(r: Reading) -> Said:
    """One layer: of several, loading makes one after the other."""
    h, c = r["hx"]
    operands = (r["input"], h, c, *r["params"])
    r.keeps_dtype(*operands)
    r.require(r["num_layers"] == 1, "several layers")
    fields = {"biases": r["has_biases"], "bidirectional": r["bidirectional"], "batch_first": r["batch_first"]}
    expected = (4 if fields["biases"] else 2) * (2 if fields["bidirectional"] else 1)
    r.require(len(r["params"]) == expected, "the state is projected")
    return Said(operands, fields, outputs=3)
