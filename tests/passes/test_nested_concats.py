"""Nested concatenations: flattened where the nest is nobody else's."""

from __future__ import annotations

import numpy as np
import pytest
from clean_up_graphs import assert_same_results, clean, kept_rules, onnx_model, op_types

FEEDS = {name: np.full((2, 3), i, np.float32) for i, name in enumerate("xyz")}
HEAD = "agraph (float[2, 3] x, float[2, 3] y, float[2, 3] z)"


def test_a_deep_nest_becomes_one_in_one_application() -> None:
    model = onnx_model(
        HEAD
        + """ => (float[8, 3] r) {
        a = Concat <axis = 0> (x, y)
        b = Concat <axis = 0> (z, a)
        r = Concat <axis = 0> (b, y)
    }"""
    )
    result = clean(model)
    assert op_types(result.model) == ["Concat"]
    assert kept_rules(result)["flatten-concats"] == 1
    assert_same_results(model, result.model, FEEDS)


def test_another_axis_another_reader_and_an_output_keep_a_concat() -> None:
    for text in (
        """ => (float[4, 6] r) {
            s = Concat <axis = 0> (x, y) t = Concat <axis = 0> (z, z) r = Concat <axis = 1> (s, t)
        }""",
        """ => (float[6, 3] r, float[4, 3] n) {
            s = Concat <axis = 0> (x, y) r = Concat <axis = 0> (s, z) n = Neg(s)
        }""",
        " => (float[6, 3] r, float[4, 3] s) { s = Concat <axis = 0> (x, y) r = Concat <axis = 0> (s, z) }",
        " => (float[8, 3] r) { s = Concat <axis = 0> (x, y) r = Concat <axis = 0> (s, s) }",
    ):
        model = onnx_model(HEAD + text)
        result = clean(model)
        assert kept_rules(result)["flatten-concats"] == 0
        assert sorted(op_types(result.model)) == sorted(op_types(model))
        assert_same_results(model, result.model, FEEDS)


def test_a_nest_in_a_torch_model_is_flattened() -> None:
    torch = pytest.importorskip("torch")

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.cat([x, -x], 1), torch.cat([x, torch.cat([x, x * 2], 1)], 1)], 1)

    module, x = Module(), torch.ones(2, 3)
    result = clean(module, example_inputs=(x,))
    assert kept_rules(result)["flatten-concats"] == 1
    assert torch.equal(result.model(x), module(x))
