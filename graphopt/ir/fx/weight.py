"""What a graph knows of a tensor that its module stores."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Weight:
    """A stored tensor that a placeholder stands for."""

    name: str
    """Its qualified name in the module ("layer1.0.conv.weight")."""
    tensor: torch.Tensor
    kind: str
    """"parameter", "buffer" or "constant"."""
    persistent: bool = True
    mutable: bool = False
    """Whether a run of the model may write it: then it is no constant."""
