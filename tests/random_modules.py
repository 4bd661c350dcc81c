"""Random modules of layers whose axes meet in every way, in float64, run while they grow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of several."""
Step = Callable[["Grower", int], bool]
"""Adds to a module what reads the value of this number; False if it does not fit."""
STEPS: dict[str, tuple[Step, range]] = {}
"""Steps by name, with the ranks of values that they read. Filled by `random_steps`."""
LARGEST = 600
"""Elements of a value."""


def step(ranks: range) -> Callable[[Step], Step]:
    """Declare the decorated function as a step for values of these ranks."""

    def declare(function: Step) -> Step:
        STEPS[function.__name__] = (function, ranks)
        return function

    return declare


class RandomModule(nn.Module):
    """Applies its steps one after the other; each appends a tensor to those that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[str, Callable[[RandomModule, list[torch.Tensor]], torch.Tensor]]] = []
        self.returned: list[int] = [0]

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = list(inputs)
        for _, step in self.steps:
            values.append(step(self, values))
        return tuple(values[i] for i in self.returned)


def factors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


class Grower:
    """Grows a module step by step, running it as it grows."""

    def __init__(self, pick: Pick, seed: int) -> None:
        self.pick = pick
        self.random = torch.Generator().manual_seed(seed)
        self.module = RandomModule()
        shape = pick([(2, 4), (2, 3, 6), (2, 6, 5), (1, 4, 4, 4), (2, 4, 3, 3)])
        self.inputs = (torch.randn(shape, generator=self.random, dtype=torch.float64),)
        self.values = list(self.inputs)
        self.weights = 0

    # ---- making -------------------------------------------------------------------------------------------

    def weight(self, *shape: int) -> str:
        name = f"w{self.weights}"
        self.weights += 1
        fan = max(1, math.prod(shape[1:]))
        data = torch.randn(shape, generator=self.random, dtype=torch.float64) * (1.5 / math.sqrt(fan))
        self.module.register_parameter(name, nn.Parameter(data + 0.05 * torch.sign(data)))
        return name

    def buffer(self, data: torch.Tensor) -> str:
        name = f"w{self.weights}"
        self.weights += 1
        self.module.register_buffer(name, data)
        return name

    def positive(self, *shape: int) -> str:
        return self.buffer(torch.rand(shape, generator=self.random, dtype=torch.float64) + 0.5)

    def add(self, name: str, step: Callable[[Any, list[torch.Tensor]], torch.Tensor]) -> bool:
        with torch.no_grad():
            result = step(self.module, self.values)
        if result.numel() > LARGEST or result.numel() == 0 or not result.isfinite().all() or result.abs().max() > 1e4:
            return False
        self.module.steps.append((name, step))
        self.values.append(result)
        return True

    def old(self) -> int:
        """A value, the newest ones more often."""
        n = len(self.values)
        return self.pick([n - 1] * 6 + [n - 2] * 2 * (n > 1) + list(range(n)))

    def grow(self) -> None:
        i = self.old()
        names = [name for name, (_, ranks) in STEPS.items() if self.values[i].dim() in ranks]
        name = self.pick(names)
        before = self.weights
        done = STEPS[name][0](self, i)
        if not done:
            for k in range(before, self.weights):
                delattr(self.module, f"w{k}")
            self.weights = before

    def finish(self) -> None:
        """Return the newest values, most of them through a reduction and a projection, which leave axes free."""
        n = len(self.values)
        wanted = sorted({n - 1, self.pick([n - 1, n - 1, self.old()])})
        for i in wanted:
            if self.pick([True, True, True, False]):
                STEPS["reduce_away"][0](self, i)
                i = len(self.values) - 1
            if self.values[i].dim() and self.pick([True, True, True, True, False]):
                STEPS["linear"][0](self, i)
                i = len(self.values) - 1
            self.module.returned.append(i)
        self.module.returned = self.module.returned[1:]


def random_module(pick: Pick, steps: int, seed: int) -> tuple[RandomModule, tuple[torch.Tensor, ...]]:
    """A module of about so many steps in evaluation mode, and inputs for it; weights are drawn from `seed`."""
    import random_steps  # noqa: F401  # fills STEPS

    grower = Grower(pick, seed)
    for _ in range(pick([1, 1, 2])):
        first = "conv" if grower.values[-1].dim() > 2 and pick([True, False]) else "linear"
        STEPS[first][0](grower, len(grower.values) - 1)
    for _ in range(steps):
        grower.grow()
    grower.finish()
    return grower.module.eval(), grower.inputs
