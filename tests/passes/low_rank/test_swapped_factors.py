"""Factors that are transposed, in the wrong order or another layer's: each such chain is undone, and no other."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from low_rank_layers import IN, INFINITE, PLAIN, RUNTIMES, TRANSPOSED, Kind, conv

import graphopt
from graphopt.ir.convert import from_scratch
from graphopt.ir.scratch import ScratchGraph
from graphopt.ir.weights import Array, ArrayRef
from graphopt.passes.low_rank import rules
from graphopt.passes.low_rank.candidates import Candidate

# As many outputs as inputs, so that wrong factors fit in shape.
SQUARE = {
    "linear": Kind("linear", (96, IN), (IN, IN), True, TRANSPOSED, out=IN),
    "linear, untransposed": Kind("linear", (96, IN), (IN, IN), True, PLAIN, out=IN),
    "matmul": Kind("matmul", (96, IN), (IN, IN), out=IN),
    "table": Kind("gather", (8, 12), (IN, IN), False, options=" embedding=true", out=IN),
    "conv 1x1": conv(1, 1, out=IN),
    "conv 3x3, channels": conv(3, 3, out=IN, pads=1),
    "conv 3x3, spatial": conv(3, 3, out=IN, pads=1, split="spatial"),
    "conv 3x3, tucker": conv(3, 3, out=IN, pads=1, split="tucker"),
}
Factors = list[Array]


def transposed(own: Factors, other: Factors) -> Factors:
    """The first factor's numbers in the order of its transpose."""
    return [np.ascontiguousarray(own[0].T).reshape(own[0].shape), *own[1:]]


def swapped(own: Factors, other: Factors) -> Factors:
    """The last factor first."""
    return [np.swapaxes(factor, 0, 1) for factor in reversed(own)]


def last_of_another(own: Factors, other: Factors) -> Factors:
    """The last factor of another layer of the same shape."""
    return [*own[:-1], other[-1]]


def all_of_another(own: Factors, other: Factors) -> Factors:
    """The chain of another layer of the same shape."""
    return other


def three(kind: Kind) -> ScratchGraph:
    """Three layers of one kind and one input, summed."""
    rng = np.random.default_rng(3)
    graph = ScratchGraph()
    x = kind.input(graph)
    first, *others = (kind.append(graph, x, rng) for _ in range(3))
    for other in others:
        first = graph.append("add", first, graph.append("relu", other, types=[other.type]), types=[other.type])
    graph.add_output(first)
    return graph


def optimised(name: str, storage: str, skip: str = "") -> tuple[dict[str, str], list[Array]]:
    """The status of each layer, and the outputs."""
    kind = SQUARE[name]
    data = kind.batches()
    spec = f"low-rank{{rank=6{kind.options}{skip}}}"
    model = from_scratch(three(kind), storage)
    result = graphopt.optimize(model, [spec], budget=INFINITE, calibration=[(x,) for x in data])
    found = {a.nodes[0]: a.status for record in result.report.passes for a in record.applications}
    return found, outputs(result, storage, data[0])


def outputs(result: Any, storage: str, x: Array) -> list[Array]:
    from graphopt.ir.fx.tensors import to_numpy, to_torch

    run = result.lower(RUNTIMES[storage])
    return list(run(x)) if storage == "onnx" else [to_numpy(y) for y in run(to_torch(x))]


@cache
def right(name: str, storage: str) -> tuple[str, list[Array]]:
    """The layer in the middle, and the outputs where it is left alone."""
    statuses, _ = optimised(name, storage)
    assert list(statuses.values()) == ["kept"] * 3
    middle = sorted(statuses)[1]
    return middle, optimised(name, storage, f" skip={middle}")[1]


@pytest.mark.parametrize("fault", [transposed, swapped, last_of_another, all_of_another])
@pytest.mark.parametrize("storage", ["onnx", "fx"])
@pytest.mark.parametrize("name", SQUARE)
def test_a_chain_of_wrong_factors_is_undone_alone(
    name: str, storage: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle, wanted = right(name, storage)
    seen: dict[str, Factors] = {}
    split = Candidate.split

    def named(self: Candidate, layer: Any) -> Any:
        made = split(self, layer)
        made.layer = layer.name
        seen[layer.name] = [factor.numpy() for factor in made.factors]
        return made

    monkeypatch.setattr(Candidate, "split", named)
    for rule in (rules.SplitLinear, rules.SplitGather, rules.SplitConv):
        monkeypatch.setattr(rule, "rewrite", with_fault(rule.rewrite, fault, middle, seen))
    statuses, got = optimised(name, storage)
    assert statuses.pop(middle) == "undone" and list(statuses.values()) == ["kept"] * 2
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def with_fault(rewrite: Any, fault: Any, middle: str, seen: dict[str, Factors]) -> Any:
    """`rewrite` with the factors that `fault` makes of those of the layer `middle` and of another one."""

    def wrong(self: Any, m: Any, build: Any) -> Any:
        others = [factors for name, factors in seen.items() if name != middle]
        if getattr(self, "layer", None) != middle or not others:
            return rewrite(self, m, build)
        kept = self.factors
        made = fault([factor.numpy() for factor in kept], others[0])
        self.factors = tuple(ArrayRef(np.ascontiguousarray(factor)) for factor in made)
        try:
            return rewrite(self, m, build)
        finally:
            self.factors = kept

    return wrong
