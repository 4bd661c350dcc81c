"""Random weights under which every channel and every attention head matters.

Freshly made models hide faults of pruning: zero-initialised layers make an output zero whatever happens before it,
norms with scale 1 and shift 0 hide which channel is scaled by what, and weights of a standard deviation of 0.02 make
attention nearly uniform, so that heads which are cut at the wrong place change the result by less than rounding.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

_QUERY_OR_KEY = re.compile(r"(?<![a-z])(q|k|w?qkv|query|key|queries|keys|c_attn)(?![a-z])", re.IGNORECASE)
GAIN = 2.0
"""By how much queries and keys are larger than what they are made of: scores then have a standard deviation of about
GAIN^2, if they are divided by the root of the head size."""


def sharpen(module: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw weights of `module`, in place and the same way every time; returns it.

    * A matrix or kernel that made its input smaller is scaled to keep its size (standard deviation fan_in^-1/2), one
      of equal values is drawn anew.
    * What makes queries and keys, known by its name, is made `GAIN` times larger than that.
    * A scale (a vector that is no bias) gets values of either sign with magnitude between 0.5 and 1.5, a bias or a
      vector of zeros normal ones of standard deviation 0.3.
    * Running means and variances of batch norms get values as biases and scales have them, the variances positive.
    """
    generator = torch.Generator().manual_seed(seed)
    batch_norms = {name: part for name, part in module.named_modules() if _has_running_statistics(part)}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            # In front of a batch norm stands the matrix that has the gain already.
            larger = _QUERY_OR_KEY.search(name) and name.rpartition(".")[0] not in batch_norms
            parameter.copy_(_sharpened(name, parameter, GAIN if larger else 1.0, generator))
        for part in batch_norms.values():
            part.running_mean.copy_(0.3 * torch.randn(part.running_mean.shape, generator=generator))
            part.running_var.copy_(_magnitudes(part.running_var.shape, generator))
    # Some models keep in evaluation mode what they computed from the weights; changing the mode drops it.
    return module.train().eval()


def _sharpened(name: str, parameter: Tensor, gain: float, generator: torch.Generator) -> Tensor:
    normal = torch.randn(parameter.shape, generator=generator)
    if sum(size > 1 for size in parameter.shape) <= 1:
        if name.endswith("bias") or not parameter.any():
            return 0.3 * normal
        return gain * normal.sign() * _magnitudes(parameter.shape, generator)
    spread = gain * max(1, parameter[0].numel()) ** -0.5
    values = parameter if parameter.std() > 0 else normal
    return values * max(1.0, float(spread / values.std()))


def _magnitudes(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(shape, generator=generator)


def _has_running_statistics(part: nn.Module) -> bool:
    return isinstance(getattr(part, "running_mean", None), Tensor)
