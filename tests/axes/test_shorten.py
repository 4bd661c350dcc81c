"""Axes of real layers are found, and shortening them is checked: masked equals sliced."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

import graphopt
from graphopt.axes.analysis import Axes
from graphopt.axes.check import shorten_checked
from graphopt.axes.free import FreeAxis, free_axes
from graphopt.ir.model import Model
from graphopt.rewrite.change import Rejected
from graphopt.rewrite.journal import Journal


class Normed(nn.Module):
    """Convolutions around a group norm, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x)
        hidden = hidden + self.second(functional.silu(self.norm(hidden)))
        return self.last(functional.avg_pool2d(hidden, 2).flatten(1))


class Attending(nn.Module):
    """Attention with fused projections, and a gated feed-forward layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.gate = nn.Linear(32, 128)
        self.down = nn.Linear(64, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(attended)
        a, b = self.gate(x).chunk(2, -1)
        return self.head(x + self.down(a * functional.gelu(b)))


def loaded(module: nn.Module, *inputs: torch.Tensor) -> Model:
    return graphopt.load(module.eval(), example_inputs=inputs)


def normed() -> Model:
    torch.manual_seed(0)
    return loaded(Normed(), torch.randn(2, 3, 8, 8))


def attending() -> Model:
    torch.manual_seed(0)
    return loaded(Attending(), torch.randn(2, 6, 16))


def half(axis: FreeAxis) -> np.ndarray:
    keep = np.zeros(axis.size, bool)
    keep[np.random.default_rng(0).permutation(axis.size)[: max(1, axis.size // 2)]] = True
    return keep


def test_groups_are_exact_and_channels_of_a_group_are_coupled() -> None:
    found = {axis.name: (axis.size, axis.coupled) for axis in free_axes(Axes(normed().main))}
    assert found == {"first.weight:0.0": (4, ()), "first.weight:0.1": (2, ("group_norm",))}


def test_heads_their_width_and_hidden_units_are_axes_of_their_own() -> None:
    found = {axis.name: axis.size for axis in free_axes(Axes(attending().main)) if axis.exact}
    assert found == {"qkv.weight:0.1": 4, "qkv.weight:0.2": 8, "gate.weight:0.0": 64}


@pytest.mark.parametrize("build", [normed, attending])
def test_every_axis_can_be_halved_one_after_the_other(build: Callable[[], Model]) -> None:
    model = build()
    axes = Axes(model.main)
    found = free_axes(axes)
    for axis in found:
        evidence = shorten_checked(axes, axis, half(axis), Journal(model.main))
        assert evidence.twin is not None and evidence.twin < 1e-13
    model.refresh()
    again = free_axes(Axes(model.main))
    assert sum(w[1] for w in model.weights()) < sum(w[1] for w in build().weights()) / 3
    assert all(axis.size > 1 for axis in again)


def test_a_wrong_edit_is_rejected_and_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.axes import check

    model = attending()
    before = model.main.fingerprint()
    axes = Axes(model.main)
    heads = next(axis for axis in free_axes(axes) if axis.size == 4)
    right = check.shorten

    def wrong(axes, keep, values, nodes, journal):  # type: ignore[no-untyped-def]
        return right(axes, {leaf: np.roll(mask, 1) for leaf, mask in keep.items()}, values, nodes, journal)

    monkeypatch.setattr(check, "shorten", wrong)
    with pytest.raises(Rejected, match="stored otherwise"):
        shorten_checked(axes, heads, half(heads), Journal(model.main))
    assert model.main.fingerprint() == before


def half_read(tail: str) -> Model:
    """The first half of what a layer gives goes through another layer; `tail` says what becomes of the second."""
    body = f"h = Gemm(x, w, b) first, second = Split<axis=1, num_outputs=2>(h) p = MatMul(first, last) {tail}"
    head = '<ir_version: 10, opset_import: ["" : 18]> g (float[2,3] x) => (float[2,2] y)'
    proto = onnx.parser.parse_model(f"{head} {{ {body} }}")
    arrays = {"w": (3, 8), "b": (8,), "last": (4, 2), "other": (4, 2)}
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in arrays.items()}
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in tensors.items())
    return graphopt.load(proto)


def test_what_no_result_depends_on_can_go_and_is_told() -> None:
    model = half_read("e = Exp(second) s = ReduceSum<keepdims=0>(e) y = Identity(p)")
    axes = Axes(model.main)
    read, unread = free_axes(axes)
    seen, unseen = (shorten_checked(axes, axis, half(axis), Journal(model.main)).notes[-1] for axis in (read, unread))
    assert "would change the result" in seen and unseen == "no result depends on it"
    assert {name: size for name, size, _ in model.weights()}["w"] == 3 * 4


def test_what_is_read_but_happens_to_make_no_difference_is_refused() -> None:
    model = half_read("z = Sub(second, second) q = MatMul(z, other) y = Add(p, q)")
    axes = Axes(model.main)
    _, idle = free_axes(axes)
    with pytest.raises(Rejected, match="would not be seen"):
        shorten_checked(axes, idle, half(idle), Journal(model.main))
