"""Gradients of a loss with respect to the stored tensors, for importance by Taylor expansion."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphopt.errors import PipelineError, UnsupportedError
from graphopt.ir.model import Model
from graphopt.ir.weights import Array

LOSSES = ("square", "self-cross-entropy")
"""Losses by name: half the mean square of the outputs; cross entropy of the outputs against their own greatest
element."""


def gradients(model: Model, loss: str, feeds: Sequence[Sequence[Array]], weights: Sequence[float]) -> dict[str, Array]:
    """The gradient of `loss`, averaged over the batches weighted, by the name of the stored tensor.

    Args:
        model: a torch model.
        loss: one of LOSSES, or "package.module:function" for a function of the list of output tensors.

    Raises:
        UnsupportedError: an ONNX model, which has no gradients.
        PipelineError: the loss cannot be found or raises, or is no number that depends on the weights.
    """
    if model.storage != "fx":
        raise UnsupportedError(
            "importance=taylor needs gradients, which an ONNX model does not have: prune the torch model, or choose "
            "importance=magnitude or activation"
        )
    import torch

    from graphopt.ir.fx.run import compute
    from graphopt.ir.fx.tensors import to_numpy, to_torch

    program: Any = model.copy()
    graph = program.main
    leaves = {
        node: weight.tensor.detach()
        .clone()
        .requires_grad_(weight.kind == "parameter" and weight.tensor.is_floating_point())
        for node, weight in graph.weights.items()
    }
    named = {graph.name(node): leaf for node, leaf in leaves.items() if leaf.requires_grad}
    function = _loss(loss)
    total: defaultdict[str, Any] = defaultdict(float)
    for feed, weight in zip(feeds, weights, strict=True):
        with torch.enable_grad():
            outputs = compute(graph, leaves | dict(zip(graph.inputs(), map(to_torch, feed), strict=True)))
            try:
                value = function(outputs)
            except Exception as error:
                raise PipelineError(
                    f"loss {loss!r} raised {type(error).__name__}: {error}; expected a function of the list of outputs"
                ) from error
            if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
                raise PipelineError(f"loss {loss!r} gives {value!r}: expected one number that depends on the weights")
            found = torch.autograd.grad(value.reshape(()), list(named.values()), allow_unused=True)
        for name, gradient in zip(named, found, strict=True):
            if gradient is not None:
                total[name] = total[name] + weight * to_numpy(gradient).astype(np.float64)
    return {name: value / len(feeds) for name, value in total.items()}


def _loss(name: str) -> Callable[[list[Any]], Any]:
    import torch

    if name == "square":
        return lambda outputs: sum(0.5 * o.float().square().mean() for o in outputs if o.is_floating_point())
    if name == "self-cross-entropy":
        return lambda outputs: sum(
            torch.nn.functional.cross_entropy(o.flatten(0, -2), o.flatten(0, -2).argmax(-1))
            for o in outputs
            if o.is_floating_point() and o.ndim > 1
        )
    module, _, attribute = name.partition(":")
    try:
        found: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise PipelineError(
            f"loss {name!r} cannot be found ({error}): expected one of {', '.join(LOSSES)} or package.module:function"
        ) from error
    if not callable(found):
        raise PipelineError(f"loss {name!r} is {found!r}: expected a function of the list of output tensors")
    return found  # type: ignore[no-any-return]
