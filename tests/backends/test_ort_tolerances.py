import pytest
import torch
from onnxscript import rewriter

import graphopt
from graphopt.backends import ort_tolerances

X = torch.tensor([0.0, 1.0, -3.0, 2e-15])
Y = torch.tensor([0.0, 0.0, 2.0, 1e-15])


class Nearly(torch.nn.Module):
    """Numbers near 0 and 1 that count."""

    def forward(self, x, y):
        return x / (y + 1e-15), 1e-9 + x, x - 1e-10, x * 1.000003, 0.999998 * x, x / 1.000004


def check(lowered):
    module = Nearly().eval()
    for got, expected in zip(lowered(X, Y), module(X, Y), strict=True):
        torch.testing.assert_close(got, expected, rtol=2e-7, atol=0)


def test_what_is_nearly_nothing_to_add_or_to_multiply_by_is_kept():
    check(graphopt.lower(Nearly().eval(), "onnxruntime", example_inputs=(X, Y)))


@pytest.mark.parametrize("change", ["no rules", "no patterns"])
def test_an_onnxscript_with_other_parts_keeps_it_too(monkeypatch, change):
    if change == "no rules":
        monkeypatch.delattr(rewriter, "_DEFAULT_REWRITE_RULES")
    else:
        monkeypatch.setattr(rewriter, "_DEFAULT_REWRITE_RULES", (object(),))
    with ort_tolerances.exact_simplifications() as exact:
        assert not exact
    check(graphopt.lower(Nearly().eval(), "onnxruntime", example_inputs=(X, Y)))


def test_the_rules_of_others_are_left_as_they_were():
    before = [(c._rel_tol, c._abs_tol) for c in ort_tolerances._constants()]
    with pytest.raises(KeyError), ort_tolerances.exact_simplifications() as exact:
        assert exact and {(c._rel_tol, c._abs_tol) for c in ort_tolerances._constants()} == {(0.0, 0.0)}
        raise KeyError
    assert [(c._rel_tol, c._abs_tol) for c in ort_tolerances._constants()] == before
