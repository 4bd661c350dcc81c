"""The stored tensors of a model, which share memory with what was given and with what comes out.

Objects are not shared. `.half()` and `.to()` of a module change its parameters themselves, so that they would reach
through to every module that has the same ones. Neither is memory that a run writes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from graphopt.errors import ModelError
from graphopt.ir.fx.tensors import storage_pointer
from graphopt.ir.fx.weight import Weight


class Aliases:
    """Tensors under objects of their own, one for each object that was given."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._copied: dict[int, Any] = {}

    def of(self, tensor: torch.Tensor, copied: bool = False) -> torch.Tensor:
        """`tensor` in the same memory, or if `copied` in memory of its own, which is shared by what shared it."""
        if id(tensor) not in self._made:
            with torch.inference_mode(False):
                self._made[id(tensor)] = tensor, self._make(tensor, copied)
        return self._made[id(tensor)][1]

    def _make(self, tensor: torch.Tensor, copied: bool) -> torch.Tensor:
        if copied:
            made: torch.Tensor = copy.deepcopy(tensor.detach(), self._copied)
        elif tensor.is_inference():
            made = tensor.clone()  # Made in inference mode, it could be read in no call that records gradients.
        elif tensor.layout is torch.strided and type(tensor) in (torch.Tensor, torch.nn.Parameter):
            made = tensor.data  # Unlike what detach() gives, it counts what is written to it by itself.
        else:
            return tensor
        if isinstance(tensor, torch.nn.Parameter):
            # What the model writes itself (an embedding with max_norm) it could not write where gradients are recorded.
            return torch.nn.Parameter(made, tensor.requires_grad and not copied)
        return made.requires_grad_(tensor.requires_grad)


class Taken:
    """What the weights of a model were taken from, to see whether it is as it was."""

    def __init__(self, weights: Mapping[fx.Node, Weight], given: Mapping[fx.Node, torch.Tensor]) -> None:
        shared = [(w.name, given[n], w.tensor) for n, w in weights.items() if n in given and not w.mutable]
        self._watched = [(name, old, new, old._version) for name, old, new in shared
                         if old is not new and not old.is_inference()]  # fmt: skip

    def require_unchanged(self) -> None:
        """Raises ModelError if the memory that is shared with what was given was written there."""
        for name, old, new, version in self._watched:
            if old._version != version and storage_pointer(old) == storage_pointer(new):
                raise ModelError(
                    f"the weight {name!r} of the model that was given was written after it was taken; what was "
                    "optimised shares its memory, and other weights were computed from what was there before: "
                    "optimise it again, or give a copy.deepcopy of it"
                )

    @staticmethod
    def nothing() -> Taken:
        """For a copy, which has memory of its own."""
        return Taken({}, {})

    def __deepcopy__(self, memo: Any) -> Taken:
        return self.nothing()

    def only(self, names: set[str]) -> Taken:
        """The same for the weights of these names, whose memory is still in use."""
        kept = self.nothing()
        kept._watched = [w for w in self._watched if w[0] in names]
        return kept
