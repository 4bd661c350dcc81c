"""Routers that are nearly the usual one: their experts run on onnxruntime as torch's own loop over the experts does, or
stay as they are with the reason in the report and in `graphopt explain`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import pytest
import torch
from moe_blocks import ANY_LENGTH, EXPERTS, HIDDEN, KINDS, WIDTH, lowered, mixtral, tokens
from moe_blocks import error as block_error
from torch.nn import functional
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from typer.testing import CliRunner

import graphopt
from graphopt.tools.main import app

Tensor: TypeAlias = torch.Tensor
CLOSE = 1e-5
"""Relative error that is allowed beside torch."""
CAPACITY = 3
"""Tokens that an expert takes."""


class Routed(torch.nn.Module):
    """Mixtral's experts behind a router that is given: a function of this module, tokens [T, WIDTH] and noise
    [T, EXPERTS] to shares and experts, both [T, k]."""

    def __init__(self, route: Callable[..., tuple[Tensor, Tensor]], kind: str, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.config = MixtralConfig(hidden_size=WIDTH, intermediate_size=HIDDEN, num_local_experts=EXPERTS)
        self.config._experts_implementation = kind
        self.route = route
        self.gate = torch.nn.Linear(WIDTH, EXPERTS, bias=False)
        self.other = torch.nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = MixtralExperts(self.config)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        self.experts.to(dtype)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        rows = x.reshape(-1, WIDTH)
        shares, chosen = self.route(self, rows, noise.reshape(-1, EXPERTS))
        rows = rows.to(self.experts.down_proj.dtype)
        return self.experts(rows, chosen, shares.to(rows.dtype)).reshape(x.shape)


class Gated(Routed):
    """With a shared expert that has a gate of its own."""

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        shared = functional.linear(functional.silu(self.other(x)), self.other.weight.T)
        return super().forward(x, noise) + torch.sigmoid(self.gate(x)[..., :1]) * shared


def best(scores: Tensor, k: int = 2) -> Any:
    return scores.topk(k, -1)


def softmax_first(self: Routed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    shares, ids = best(self.gate(x).softmax(-1))
    return shares, ids


def normalised(shares: Tensor, eps: float = 0.0) -> Tensor:
    return shares / (shares.sum(-1, keepdim=True) + eps)


def with_capacity(self: Routed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens beyond the capacity of an expert, in the order of the tokens, have no share in it."""
    shares, ids = softmax_first(self, x, noise)
    taken = functional.one_hot(ids.reshape(-1), EXPERTS)
    place = ((taken.cumsum(0) - 1) * taken).sum(-1).reshape(ids.shape)
    return shares * (place < CAPACITY), ids


def in_float64(self: Routed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    scores = functional.linear(x.double(), self.gate.weight.double()).softmax(-1)
    shares, ids = best(scores)
    return normalised(shares).float(), ids


def noisy(self: Routed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Shazeer et al. 2017: the noise of each expert has a strength of its own."""
    scores, ids = best(self.gate(x) + noise * functional.softplus(self.other(x)))
    return scores.softmax(-1), ids


def on(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The usual router whose experts are changed."""
    return lambda self, x, noise: (softmax_first(self, x, noise)[0], change(softmax_first(self, x, noise)[1]))


def shares_by(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The usual router whose shares are changed."""

    def route(self: Routed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        shares, ids = softmax_first(self, x, noise)
        return change(shares, ids), ids

    return route


SAME_AS = [0, 1, 2, 3, 3, 2, 1, 0]
"""The experts that half of the experts were merged into."""
EXACT: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "softmax of all, not normalised": softmax_first,
    "normalised": shares_by(lambda shares, ids: normalised(shares)),
    "normalised with a little more": shares_by(lambda shares, ids: normalised(shares, 1e-2)),
    "softmax of the best": lambda self, x, noise: (best(self.gate(x))[0].softmax(-1), best(self.gate(x))[1]),
    "sigmoid": lambda self, x, noise: (best(self.gate(x).sigmoid())[0], best(self.gate(x).sigmoid())[1]),
    "scaled": shares_by(lambda shares, ids: normalised(shares) * 2.5),
    "scaled by expert": shares_by(lambda shares, ids: shares * torch.linspace(0.5, 2, EXPERTS)[ids]),
    "small shares dropped": shares_by(lambda shares, ids: torch.where(shares < 0.2, 0.0, shares)),
    "noise from outside": lambda self, x, noise: softmax_noise(self.gate(x) + noise),
    "noise of learned strength": noisy,
    "capacity": with_capacity,
    "in float64": in_float64,
    "one expert a token": lambda self, x, noise: best(self.gate(x).softmax(-1), 1),
    "the largest": lambda self, x, noise: self.gate(x).softmax(-1).max(-1, keepdim=True),
    "all experts": lambda self, x, noise: best(self.gate(x).softmax(-1), EXPERTS),
    "one from each half": lambda self, x, noise: halves(self.gate(x)),
    "the same expert twice": on(lambda ids: ids[:, :1].repeat(1, 2)),
    "experts shifted around": on(lambda ids: (ids + 1) % EXPERTS),
    "experts shifted and cut off": on(lambda ids: (ids + 1).clamp(max=EXPERTS - 1)),
    "merged experts": on(lambda ids: torch.tensor(SAME_AS)[ids]),
}


def softmax_noise(scores: Tensor) -> tuple[Tensor, Tensor]:
    shares, ids = best(scores.softmax(-1))
    return shares, ids


def halves(scores: Tensor) -> tuple[Tensor, Tensor]:
    left, right = scores[:, : EXPERTS // 2].softmax(-1), scores[:, EXPERTS // 2 :].softmax(-1)
    ids = torch.stack([left.argmax(-1), right.argmax(-1) + EXPERTS // 2], -1)
    return torch.stack([left.amax(-1), right.amax(-1)], -1), ids


def feed(count: int) -> tuple[Tensor, Tensor]:
    return tokens(count), torch.randn(1, count, EXPERTS, generator=torch.Generator().manual_seed(count + 1)) / 2


def optimised(module: torch.nn.Module) -> Any:
    return graphopt.optimize(
        module.eval(), "lower-moe", example_inputs=feed(7), dynamic_shapes=(*ANY_LENGTH, *ANY_LENGTH),
        target="onnxruntime",
    )  # fmt: skip


class SideBySide(torch.nn.Module):
    """Blocks of several routers, so that they are exported once."""

    def __init__(self, routers: Mapping[str, Callable[..., tuple[Tensor, Tensor]]], kind: str):
        super().__init__()
        self.names = tuple(routers)
        self.blocks = torch.nn.ModuleList([Routed(route, kind) for route in routers.values()])
        self.blocks.append(Gated(softmax_first, kind))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        return tuple(block(x, noise) for block in self.blocks)


@pytest.mark.parametrize("kind", KINDS)
def test_other_routers_are_lowered_exactly(kind: str) -> None:
    blocks = SideBySide(EXACT, kind)
    result = optimised(blocks)
    run = result.lower()
    assert not result.report.passes[0].notes and not result.report.undone
    kept = {f"lower-moe/picked-experts#{len(blocks.blocks) - 1} kept", "lower-moe/all-experts#1 kept"}
    assert kept <= {*run.notes}
    for block in blocks.blocks:
        block.config._experts_implementation = "eager"
    for count in (7, 1, 40):
        with torch.no_grad():
            expected = blocks(*feed(count))
        for name, one, other in zip((*blocks.names, "shared"), run(*feed(count)), expected, strict=True):
            assert float((one - other).abs().max()) < CLOSE * float(other.abs().max()), (name, count)


def error(block: Routed, run: Any, count: int, *, kind: str = "eager") -> float:
    """Relative error of `run` against the block, computed in float64 as `kind` computes it."""
    x, noise = feed(count)
    block.config._experts_implementation = kind
    with torch.no_grad():
        expected = block(x, noise).double()
    return float((run(x, noise).double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
def test_noise_that_is_drawn_stays_drawn(kind: str) -> None:
    """Too little to change which experts are chosen, so that results can be compared."""
    block = Routed(lambda self, x, noise: softmax_noise(self.gate(x) + 1e-9 * torch.randn_like(noise)), kind)
    run = optimised(block).lower()
    assert "lower-moe/picked-experts#1 kept" in run.notes
    assert error(block, run, 9) < CLOSE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", (softmax_first, in_float64))
@pytest.mark.parametrize("dtype, within", [(torch.float64, CLOSE), (torch.float16, 4e-3)], ids=str)
def test_experts_of_another_precision_than_the_router_are_lowered(
    kind: str, route: Any, dtype: torch.dtype, within: float
) -> None:
    block = Routed(route, kind, dtype)
    run = optimised(block).lower()
    assert "lower-moe/picked-experts#1 kept" in run.notes
    assert error(block, run, 9) < within


def dropped(self: Routed, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens beyond the capacity of an expert have no expert."""
    shares, ids = with_capacity(self, x, noise)
    return shares, torch.where(shares > 0, ids, EXPERTS)


OUTSIDE: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "experts shifted by one": on(lambda ids: ids + 1),
    "experts shifted down": on(lambda ids: ids - 1),
    "no expert for some": dropped,
    "experts of twice as many scores": lambda self, x, noise: best(torch.cat([self.gate(x), noise], -1).softmax(-1)),
    "rounded scores": lambda self, x, noise: (noise[:, :2].softmax(-1), (noise[:, :2] * 2).long()),
}


@pytest.mark.parametrize("route", OUTSIDE.values(), ids=OUTSIDE)
def test_numbers_of_no_expert_are_refused_where_tokens_are_sorted(route: Any) -> None:
    report = optimised(Routed(route, "grouped_mm")).report
    assert not report.applications
    (note,) = report.passes[0].notes
    assert "are not certain to be numbers of {8} experts" in note


@pytest.mark.parametrize("experts", (1, 2, 3))
def test_few_experts_are_lowered(experts: int) -> None:
    block = mixtral("batched_mm", experts=experts, k=1)
    _, run = lowered(block, 7, dynamic=True)
    assert "lower-moe/picked-experts#1 kept" in run.notes
    assert not any("undone" in note for note in run.notes)
    for count in (1, 7, 20):
        assert block_error(block, run, tokens(count)) < CLOSE


def test_a_single_expert_of_sorted_tokens_is_lowered() -> None:
    """torch.histc takes a range from 0 to 0 for that of the data; the one interval holds all then."""
    block = mixtral("grouped_mm", experts=1, k=1)
    result, run = lowered(block, 7, dynamic=True)
    assert [(a.rule, a.status) for a in result.report.applications] == [("grouped-experts", "kept")]
    for count in (1, 7, 20):
        assert block_error(block, run, tokens(count)) < CLOSE


class OverData(torch.nn.Module):
    """Two experts whose rows are counted over the range of the data, which need not be all experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Linear(WIDTH, 2)
        self.weights = torch.nn.Parameter(torch.randn(2, WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, WIDTH)
        ids = self.gate(rows).argmax(-1)
        order = torch.argsort(ids)
        ends = torch.histc(ids[order].float(), 2, 0, 0).cumsum(0, dtype=torch.int32)
        made: torch.Tensor = torch.ops.transformers.grouped_mm_fallback(rows[order], self.weights, ends)
        return made[torch.argsort(order)]


def test_counts_over_the_range_of_the_data_are_refused() -> None:
    result = graphopt.optimize(
        OverData().eval(), "lower-moe", example_inputs=(tokens(8),), target="onnxruntime"
    )
    assert not result.report.applications
    assert "a histogram over the range of the data" in result.report.passes[0].notes[0]


class Centred(MixtralExperts):
    """What the experts compute of a row depends on all rows."""

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        hidden: Tensor = super()._apply_gate(gate_up)
        return hidden - hidden.mean(0, keepdim=True)


class Ranked(MixtralExperts):
    """And on its number among them."""

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        hidden: Tensor = super()._apply_gate(gate_up)
        return hidden.cumsum(0)


class Normalised(MixtralExperts):
    """Weights that are normalised for each row that picks them."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        rows = hidden_states.repeat_interleave(top_k_index.shape[1], 0)
        picked = self.gate_up_proj[top_k_index.reshape(-1)]
        picked = picked / picked.abs().amax((1, 2), keepdim=True)
        hidden = torch.relu(torch.bmm(picked, rows.unsqueeze(2)).squeeze(2)) * top_k_weights.reshape(-1, 1)
        return hidden.reshape(*top_k_index.shape, -1).sum(1)[:, :WIDTH]


class Tied(MixtralExperts):
    """One matrix there and back, and what is between them depends on all rows."""

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        rows = hidden_states.repeat_interleave(top_k_index.shape[1], 0)
        picked = self.gate_up_proj[top_k_index.reshape(-1)]
        hidden = torch.bmm(picked, rows.unsqueeze(2))
        back = torch.bmm((hidden - hidden.mean(0, keepdim=True)).transpose(1, 2), picked).squeeze(1)
        return (back.reshape(*top_k_index.shape, -1) * top_k_weights.unsqueeze(-1)).sum(1)


def with_experts(class_: type[MixtralExperts]) -> Routed:
    block = Routed(softmax_first, "batched_mm")
    block.experts.__class__ = class_
    return block


MIXED: dict[str, tuple[type[MixtralExperts], str]] = {
    "one matrix before and after the rows are mixed": (Tied, "is read by the experts and by something else"),
    "weights of each row": (Normalised, "is computed of weights alone"),
}


@pytest.mark.parametrize("class_, reason", MIXED.values(), ids=MIXED)
def test_what_is_refused_in_onnx_runs_as_before_and_explain_says_why(
    class_: type[MixtralExperts], reason: str, tmp_path: Path
) -> None:
    block = with_experts(class_).eval()
    run = optimised(block).lower()
    assert any(reason in note for note in run.notes) and not any("picked-experts" in note for note in run.notes)
    assert error(block, run, 9, kind="batched_mm") < CLOSE
    path = tmp_path / "experts.onnx"
    onnx.save(torch.onnx.export(block, feed(7), dynamo=True, verbose=False).model_proto, path)
    said = CliRunner().invoke(app, ["explain", str(path), "--rule", "lower-moe"])
    assert said.exit_code == 0 and reason in said.stdout


@pytest.mark.parametrize("class_", (Centred, Ranked))
def test_experts_before_and_behind_what_mixes_rows_are_lowered_each(class_: type[MixtralExperts]) -> None:
    block = with_experts(class_)
    run = optimised(block).lower()
    assert "lower-moe/picked-experts#2 kept" in run.notes
    assert error(block, run, 9, kind="batched_mm") < CLOSE
