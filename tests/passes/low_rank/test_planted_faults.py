"""Wrong chains are caught, each undone alone: what was declared is not what was written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_low_rank import INFINITE, batches, exported, feed_forward

import graphopt
from graphopt.ir.weights import ArrayRef
from graphopt.passes.low_rank import rules


def other_factor(split: Any, m: Any, build: Any) -> None:
    """A factor that belongs to another layer of the same shape."""
    first, second = split.factors
    split.factors = (first, ArrayRef(second.numpy()[::-1].copy()))


def small_error(split: Any, m: Any, build: Any) -> None:
    """A factor that is off by a part in a hundred in one element."""
    first, second = split.factors
    data = first.numpy().copy()
    data[0, 0] = data[0, 0] * 1.5 + data.dtype.type(0.1)
    split.factors = (ArrayRef(data), second)


def scaled(split: Any, m: Any, build: Any) -> None:
    """A factor that is too large by a part in fifty."""
    first, second = split.factors
    split.factors = (ArrayRef((first.numpy() * first.numpy().dtype.type(1.02)).astype(first.numpy().dtype)), second)


def no_bias(split: Any, m: Any, build: Any) -> None:
    m.bindings.constants.pop("b", None)


FAULTS = [other_factor, small_error, scaled, no_bias]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["fx float32", "fx bfloat16", "onnx float32"])
def test_a_wrong_chain_is_undone_and_the_right_one_kept(fault: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, dtype = kind.split()
    module, data = feed_forward().to(getattr(torch, dtype)), [x.to(getattr(torch, dtype)) for x in batches()]
    right = rules.SplitLinear.rewrite

    def wrong_for_the_first(self: Any, m: Any, build: Any) -> Any:
        if m.w.shape[0 if self.factors[0].shape[0] != 32 else 1] != 32 or self.factors[0].shape[0] != 32:
            return right(self, m, build)
        kept = self.factors
        try:
            fault(self, m, build)
            return right(self, m, build)
        finally:
            self.factors = kept

    for rule in (rules.SplitLinear, rules.SplitMatmul):
        monkeypatch.setattr(rule, "rewrite", wrong_for_the_first)
    if storage == "fx":
        arguments: dict[str, Any] = {"example_inputs": (data[0],), "calibration": [(x,) for x in data]}
        model: Any = module
    else:
        arguments, model = {"calibration": [(x.numpy(),) for x in data]}, exported(module, data[0])
    result = graphopt.optimize(model, ["low-rank{rank=8}"], budget=INFINITE, **arguments)
    found = [a for record in result.report.passes for a in record.applications]
    assert [a.status for a in found] == ["undone", "kept"], [a.reason for a in found]
