"""Taking a module runs it, and leaves nothing of that behind in it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from graphopt.errors import ModelError
from graphopt.ir.fx.load import load_torch

X = torch.arange(6.0).reshape(2, 3)


def _assigns(self: Any, x: torch.Tensor) -> None:
    self.last, self.count = x * 2, x.shape[0]


def _registers(self: Any, x: torch.Tensor) -> None:
    if not hasattr(self, "positions"):
        self.register_buffer("positions", torch.arange(3.0))


def _replaces(self: Any, x: torch.Tensor) -> None:
    self.weight = self.weight * 1


def _appends(self: Any, x: torch.Tensor) -> None:
    self.seen.append(x)
    self.tables.setdefault(x.shape[-1], torch.arange(3.0))
    self.nested[0]["x"] = x


class Part(nn.Module):
    def __init__(self, effect: Callable[[Any, torch.Tensor], None], shared: dict[int, Any]) -> None:
        super().__init__()
        self.effect = effect
        self.seen: list[Any] = []
        self.tables = shared
        self.nested = ({"x": None},)
        self.weight = torch.ones(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.effect(self, x)
        return x + self.tables.get(3, 0) + getattr(self, "positions", 0) * self.weight


@pytest.mark.parametrize("effect", [_assigns, _registers, _replaces, _appends])
def test_what_a_module_keeps_of_a_call_is_gone(effect: Any) -> None:
    shared: dict[int, Any] = {}
    module = nn.Sequential(Part(effect, shared), Part(effect, shared))
    before = [dict(vars(part)) for part in module.modules()]
    buffers = dict(module.named_buffers())
    sizes = ({0: torch.export.Dim.AUTO},)
    made = load_torch(module, X, dynamic_shapes=sizes).export()
    for part, known in zip(module.modules(), before, strict=True):
        assert list(vars(part)) == list(known)
        assert all(vars(part)[key] is value for key, value in known.items())
    assert dict(module.named_buffers()) == buffers and shared == {}
    assert all(part.seen == [] and part.nested == ({"x": None},) for part in module)
    assert torch.equal(made(X[:1]), copy.deepcopy(module)(X[:1]))


OUTSIDE = torch.zeros(3)


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.listed = torch.zeros(3), [torch.zeros(3)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.plain.view(-1).add_(1)
        self.listed[0][1:] = 2
        OUTSIDE.add_(1)
        return x + self.plain + self.listed[0] + OUTSIDE


def test_tensors_that_a_module_found_elsewhere_keep_their_numbers() -> None:
    module = Writes()
    with pytest.raises(ModelError, match="register it as buffer"):
        load_torch(module, X)
    assert not any(t.any() for t in (module.plain, module.listed[0], OUTSIDE))


def test_a_module_that_cannot_be_traced_is_left_as_it_was() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.last = x
            return x * int(x.sum())

    module = Fails()
    with pytest.raises(ModelError):
        load_torch(module, X)
    assert not hasattr(module, "last")
