"""Masked equals sliced, without any help of what is tested: what was kept of a weight is found by its contents."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Everything that a module stores."""
    return {n: t.detach() for n, t in [*module.named_parameters(), *module.named_buffers()]}


def kept(old: np.ndarray, new: np.ndarray) -> list[np.ndarray]:
    """For each dimension the indices of `old` that `new` consists of; no two elements of `old` are the same."""
    places = {number: i for i, number in enumerate(old.ravel().tolist())}
    assert len(places) == old.size
    found = np.unravel_index(np.array([places[number] for number in new.ravel().tolist()]), old.shape)
    indices = []
    for dim, at in enumerate(found):
        lines = np.moveaxis(at.reshape(new.shape), dim, 0).reshape(new.shape[dim], -1)
        assert (lines == lines[:, :1]).all() and (np.diff(lines[:, 0]) > 0).all()
        indices.append(lines[:, 0])
    return indices


def masked(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor], shifted: str | None = None
) -> dict[str, torch.Tensor]:
    """Weights of `before` with zeros in what is gone in `after`; of the one named `shifted`, in other places."""
    found = {}
    for name, weight in before.items():
        masks = []
        if name in after and after[name].shape != weight.shape:
            for size, indices in zip(weight.shape, kept(weight.numpy(), after[name].numpy()), strict=True):
                mask = torch.zeros(size, dtype=weight.dtype)
                mask[torch.as_tensor(indices)] = 1
                masks.append(mask.roll(1) if name == shifted else mask)
        for dim, mask in enumerate(masks):
            weight = weight * mask.reshape([-1 if i == dim else 1 for i in range(weight.dim())])
        found[name] = weight
    return found


def error(expected: torch.Tensor, got: torch.Tensor) -> float:
    """Largest difference as a share of the largest element; infinite where shapes differ or anything is NaN."""
    if expected.shape != got.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    found = float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-3))
    return found if found == found else float("inf")
