"""Numbers that stand for samples and predictions while a pipeline's loop is watched, and where they must not go."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from graphopt.program.pipelines.calls import Deviation, leaves_in

_READS = {
    "item", "tolist", "numpy", "equal", "allclose", "is_nonzero", "__array__", "__bool__", "__int__", "__float__",
    "__index__", "__complex__", "__contains__", "__repr__", "__format__",
    "eq", "ne", "gt", "ge", "lt", "le", "__eq__", "__ne__", "greater", "greater_equal", "less", "less_equal",
    "isnan", "isinf", "isfinite", "unique", "unique_consecutive", "nonzero", "argwhere", "masked_select",
}  # fmt: skip
"""Names of torch's functions that give numbers, truth or text for what a tensor holds, or whose sizes depend on it."""
_BOUNDS = {
    "clamp", "clamp_min", "clamp_max", "clip", "hardtanh", "nan_to_num", "maximum", "minimum", "fmax", "fmin",
}  # fmt: skip
"""Names, without the underscore of those that write in place, of functions that may leave made-up numbers as they are
and true ones not."""


class MadeUp(torch.Tensor):  # type: ignore[misc]
    """A tensor of random numbers. What torch computes of one is one too, and none of them can be looked at: a pipeline
    that decides by the numbers of a step would decide by these."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ in _READS:
            raise Deviation("it looks at numbers of its loop's samples or predictions")
        if (name := func.__name__.rstrip("_")) in _BOUNDS:
            raise Deviation(f"it keeps samples or predictions of its loop within bounds ({name})")
        others = [
            (tensor, tensor._version)
            for tensor in tensors_in((args, kwargs))
            if not isinstance(tensor, MadeUp) and not tensor.is_inference()  # these have no versions
        ]
        result = super().__torch_function__(func, types, args, dict(kwargs or {}))
        if any(tensor._version != version for tensor, version in others):
            raise Deviation("it writes samples or predictions of its loop into a tensor of its own")
        return result


def made_up(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of `tensor` whose numbers cannot be looked at."""
    return tensor.clone().as_subclass(MadeUp)


def looked_at(value: Any) -> Any:
    """`value` with tensors whose numbers can be looked at, in lists and mappings too; itself if it has no others."""
    if not holds_made_up(value):
        return value
    if isinstance(value, torch.Tensor):
        with torch._C.DisableTorchFunctionSubclass():
            return value.as_subclass(torch.Tensor)
    if isinstance(value, Mapping):
        return {key: looked_at(inner) for key, inner in value.items()}
    return [looked_at(inner) for inner in value]


def holds_made_up(value: Any) -> bool:
    """Whether a `MadeUp` is in a value, its lists and mappings included, as outputs of pipelines are."""
    return any(isinstance(tensor, MadeUp) for tensor in tensors_in(value))


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value, its lists and mappings included."""
    return (leaf for leaf in leaves_in(value) if isinstance(leaf, torch.Tensor))
