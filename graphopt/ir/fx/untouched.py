"""A module is traced by running it, and what it then assigns to itself are tensors without data. They are taken out
again, as is what it writes into tensors that are neither parameters nor buffers, which torch writes for good."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

_CONTAINERS = (dict, OrderedDict, defaultdict, list, deque, set)


@contextmanager
def untouched(module: torch.nn.Module) -> Iterator[None]:
    """Afterwards the attributes of `module` and of its parts are what they were, and so are tensors that were there
    before, wherever the module found them."""
    kept = _kept(module)
    read = _Read()
    try:
        with read:
            yield
    finally:
        for container, content in kept:
            _restore(container, content)
        read.restore()


def _kept(module: torch.nn.Module) -> list[tuple[Any, Any]]:
    """The containers in which `module` and its parts keep things, each with a copy."""
    found: dict[int, tuple[Any, Any]] = {}
    pending: list[Any] = [vars(part) for part in module.modules()]
    while pending:
        value = pending.pop()
        if type(value) in _CONTAINERS and id(value) not in found:
            found[id(value)] = value, value.copy()
            pending += value.values() if isinstance(value, dict) else value
        elif isinstance(value, tuple):
            pending += value
    return list(found.values())


def _restore(container: Any, content: Any) -> None:
    """Let `container` hold `content` again; it stays the same object, which others may know."""
    if _items(container) == _items(content):
        return
    container.clear()
    container.extend(content) if isinstance(container, (list, deque)) else container.update(content)


def _items(container: Any) -> list[Any]:
    """What is compared: what is in a container may not know whether it is equal."""
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    return [id(value) for value in container]


class _Read(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped for mypy
    """Keeps copies of the tensors with data that a traced module reads: its parameters and buffers have none then."""

    def __init__(self) -> None:
        super().__init__()
        self._copies: dict[int, tuple[torch.Tensor, int, torch.Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The branches of torch.cond are traced by dynamo, which would trace this too; they read what they are given.
        for leaf in () if torch.compiler.is_dynamo_compiling() else pytree.tree_leaves((args, kwargs)):
            if type(leaf) is torch.Tensor and id(leaf) not in self._copies and _has_data(leaf):
                with _disable_current_modes(), torch.no_grad():
                    self._copies[id(leaf)] = leaf, leaf._version, leaf.clone()
        return func(*args, **(kwargs or {}))

    def restore(self) -> None:
        for tensor, version, copy in self._copies.values():
            if tensor._version != version:
                with torch.no_grad():
                    tensor.copy_(copy)


def _has_data(tensor: torch.Tensor) -> bool:
    """Whether it is a tensor with numbers in it that may be written, and not one that stands for another."""
    if torch._is_functional_tensor(tensor) or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return not (tensor.is_inference() or tensor.is_meta)
