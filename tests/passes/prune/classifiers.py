"""The digits classifier as what is pruned: four exact axes, batch norms, a flatten between channels and features."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

import graphopt
from graphopt.tools.digits.models import DigitClassifier, load_classifier

SIZES = {"body.0.weight:0": 16, "body.3.weight:0": 32, "body.6.weight:0": 64, "project.weight:0": 48}
"""Its axes."""
INFINITE = float("inf")


def images(seed: int = 0, count: int = 8) -> torch.Tensor:
    return torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


def batches() -> list[torch.Tensor]:
    return [images(seed) for seed in range(4)]


@cache
def classifier() -> DigitClassifier:
    """Shared by tests: nothing may change it."""
    return load_classifier()


@cache
def exported() -> Any:
    return torch.onnx.export(classifier(), (images(),), dynamo=True, verbose=False).model_proto


def prune(options: str = "", budget: Any = INFINITE, storage: str = "fx", **others: Any) -> Any:
    """The result of the pass with these options in text."""
    spec = f"prune{{{options}}}"
    if storage == "onnx":
        return graphopt.optimize(exported(), [spec], budget=budget, calibration=batches(), **others)
    return graphopt.optimize(
        classifier(), [spec], example_inputs=(images(),), budget=budget, calibration=batches(), **others
    )


def notes(result: Any) -> str:
    return "\n".join(result.report.passes[0].notes)


def left(result: Any) -> dict[str, int]:
    """The sizes of the axes, as the weights of the result say them."""
    if isinstance(result.model, torch.nn.Module):
        shapes = {name: tuple(p.shape) for name, p in result.model.named_parameters()}
    else:
        shapes = {i.name: tuple(i.dims) for i in result.model.graph.initializer}
    return {axis: shapes[axis.removesuffix(":0")][0] for axis in SIZES}
