"""What is computed on arrays [N, *spatial, C]: the order in which XLA wants convolutions.

It brings convolutions to this form by itself, but on CPUs not those inside of a loop: there any other form is a plain
nest of loops, of a tenth of the speed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def convolved(
    x: Any, kernel: Any, bias: Any, stride: Any, pads: Any, *, between: Any = None, dilation: Any, groups: int
) -> Any:
    """XLA's convolution of x [N, *spatial, C], `between` - 1 zeros put between its elements, with a kernel
    [out, in, *kernel]; `pads` are pairs, the bias may be None."""
    n = kernel.ndim - 2
    axes = tuple(range(1, n + 1))
    last, own = (0, n + 1, *axes), (n + 1, n, *range(n))
    y = jax.lax.conv_general_dilated(
        x, jnp.moveaxis(kernel, (0, 1), (-1, -2)), stride, pads,
        lhs_dilation=between, rhs_dilation=dilation, feature_group_count=groups,
        dimension_numbers=jax.lax.ConvDimensionNumbers(last, own, last),
    )  # fmt: skip
    return y if bias is None else y + bias


def group_normed(x: Any, weight: Any, bias: Any, groups: int, eps: float) -> tuple[Any, Any, Any]:
    """The group norm of x [N, *spatial, C], its mean and 1 / deviation [N, groups].

    Statistics and sums are of float32 where the dtype is a lower one, as in torch. Sums are taken over the spatial axes
    first and over the channels of a group then, so that neighbours in memory are summed side by side.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    n, c, axes = x.shape[0], x.shape[-1], tuple(range(1, x.ndim - 1))

    def mean_of(values: Any) -> Any:
        return values.mean(axes).reshape(n, groups, c // groups).mean(-1)

    def spread(statistic: Any) -> Any:
        return jnp.repeat(statistic, c // groups, axis=1).reshape(n, *(1,) * len(axes), c)

    mean = mean_of(x.astype(wide))
    centred = x.astype(wide) - spread(mean)
    scale = jax.lax.rsqrt(mean_of(jnp.square(centred)) + eps)
    gain = spread(scale)
    y = centred * (gain if weight is None else gain * weight.astype(wide))
    y = y if bias is None else y + bias.astype(wide)
    return y.astype(x.dtype), mean.astype(x.dtype), scale.astype(x.dtype)
