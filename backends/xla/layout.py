"""Arrays whose channels are held last, and how torch's ops run on them without bringing them back.

XLA computes convolutions channels-last, and on CPUs it keeps every transposition that is asked for: between two
convolutions each norm and activation would gather its operands from all over memory. torch knows the order of an array
in memory by its strides; here an array that says its order goes from op to op, and an op without a rule for it is given
the array in its own order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.utils import _pytree as pytree

from graphopt.backends.xla import channels_last
from graphopt.backends.xla.kernels import CONVOLUTIONS_LAST, Kernel


@dataclass(frozen=True)
class ChannelsLast:
    """An array [N, C, *spatial], as `held` [N, *spatial, C]."""

    held: Any

    @property
    def shape(self) -> tuple[int, ...]:
        n, *spatial, c = self.held.shape
        return (n, c, *spatial)

    ndim = property(lambda self: self.held.ndim)
    dtype = property(lambda self: self.held.dtype)

    def astype(self, dtype: Any) -> ChannelsLast:
        return ChannelsLast(self.held.astype(dtype))


def moved(x: Any) -> Any:
    """`x` with its channels last, if it has some beside spatial axes."""
    return ChannelsLast(jnp.moveaxis(x, 1, -1)) if x.ndim > 2 else x


def moves(target: Any, operands: Sequence[Any]) -> bool:
    """Whether the op `target` runs otherwise on `operands` with channels last than by its kernel alone: by a rule, or
    on several that are brought into one order."""
    if not any(x.ndim > 2 for x in operands):
        return False
    return str(target) in RULES or (_is_pointwise(target) and len(operands) > 1)


def plain(tree: Any) -> Any:
    """`tree` with all arrays in their own order."""
    return pytree.tree_map(lambda x: jnp.moveaxis(x.held, -1, 1) if isinstance(x, ChannelsLast) else x, tree)


def run(target: Any, kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What the op `target` with the kernel `kernel` gives, of arrays in either order."""
    rule = RULES.get(str(target))
    result = NotImplemented
    if rule is not None:
        result = rule(*args, **kwargs)
    elif _is_pointwise(target):
        result = _pointwise(kernel, args, kwargs)
    return kernel(*plain(args), **plain(kwargs)) if result is NotImplemented else result


def _is_pointwise(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags


def _pointwise(kernel: Kernel, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Every operand with its channels where those of the result are."""
    arrays = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, ChannelsLast | jax.Array)]
    lasts = [x.ndim for x in arrays if isinstance(x, ChannelsLast)]
    rank = max((x.ndim for x in arrays), default=0)
    if rank not in lasts:
        return NotImplemented

    def held(x: Any) -> Any:
        if isinstance(x, ChannelsLast) and x.ndim == rank:
            return x.held
        x = plain(x)
        if not isinstance(x, jax.Array) or x.ndim == 0:
            return x
        return jnp.moveaxis(x.reshape((1,) * (rank - x.ndim) + x.shape), 1, -1)

    return ChannelsLast(kernel(*pytree.tree_map(held, args), **pytree.tree_map(held, kwargs)))


def _convolution(kernel: Kernel) -> Kernel:
    def rule(x: Any, weight: Any, *rest: Any, **named: Any) -> Any:
        if x.ndim != weight.ndim:
            return NotImplemented
        return ChannelsLast(kernel(_last(x), *plain((weight, *rest)), **plain(named)))

    return rule


def _group_norm(
    x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    if not isinstance(x, ChannelsLast):
        return NotImplemented
    return ChannelsLast(channels_last.group_normed(x.held, weight, bias, groups, eps)[0])


def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    """Held last if all of them are."""
    if not all(isinstance(x, ChannelsLast) for x in tensors):
        return NotImplemented
    return ChannelsLast(jnp.concatenate([x.held for x in tensors], _place(dim, tensors[0].ndim)))


def _permute(x: Any, dims: Sequence[int]) -> Any:
    if isinstance(x, ChannelsLast):
        return jnp.transpose(x.held, [_place(dim, x.ndim) for dim in dims])
    # An image whose channels are brought to their place stays where it is.
    brings = x.ndim > 3 and tuple(dims) == (0, x.ndim - 1, *range(1, x.ndim - 1))
    return ChannelsLast(x) if brings else NotImplemented


def _place(dim: int, rank: int) -> int:
    """Where axis `dim` of an array is held."""
    dim %= rank
    return 0 if dim == 0 else rank - 1 if dim == 1 else dim - 1


def _last(x: Any) -> Any:
    return x.held if isinstance(x, ChannelsLast) else jnp.moveaxis(x, 1, -1)


RULES: Mapping[str, Callable[..., Any]] = {
    **{target: _convolution(kernel) for target, kernel in CONVOLUTIONS_LAST.items()},
    "aten.group_norm.default": _group_norm,
    "aten.cat.default": _cat,
    "aten.permute.default": _permute,
}
"""What runs an op on arrays of either order; NotImplemented where the kernel has to, on arrays in their own. Ops that
torch calls pointwise need none."""
