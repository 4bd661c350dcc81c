"""Experts that are all computed for every token and weighted by gates that are zero where they were not picked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from dense_checks import WIDE, exported, is_lowered, lowered
from torch.nn import functional as F

import graphopt

EXPERTS, K, HIDDEN = 6, 2, 12
Gating = Callable[[torch.Tensor], list[torch.Tensor]]
"""From the scores of the experts [T, E] to a gate [T, 1] for each."""


def columns(gates: torch.Tensor) -> list[torch.Tensor]:
    return [gates[:, e : e + 1] for e in range(EXPERTS)]


def best(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights, ids = torch.topk(torch.softmax(scores, -1), K, -1)
    return weights / weights.sum(-1, keepdim=True), ids


def scattered(scores: torch.Tensor) -> list[torch.Tensor]:
    weights, ids = best(scores)
    return columns(torch.zeros_like(scores).scatter(1, ids, weights))


def split(scores: torch.Tensor) -> list[torch.Tensor]:
    weights, ids = best(scores)
    return list(torch.zeros_like(scores).scatter(1, ids, weights).split(1, 1))


def compared(scores: torch.Tensor) -> list[torch.Tensor]:
    weights, ids = best(scores)
    return [((ids == e) * weights).sum(-1, keepdim=True) for e in range(EXPERTS)]


def chosen_by_where(scores: torch.Tensor) -> list[torch.Tensor]:
    weights, ids = best(scores)
    return [torch.where(ids == e, weights, 0.0).sum(-1)[:, None] for e in range(EXPERTS)]


def one_hot(scores: torch.Tensor) -> list[torch.Tensor]:
    weights, ids = best(scores)
    masks = F.one_hot(ids, EXPERTS).permute(2, 1, 0)
    return [(masks[e].to(weights.dtype) * weights.T).sum(0)[:, None] for e in range(EXPERTS)]


def filled(scores: torch.Tensor) -> list[torch.Tensor]:
    _, ids = best(scores)
    mask = torch.zeros_like(scores).scatter(1, ids, 1.0)
    return columns(torch.sigmoid(scores).masked_fill(mask == 0, 0.0))


def softmax_of_the_best(scores: torch.Tensor) -> list[torch.Tensor]:
    kept, ids = torch.topk(scores, K, -1)
    return columns(torch.softmax(torch.full_like(scores, float("-inf")).scatter(1, ids, kept), -1))


def the_best_alone(scores: torch.Tensor) -> list[torch.Tensor]:
    probabilities = torch.softmax(scores, -1)
    weight, ids = probabilities.max(-1)
    return columns(F.one_hot(ids, EXPERTS) * weight[:, None])


class Experts(torch.nn.Module):
    """A sum over all experts; what they are may be overridden."""

    def __init__(self, gating: Gating) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gating = gating
        self.router = torch.nn.Linear(WIDE, EXPERTS)
        self.up = torch.nn.ModuleList(torch.nn.Linear(WIDE, HIDDEN) for _ in range(EXPERTS))
        self.down = torch.nn.ModuleList(torch.nn.Linear(HIDDEN, WIDE, bias=e % 2 == 0) for e in range(EXPERTS))

    def expert(self, x: torch.Tensor, e: int) -> torch.Tensor:
        y: torch.Tensor = self.down[e](F.silu(self.up[e](x)))
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(x)
        for e, gate in enumerate(self.gating(self.router(x))):
            total = total + gate * self.expert(x, e)
        return total


class Shared(Experts):
    """With an expert beside that every token has, and the token itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.expert(x, 0) + super().forward(x)


class Different(Experts):
    """Experts that are not alike: one norms, one has another activation and a factor of its own for each token."""

    def expert(self, x: torch.Tensor, e: int) -> torch.Tensor:
        if e == 1:
            return super().expert(F.layer_norm(x, (WIDE,)), e)
        return torch.tanh(super().expert(x, e)) * x if e == 4 else super().expert(x, e)


class Mixing(Experts):
    """An expert that reads all tokens at once."""

    def expert(self, x: torch.Tensor, e: int) -> torch.Tensor:
        return super().expert(x, e) + torch.softmax(self.down[e](self.up[e](x)), 0)


class Missing(Experts):
    """The sum leaves one expert out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gates = self.gating(self.router(x))
        return sum((gates[e] * self.expert(x, e) for e in range(1, EXPERTS)), torch.zeros_like(x))


def reasons(result: Any) -> str:
    return "\n".join(result.report.passes[0].notes)


GATINGS = [scattered, split, compared, chosen_by_where, one_hot, filled, softmax_of_the_best, the_best_alone]


@pytest.mark.parametrize("gating", GATINGS, ids=lambda g: g.__name__)
def test_gates_that_are_zero_for_what_was_not_picked_become_a_choice(gating: Gating) -> None:
    assert is_lowered(lowered(Experts(gating)))


@pytest.mark.parametrize("block", [Shared, Different])
def test_experts_may_differ_and_have_something_beside_them(block: type[Experts]) -> None:
    assert is_lowered(lowered(block(scattered)))


def test_only_what_was_picked_is_computed_and_weights_stay_what_they_are() -> None:
    block = Experts(scattered)
    before = exported(block)
    result = graphopt.optimize(before, "lower-moe", target="onnxruntime")
    assert is_lowered(result)
    names = {i.name for i in before.graph.initializer if "up" in i.name or "down" in i.name}
    assert names <= {i.name for i in result.model.graph.initializer}
    floats = [
        sum(np.prod(i.dims) for i in m.graph.initializer if i.data_type == onnx.TensorProto.FLOAT)
        for m in (before, result.model)
    ]
    assert floats[1] <= floats[0]
    products = [n for n in result.model.graph.node if n.op_type in ("Gemm", "MatMul")]
    assert len(products) == 2 * EXPERTS + 1
    probe = onnx.ModelProto()
    probe.CopyFrom(result.model)
    rows = [n.output[0] for n in products if any("down" in i for i in n.input)]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in rows)
    run = onnxruntime.InferenceSession(probe.SerializeToString())
    _, *found = run.run(None, {run.get_inputs()[0].name: np.random.default_rng(0).random((50, WIDE), np.float32)})
    assert sum(len(y) for y in found) == 50 * K


def weighted_by_all(scores: torch.Tensor) -> list[torch.Tensor]:
    return columns(torch.softmax(scores, -1))


def never_quite_zero(scores: torch.Tensor) -> list[torch.Tensor]:
    return [gate + 1e-3 for gate in scattered(scores)]


def above_a_threshold(scores: torch.Tensor) -> list[torch.Tensor]:
    return columns(torch.where(scores > 0.3, scores, 0.0))


def of_ids_that_may_repeat(scores: torch.Tensor) -> list[torch.Tensor]:
    weights, ids = best(scores)
    return [((ids // 2 == e) * weights).sum(-1, keepdim=True) for e in range(EXPERTS)]


def scattered_into_ones(scores: torch.Tensor) -> list[torch.Tensor]:
    weights, ids = best(scores)
    return columns(torch.ones_like(scores).scatter(1, ids, weights))


NEVER_ZERO = [weighted_by_all, never_quite_zero, above_a_threshold, of_ids_that_may_repeat, scattered_into_ones]


@pytest.mark.parametrize("gating", NEVER_ZERO, ids=lambda g: g.__name__)
def test_gates_that_are_not_certain_to_be_zero_are_left(gating: Gating) -> None:
    assert not lowered(Experts(gating)).report.kept


def of_most(scores: torch.Tensor) -> list[torch.Tensor]:
    weights, ids = torch.topk(torch.softmax(scores, -1), EXPERTS - 1, -1)
    return columns(torch.zeros_like(scores).scatter(1, ids, weights))


@pytest.mark.parametrize(
    ("block", "gating", "reason"),
    [
        (Missing, scattered, "the experts [1, 2, 3, 4, 5] are added up and not each of 6 once"),
        (Experts, of_most, "5 of 6 experts are picked, for which computing all is as fast"),
    ],
)
def test_what_cannot_be_computed_by_expert_is_left_with_the_reason(
    block: type[Experts], gating: Gating, reason: str
) -> None:
    result = lowered(block(gating))
    assert not is_lowered(result)
    assert reason in reasons(result)


def test_an_expert_that_reads_all_tokens_is_right_or_left() -> None:
    lowered(Mixing(scattered))


def test_experts_of_two_routers_are_left_with_the_reason() -> None:
    class Two(Experts):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + sum(g * self.expert(x, e) for e, g in enumerate(compared(self.router(-x))))

    result = lowered(Two(scattered))
    assert is_lowered(result) or "experts of several routers" in reasons(result)


@pytest.mark.parametrize("count", [1, EXPERTS])
def test_a_fixed_number_of_tokens_is_as_in_torch(count: int) -> None:
    block, x = Experts(one_hot).eval(), torch.randn(count, WIDE)
    program = torch.onnx.export(block, (x,), dynamo=True, verbose=False)
    assert program is not None
    result = graphopt.optimize(program.model_proto, "lower-moe", target="onnxruntime")
    assert is_lowered(result)
    run = onnxruntime.InferenceSession(result.model.SerializeToString())
    (found,) = run.run(None, {run.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, block(x).detach().numpy(), rtol=1e-5, atol=1e-5)


def test_every_layer_of_a_model_is_lowered() -> None:
    layers = torch.nn.Sequential(Experts(scattered), Experts(compared), Experts(one_hot))
    result = lowered(layers)
    assert [a.rule for a in result.report.kept].count("dense-experts") == 3
