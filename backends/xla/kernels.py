"""How each torch op is said in JAX: by torchax, and here where torchax has no kernel or a wrong one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import torch

from graphopt.backends.constants import is_random
from graphopt.backends.xla import channels_last
from graphopt.errors import UnsupportedError

Kernel = Callable[..., Any]

FAILING = frozenset({"aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding", "aten.pad.default"})
"""Ops of which torchax's kernel fails for some arguments: padding by a name, repeated borders. They are said in the
vocabulary, or taken apart."""


def kernel_of(target: Any) -> Kernel | None:
    """The kernel of the op `target`, an OpOverload, a higher-order op or a `torch_calls.VocabularyCall`; None if there
    is none."""
    if (said := getattr(target, "in_jax", None)) is not None:
        return said  # type: ignore[no-any-return]
    own = OWN.get(str(target))
    if own is not None or not isinstance(target, torch._ops.OpOverload):
        return own
    if is_random(target) or str(target) in FAILING:
        return None
    registered = _torchax().get(target) or _torchax().get(target.overloadpacket)
    return registered.func if registered is not None and registered.is_jax_function else None


@cache
def _torchax() -> Any:
    """torchax's kernels by op. Only they are wanted: as it is imported it would also make "jax" a device of torch,
    after which torch.export cannot trace branches any more in this process."""
    with patch.object(torch.utils, "rename_privateuse1_backend"), patch.object(torch, "_register_device_module"):
        import torchax.ops.jaten  # noqa: F401  registers them
        from torchax.ops import ops_registry

    return ops_registry.all_aten_ops


def convolution(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """aten.convolution: x [N, C, *spatial] or [C, *spatial]. torchax mixes the groups of transposed ones.

    A transposed convolution is one of the input with stride - 1 zeros between its elements and the flipped kernel
    (Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016, section 4).
    """
    batched = x.ndim == weight.ndim
    operand = jnp.moveaxis(x if batched else x[None], 1, -1)
    y = convolution_last(operand, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    y = jnp.moveaxis(y, -1, 1)
    return y if batched else y[0]


def convolution_last(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """`convolution` of x [N, *spatial, C]."""
    spatial = weight.ndim - 2
    stride, padding, dilation, output_padding = (
        tuple(v) * spatial if len(v) == 1 else tuple(v) for v in (stride, padding, dilation, output_padding)
    )
    kernel, between, step = weight, (1,) * spatial, stride
    pads = [(p, p) for p in padding]
    if transposed:
        kernel, between, step = flipped(weight, groups), stride, (1,) * spatial
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        pads = [(r - p, r - p + o) for r, p, o in zip(reach, padding, output_padding, strict=True)]
    return channels_last.convolved(
        x, kernel, bias, step, pads, between=between, dilation=dilation, groups=groups
    )


def convolved(
    x: Any, kernel: Any, bias: Any, stride: Any, pads: Any, *, between: Any = None, dilation: Any, groups: int
) -> Any:
    """`channels_last.convolved` of x [N, C, *spatial]."""
    y = channels_last.convolved(
        jnp.moveaxis(x, 1, -1), kernel, bias, stride, pads, between=between, dilation=dilation, groups=groups
    )
    return jnp.moveaxis(y, -1, 1)


def flipped(weight: Any, groups: int) -> Any:
    """[in, out/groups, *kernel] as the kernel [out, in/groups, *kernel] of the convolution that it transposes."""
    inputs, outputs, *kernel = weight.shape
    grouped = weight.reshape(groups, inputs // groups, outputs, *kernel).swapaxes(1, 2)
    return jnp.flip(grouped.reshape(groups * outputs, inputs // groups, *kernel), range(2, 2 + len(kernel)))


def _conv(transposed: bool) -> Kernel:
    def kernel(x: Any, weight: Any, bias: Any = None, *sizes: Any, **named: Any) -> Any:
        return convolution(x, weight, bias, *_convolution_sizes(transposed, sizes, named))

    return kernel


def _conv_last(transposed: bool) -> Kernel:
    def kernel(x: Any, weight: Any, bias: Any = None, *sizes: Any, **named: Any) -> Any:
        return convolution_last(x, weight, bias, *_convolution_sizes(transposed, sizes, named))

    return kernel


def _convolution_sizes(transposed: bool, sizes: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """What aten.convolution takes after the bias, for the arguments of aten.conv*d or aten.conv_transpose*d."""
    names = ("stride", "padding", "output_padding", "groups", "dilation") if transposed else (
        "stride", "padding", "dilation", "groups")  # fmt: skip
    given = dict(zip(names, sizes, strict=False)) | dict(named)
    return (
        given.get("stride", (1,)), given.get("padding", (0,)), given.get("dilation", (1,)), transposed,
        given.get("output_padding", (0,)), given.get("groups", 1),
    )  # fmt: skip


def attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """aten.scaled_dot_product_attention: [..., L, E], [..., S, E], [..., S, V] to [..., L, V].

    Scores and their softmax are of float32 where the dtype is a lower one. A row that is masked everywhere is 0, as in
    torch.
    """
    if dropout_p:
        raise UnsupportedError("backend 'xla': dropout in attention; JAX draws other numbers than torch")
    if enable_gqa:
        key, value = (jnp.repeat(x, query.shape[-3] // x.shape[-3], axis=-3) for x in (key, value))
    wide = jnp.promote_types(query.dtype, jnp.float32)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = jnp.einsum("...ld,...sd->...ls", query, key, preferred_element_type=wide) * jnp.asarray(factor, wide)
    if is_causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf) if mask.dtype == bool else scores + mask.astype(wide)
    # A masked score is -inf; the largest of a row that has no other is taken as 0, so that its weights are 0 / 0.
    largest = jnp.max(scores, -1, keepdims=True, initial=-jnp.inf)
    weights = jnp.exp(scores - jnp.where(jnp.isneginf(largest), 0, largest))
    total = weights.sum(-1, keepdims=True)
    weights = weights / jnp.where(total == 0, 1, total)
    return jnp.einsum("...ls,...sv->...lv", weights.astype(value.dtype), value).astype(query.dtype)


def int_matmul(a: Any, b: Any) -> Any:
    """aten._int_mm: int8 [M, K] by int8 [K, N] with sums of int32."""
    return jax.lax.dot(a, b, preferred_element_type=jnp.int32)


def fake_quantize(x: Any, scale: Any, zero_point: Any, lowest: int, highest: int) -> Any:
    """aten.fake_quantize_per_tensor_affine: x rounded to the grid of `scale`, clamped to [lowest, highest]."""
    steps = jnp.rint(x * (1.0 / jnp.asarray(scale, x.dtype))) + zero_point
    return ((jnp.clip(steps, lowest, highest) - zero_point) * scale).astype(x.dtype)


def grouped_matmul(x: Any, weights: Any, ends: Any, bias: Any = None, out_dtype: Any = None) -> Any:
    """aten._grouped_mm of [S, in] by [E, in, out]: rows up to ends[0] by the first matrix, and so on; rows past the
    last end are 0. XLA's ragged_dot, which a TPU computes without the rows of other experts."""
    if x.ndim != 2 or weights.ndim != 3 or bias is not None or out_dtype is not None:
        raise UnsupportedError("backend 'xla': a grouped product of other operands than rows by a stack of matrices")
    sizes = jnp.diff(ends, prepend=0).astype(jnp.int32)
    product = jax.lax.ragged_dot(x, weights, sizes)
    return jnp.where(jnp.arange(len(x))[:, None] < ends[-1], product, 0)


def layer_norm(
    x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True
) -> Any:
    """aten.layer_norm over the last len(shape) axes, multiplied by 1 / deviation as in torch; in float32 where the
    dtype is a lower one."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    given, axes = x.astype(wide), tuple(range(x.ndim - len(shape), x.ndim))
    scale = jax.lax.rsqrt(jnp.var(given, axes, keepdims=True) + eps)
    y = (given - jnp.mean(given, axes, keepdims=True)) * scale
    y = y if weight is None else y * weight.astype(wide)
    return (y if bias is None else y + bias.astype(wide)).astype(x.dtype)


def gelu(x: Any, *, approximate: str = "none") -> Any:
    """aten.gelu by torch's formulas, in float32 where the dtype is a lower one. JAX computes the one with erf by erfc,
    which is exact far below 0, where torch's is not, and three times the work."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    exact = approximate == "none"
    y = 0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5)) if exact else jax.nn.gelu(wide, approximate=True)
    return y.astype(x.dtype)


def constant_pad(x: Any, pads: Sequence[int], value: Any = 0) -> Any:
    """aten.constant_pad_nd: begin and end of the last axis, of the one before it, and so on; negative ones cut off."""
    pairs = list(zip(pads[::2], pads[1::2], strict=True))[::-1]
    around = [(0, 0)] * (x.ndim - len(pairs)) + pairs
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), [(begin, end, 0) for begin, end in around])


def batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, cudnn: bool = True
) -> Any:
    """aten.batch_norm of [N, C, *spatial] by the running statistics; in float32 where the dtype is a lower one."""
    if training:
        raise UnsupportedError("backend 'xla': a batch norm in training mode; call eval() on the model")
    wide, per_channel = jnp.promote_types(x.dtype, jnp.float32), (-1, *(1,) * (x.ndim - 2))

    def spread(statistic: Any) -> Any:
        return statistic.astype(wide).reshape(per_channel)

    y = (x.astype(wide) - spread(mean)) * jax.lax.rsqrt(spread(var) + eps)
    y = y if weight is None else y * spread(weight)
    return (y if bias is None else y + spread(bias)).astype(x.dtype)


def group_norm(x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: bool = True) -> Any:
    """aten.group_norm of [N, C, *spatial]. torchax has a loop here, which nothing fuses with."""
    return _grouped(x, weight, bias, groups, eps)[0]


def native_group_norm(x: Any, weight: Any, bias: Any, n: int, c: int, size: int, groups: int, eps: float) -> Any:
    """aten.native_group_norm of [N, C, *spatial], with mean and 1 / deviation [N, groups]."""
    return _grouped(x, weight, bias, groups, eps)


def _grouped(x: Any, weight: Any, bias: Any, groups: int, eps: float) -> tuple[Any, Any, Any]:
    y, mean, scale = channels_last.group_normed(jnp.moveaxis(x, 1, -1), weight, bias, groups, eps)
    return jnp.moveaxis(y, -1, 1), mean, scale


def repeat_interleave(x: Any, repeats: int, dim: int | None = None, *, output_size: int | None = None) -> Any:
    """aten.repeat_interleave.self_int: every element `repeats` times, along `dim` or all in a row. `output_size` is
    what follows from that; torchax does not take it."""
    return jnp.repeat(x.reshape(-1) if dim is None else x, repeats, axis=0 if dim is None else dim)


def divide(x: Any, y: Any, *, rounding_mode: str | None = None) -> Any:
    """aten.div with a rounding mode. torchax rounds the quotient of 64-bit integers to a float first."""
    if rounding_mode == "trunc" and jnp.issubdtype(jnp.result_type(x, y), jnp.integer):
        return jnp.floor_divide(x - jnp.fmod(x, y), y)
    return _torchax()[torch.ops.aten.div].func(x, y, rounding_mode)


def sign(x: Any) -> Any:
    """aten.sign: that of NaN is 0 to torch."""
    return jnp.nan_to_num(jnp.sign(x), nan=0.0)


OWN: dict[str, Kernel] = {
    "aten.convolution.default": convolution,
    **{f"aten.conv{n}d.default": _conv(False) for n in (1, 2, 3)},
    "aten.conv_transpose1d.default": _conv(True),
    "aten.conv_transpose2d.input": _conv(True),
    "aten.conv_transpose3d.input": _conv(True),
    "aten.scaled_dot_product_attention.default": attention,
    "aten.batch_norm.default": batch_norm,
    "aten.group_norm.default": group_norm,
    "aten.native_group_norm.default": native_group_norm,
    "aten._grouped_mm.default": grouped_matmul,
    "transformers.grouped_mm_fallback.default": grouped_matmul,
    "aten._int_mm.default": int_matmul,
    "aten.gelu.default": gelu,
    "aten.layer_norm.default": layer_norm,
    "aten.min.other": jnp.minimum,
    "aten.max.other": jnp.maximum,
    "aten.constant_pad_nd.default": constant_pad,
    "aten.repeat_interleave.self_int": repeat_interleave,
    # torchax subtracts y times a rounded quotient, which is another remainder where that is rounded to an integer.
    **{f"aten.fmod.{overload}": jnp.fmod for overload in ("Tensor", "Scalar")},
    **{f"aten.div.{overload}_mode": divide for overload in ("Tensor", "Scalar")},
    "aten.sign.default": sign,
    "aten.sym_size.int": lambda x, dim: x.shape[dim],
    "aten.sym_numel.default": lambda x: x.size,
    "aten._assert_scalar.default": lambda *_: None,
    "aten._assert_tensor_metadata.default": lambda *_, **__: None,
    "aten.fake_quantize_per_tensor_affine.default": fake_quantize,
    "aten.fake_quantize_per_tensor_affine.tensor_qparams": fake_quantize,
}
"""What torchax lacks or has wrong; each is a row of the conformance tests."""

CONVOLUTIONS_LAST: dict[str, Kernel] = {
    "aten.convolution.default": convolution_last,
    **{f"aten.conv{n}d.default": _conv_last(False) for n in (1, 2, 3)},
    "aten.conv_transpose1d.default": _conv_last(True),
    "aten.conv_transpose2d.input": _conv_last(True),
    "aten.conv_transpose3d.input": _conv_last(True),
}
"""Kernels of convolutions whose input and result are [N, *spatial, C]."""
