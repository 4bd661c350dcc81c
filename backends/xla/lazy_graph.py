"""A torch program on the device of torch_xla: its ops are recorded there, then compiled and run as one graph.

torch_xla runs ops that it has no kernel for on the CPU, and says so in its counters alone. Here that is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_xla
from torch.utils import _pytree as pytree
from torch_xla.core import xla_model
from torch_xla.debug import metrics

from graphopt.errors import UnsupportedError


class LeavesXla(Exception):
    """An op was run on the CPU, or needed a number from the device."""


def on_device(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The op `target` recorded for the device that its tensors are on; devices among its arguments become that one.

    Raises:
        LeavesXla: torch_xla did not keep it on the device.
    """
    with kept_on_device():
        return recorded(target, args, kwargs)


def recorded(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`on_device`, for who holds `kept_on_device` around several."""
    args, kwargs = pytree.tree_map_only(torch.device, lambda _: torch_xla.device(), (tuple(args), dict(kwargs)))
    with torch.no_grad():
        return target(*args, **kwargs)


@contextmanager
def kept_on_device() -> Iterator[None]:
    """
    Raises:
        LeavesXla: torch_xla did not keep an op on the device.
    """
    before = _departures()
    yield
    left = sorted(name for name, count in _departures().items() if count > before.get(name, 0))
    if left:
        raise LeavesXla(f"runs {', '.join(left)} on the CPU, for which torch_xla has no kernel")


def _departures() -> dict[str, int]:
    """How often each op has left the device."""
    return {name: metrics.counter_value(name) for name in metrics.counter_names() if name.startswith("aten::")}


class LazyInterpreter(torch.fx.Interpreter):  # type: ignore[misc]
    """Records a graph for the device, and holds each result against the type that torch gave it."""

    def __init__(self, module: torch.fx.GraphModule, constants: Mapping[torch.fx.Node, torch.Tensor]) -> None:
        """`constants`: results that are known already, on the device."""
        super().__init__(module)
        self._constants = constants

    def run(self, *args: Any, **options: Any) -> Any:
        """
        Raises:
            UnsupportedError: an op fails, leaves the device, or gives other types than in torch.
        """
        try:
            with kept_on_device():
                return super().run(*args, **options)
        except LeavesXla as error:
            raise UnsupportedError(f"backend 'xla': for inputs of these sizes, the model {error}") from error

    def run_node(self, node: torch.fx.Node) -> Any:
        if (known := self._constants.get(node)) is not None:
            return known
        result = super().run_node(node)
        if node.op == "call_function":
            require_declared(node, node.meta.get("val"), result)
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not isinstance(target, torch._ops.OpOverload):
            return super().call_function(target, args, kwargs)
        try:
            return recorded(target, args, kwargs)
        except Exception as error:  # torch_xla raises whatever it does
            raise UnsupportedError(f"backend 'xla': {target} fails in torch_xla: {error}") from error


def require_declared(node: torch.fx.Node, declared: Any, result: Any) -> None:
    """
    Raises:
        UnsupportedError: `result` has another dtype or other sizes than torch `declared`.
    """
    for own, expected in zip(pytree.tree_leaves(result), pytree.tree_leaves(declared), strict=False):
        if not isinstance(expected, torch.Tensor) or own is None:
            continue
        sizes = [(d, r) for d, r in zip(expected.shape, own.shape, strict=False) if isinstance(d, int)]
        if own.dtype != expected.dtype or own.ndim != expected.ndim or any(d != r for d, r in sizes):
            raise UnsupportedError(
                f"backend 'xla': {node.name} ({node.target}) is {own.dtype} of {tuple(own.shape)} in torch_xla and "
                f"{expected.dtype} of {tuple(expected.shape)} in torch"
            )


def fetched(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Run what was recorded for `tensors` as one graph; they, on the CPU."""
    xla_model.unlazy([t for t in tensors if t.device.type == "xla"])
    return [t.cpu() for t in tensors]
