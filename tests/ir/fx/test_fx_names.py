"""Names of weights that passes add."""

from __future__ import annotations

from graphopt.ir.fx.names import Names


def test_a_constant_has_a_name_that_no_node_can_have() -> None:
    names = Names(["conv.weight"])
    assert names.constant("expand") == "constant.expand"
    assert names.constant("expand") == "constant.expand_1"
    assert names.constant("conv.weight") == "conv.weight_1"


def test_a_weight_of_that_name_is_no_module_of_constants() -> None:
    assert Names(["constant"]).constant("expand") == "constant_expand"
