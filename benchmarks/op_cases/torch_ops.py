"""Examples of the ATen operators that the torch storage reads: what runs, on what, what it is read as."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

aten = torch.ops.aten


class Case(NamedTuple):
    op: str
    run: Callable[..., Any]
    inputs: tuple[torch.Tensor, ...]
    writable: bool = True


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape) + len(shape))) * 4 - 2


def positive(*shape: int) -> torch.Tensor:
    return rand(*shape).abs() + 0.25


def whole(*shape: int, high: int = 5) -> torch.Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(len(shape)))


X, Y, ROW = rand(3, 4), rand(3, 4) + 0.1, rand(4)
IMAGE, BATCH = rand(2, 4, 9, 8), rand(2, 4, 6, 6)
TRUTH = X > 0
LSTM = (rand(2, 4, 3), rand(1, 2, 5), rand(1, 2, 5), rand(20, 3), rand(20, 5), rand(20), rand(20))
CHANNELS = (positive(4), rand(4), rand(4), positive(4))

CASES: dict[str, Case] = {
    **{
        name: Case(name, getattr(torch, name), (X,))
        for name in (
            "relu",
            "sigmoid",
            "tanh",
            "exp",
            "neg",
            "abs",
            "floor",
            "ceil",
            "erf",
            "sin",
            "cos",
            "sign",
        )
    },
    **{
        name: Case(name, getattr(torch, name), (positive(3, 4),))
        for name in ("log", "sqrt", "rsqrt", "reciprocal")
    },
    "round": Case("round", torch.round, (X * 4,)),
    "silu": Case("silu", F.silu, (X,)),
    "mish": Case("mish", F.mish, (X,)),
    "hardswish": Case("hard_swish", F.hardswish, (X * 3,)),
    "hardsigmoid": Case("hard_sigmoid", F.hardsigmoid, (X * 3,)),
    "isnan": Case("is_nan", torch.isnan, (torch.tensor([0.0, float("nan")]),)),
    "logical_not": Case("logical_not", torch.logical_not, (TRUTH,)),
    "bitwise_not": Case("logical_not", torch.bitwise_not, (TRUTH,)),
    "clone": Case("identity", torch.clone, (X,)),
    "dropout": Case("identity", lambda x: F.dropout(x, 0.5, training=False), (X,)),
    "to": Case("cast", lambda x: x.to(torch.float64), (X,)),
    "to_int": Case("cast", lambda x: x.to(torch.int32), (X,)),
    "type_as": Case("cast", lambda x, i: x.type_as(i), (X, whole(1))),
    "gelu": Case("gelu", F.gelu, (X,)),
    "gelu_tanh": Case("gelu", lambda x: F.gelu(x, approximate="tanh"), (X,)),
    "leaky_relu": Case("leaky_relu", lambda x: F.leaky_relu(x, 0.2), (X,)),
    "elu": Case("elu", lambda x: F.elu(x, 1.5), (X,)),
    "softplus": Case("softplus", lambda x: F.softplus(x, 2.0, 3.0), (X,)),
    "prelu_one": Case("prelu", F.prelu, (IMAGE, rand(1))),
    "prelu_matrix": Case("prelu", F.prelu, (X, rand(4))),
    "prelu_kernel": Case("prelu", aten._prelu_kernel.default, (IMAGE, rand(1, 4, 1, 1))),
    "clamp": Case("clamp", lambda x: x.clamp(-1, 1.5), (X,)),
    "clamp_min": Case("clamp", lambda x: x.clamp_min(0.5), (X,)),
    "clamp_max": Case("clamp", lambda x: x.clamp_max(0.5), (X,)),
    "clamp_tensors": Case("clamp", lambda x, y: x.clamp(min=y), (X, Y)),
    "relu6": Case("clamp", F.relu6, (X * 5,)),
    "hardtanh": Case("clamp", lambda x: F.hardtanh(x, -0.5, 0.5), (X,)),
    "add": Case("add", torch.add, (X, ROW)),
    "add_number": Case("add", lambda x: x + 2, (X,)),
    "add_integers": Case("add", lambda x: x + 2, (whole(3, 4),)),
    "sub": Case("sub", torch.sub, (X, ROW)),
    "rsub": Case("sub", lambda x: 1 - x, (X,)),
    "mul": Case("mul", torch.mul, (X, ROW)),
    "mul_number": Case("mul", lambda x: x * 0.3, (X,)),
    "div": Case("div", torch.div, (X, Y)),
    "div_floor": Case("div", lambda x, y: torch.div(x, y, rounding_mode="floor"), (X, Y)),
    "div_trunc": Case("div", lambda x: torch.div(x, 3, rounding_mode="trunc"), (whole(3, 4),)),
    "floor_divide": Case("div", lambda x: x // 3, (whole(3, 4, high=20),)),
    "pow_number": Case("pow", lambda x: x**3, (X,)),
    "pow_tensors": Case("pow", torch.pow, (positive(3, 4), X)),
    "pow_of_number": Case("pow", lambda x: 2.0**x, (X,)),
    "maximum": Case("maximum", torch.maximum, (X, Y)),
    "minimum": Case("minimum", torch.minimum, (X, Y)),
    "remainder": Case("mod", torch.remainder, (X, Y)),
    "remainder_number": Case("mod", lambda x: x % 0.7, (X,)),
    "fmod": Case("mod", torch.fmod, (X, Y)),
    **{
        op: Case(op, getattr(torch, name), (X.round(), Y.round()))
        for op, name in {
            "equal": "eq",
            "not_equal": "ne",
            "less": "lt",
            "less_equal": "le",
            "greater": "gt",
            "greater_equal": "ge",
        }.items()
    },
    "less_number": Case("less", lambda x: x < 0.5, (X,)),
    "logical_and": Case("logical_and", torch.logical_and, (TRUTH, Y > 0)),
    "logical_or": Case("logical_or", torch.logical_or, (TRUTH, Y > 0)),
    "logical_xor": Case("logical_xor", torch.logical_xor, (TRUTH, Y > 0)),
    "bitwise_and": Case("logical_and", torch.bitwise_and, (TRUTH, Y > 0)),
    "bitwise_or": Case("logical_or", torch.bitwise_or, (TRUTH, Y > 0)),
    "where": Case("where", torch.where, (TRUTH, X, Y)),
    "masked_fill": Case("where", lambda x, m: x.masked_fill(m, float("-inf")), (X, TRUTH)),
    "matmul": Case("matmul", torch.matmul, (rand(2, 3, 4), rand(4, 5))),
    "mm": Case("matmul", torch.mm, (X, rand(4, 5))),
    "bmm": Case("matmul", torch.bmm, (rand(2, 3, 4), rand(2, 4, 5))),
    "linear": Case("linear", F.linear, (rand(2, 3, 4), rand(5, 4), rand(5))),
    "linear_bare": Case("linear", F.linear, (rand(2, 3, 4), rand(5, 4))),
    "addmm": Case("linear", torch.addmm, (rand(5), X, rand(4, 5))),
    "einsum": Case("einsum", lambda a, b: torch.einsum("bij,bjk->bik", a, b), (rand(2, 3, 4), rand(2, 4, 5))),
    "outer": Case("einsum", torch.outer, (rand(3), rand(5))),
    "attention": Case(
        "attention", F.scaled_dot_product_attention, (rand(2, 3, 5, 8), rand(2, 3, 6, 8), rand(2, 3, 6, 4))
    ),
    "attention_causal": Case(
        "attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3),
        (rand(2, 3, 6, 8), rand(2, 3, 6, 8), rand(2, 3, 6, 8)),
    ),
    "attention_mask": Case(
        "attention",
        F.scaled_dot_product_attention,
        (rand(2, 3, 5, 8), rand(2, 3, 6, 8), rand(2, 3, 6, 8), torch.tril(torch.ones(5, 6)).bool()),
    ),
    "attention_bias": Case(
        "attention",
        F.scaled_dot_product_attention,
        (rand(2, 3, 5, 8), rand(2, 3, 6, 8), rand(2, 3, 6, 8), rand(5, 6)),
    ),
    "attention_gqa": Case(
        "attention",
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        (rand(2, 4, 5, 8), rand(2, 2, 6, 8), rand(2, 2, 6, 8)),
    ),
    "conv1d": Case("conv", lambda x, w, b: F.conv1d(x, w, b, 2, 1), (rand(2, 4, 9), rand(6, 4, 3), rand(6))),
    "conv2d": Case(
        "conv",
        lambda x, w, b: F.conv2d(x, w, b, (1, 2), (1, 0), (2, 1), 2),
        (IMAGE, rand(6, 2, 3, 3), rand(6)),
    ),
    "conv3d": Case(
        "conv", lambda x, w: F.conv3d(x, w, None, 1, 1), (rand(1, 2, 4, 4, 4), rand(3, 2, 3, 3, 3))
    ),
    "conv2d_same": Case("conv", lambda x, w: F.conv2d(x, w, padding="same"), (IMAGE, rand(6, 4, 3, 5))),
    "conv2d_same_even": Case(
        "conv", lambda x, w: F.conv2d(x, w, padding="same"), (IMAGE, rand(6, 4, 4, 2)), False
    ),
    "conv2d_valid": Case("conv", lambda x, w: F.conv2d(x, w, padding="valid"), (IMAGE, rand(6, 4, 3, 3))),
    "convolution": Case(
        "conv",
        lambda x, w, b: aten.convolution(x, w, b, [2, 1], [1, 1], [1, 1], False, [0, 0], 1),
        (IMAGE, rand(6, 4, 3, 3), rand(6)),
    ),
    "convolution_transposed": Case(
        "conv_transpose",
        lambda x, w, b: aten.convolution(x, w, b, [2, 2], [1, 1], [1, 1], True, [1, 0], 1),
        (IMAGE, rand(4, 6, 3, 3), rand(6)),
    ),
    "conv_transpose1d": Case(
        "conv_transpose", lambda x, w: F.conv_transpose1d(x, w, None, 2, 1, 1), (rand(2, 4, 9), rand(4, 3, 3))
    ),
    "conv_transpose2d": Case(
        "conv_transpose",
        lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, (1, 0), 2, (1, 2)),
        (IMAGE, rand(4, 3, 3, 3), rand(6)),
    ),
    "max_pool1d": Case("max_pool", lambda x: F.max_pool1d(x, 3, 2, 1), (rand(2, 4, 9),)),
    "max_pool2d": Case("max_pool", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (IMAGE,)),
    "max_pool2d_default_stride": Case("max_pool", lambda x: F.max_pool2d(x, (2, 3)), (IMAGE,)),
    "max_pool2d_dilated": Case("max_pool", lambda x: F.max_pool2d(x, 2, 1, 0, 2), (IMAGE,)),
    "avg_pool1d": Case("avg_pool", lambda x: F.avg_pool1d(x, 3, 2, 1), (rand(2, 4, 9),)),
    "avg_pool2d": Case("avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1), (IMAGE,)),
    "avg_pool2d_ceil": Case(
        "avg_pool", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False), (IMAGE,)
    ),
    "upsample_nearest": Case("resize", lambda x: F.interpolate(x, scale_factor=2.0), (IMAGE,)),
    "upsample_nearest_size": Case("resize", lambda x: F.interpolate(x, size=(13, 5)), (IMAGE,)),
    "upsample_nearest_exact": Case(
        "resize", lambda x: F.interpolate(x, size=(13, 5), mode="nearest-exact"), (IMAGE,)
    ),
    "upsample_linear": Case("resize", lambda x: F.interpolate(x, size=13, mode="linear"), (rand(2, 4, 9),)),
    "upsample_bilinear": Case(
        "resize", lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), (IMAGE,)
    ),
    "upsample_corners": Case(
        "resize", lambda x: F.interpolate(x, size=(13, 5), mode="bilinear", align_corners=True), (IMAGE,)
    ),
    "upsample_bicubic": Case("resize", lambda x: F.interpolate(x, size=(13, 15), mode="bicubic"), (IMAGE,)),
    "pixel_shuffle": Case("depth_to_space", lambda x: F.pixel_shuffle(x, 2), (IMAGE,)),
    "batch_norm": Case(
        "batch_norm", lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b, False, 0.1, 1e-3), (IMAGE, *CHANNELS)
    ),
    "batch_norm_plain": Case(
        "batch_norm", lambda x, m, v: F.batch_norm(x, m, v), (IMAGE, rand(4), positive(4))
    ),
    "instance_norm": Case(
        "instance_norm", lambda x, s, b: F.instance_norm(x, None, None, s, b), (IMAGE, *CHANNELS[:2])
    ),
    "batch_norm_of_one_sample": Case(
        "instance_norm",
        lambda x, s, b: F.batch_norm(x, None, None, s, b, training=True, eps=1e-3),
        (IMAGE[:1], *CHANNELS[:2]),
    ),
    "layer_norm": Case("layer_norm", lambda x, s, b: F.layer_norm(x, (4,), s, b, 1e-3), (X, *CHANNELS[:2])),
    "layer_norm_two_axes": Case("layer_norm", lambda x: F.layer_norm(x, (9, 8)), (IMAGE,)),
    "native_layer_norm": Case(
        "layer_norm", lambda x, s, b: aten.native_layer_norm(x, [4], s, b, 1e-5)[0], (X, *CHANNELS[:2])
    ),
    "group_norm": Case("group_norm", lambda x, s, b: F.group_norm(x, 2, s, b), (IMAGE, *CHANNELS[:2])),
    "native_group_norm": Case(
        "group_norm",
        lambda x, s, b: aten.native_group_norm(x, s, b, 2, 4, 72, 2, 1e-5)[0],
        (IMAGE, *CHANNELS[:2]),
    ),
    "rms_norm": Case("rms_norm", lambda x, s: F.rms_norm(x, (4,), s, 1e-5), (X, positive(4))),
    "rms_norm_default": Case("rms_norm", lambda x: F.rms_norm(x, (4,)), (X,)),
    "softmax": Case("softmax", lambda x: x.softmax(-2), (X,)),
    "log_softmax": Case("log_softmax", lambda x: x.log_softmax(-1), (X,)),
    "mean": Case("reduce_mean", lambda x: x.mean((-1, 2)), (IMAGE,)),
    "mean_all": Case("reduce_mean", torch.mean, (X,)),
    "global_average": Case("reduce_mean", lambda x: F.adaptive_avg_pool2d(x, 1), (IMAGE,)),
    "global_average1d": Case("reduce_mean", lambda x: F.adaptive_avg_pool1d(x, 1), (rand(2, 4, 9),)),
    "sum": Case("reduce_sum", lambda x: x.sum(1, keepdim=True), (X,)),
    "sum_all": Case("reduce_sum", torch.sum, (X,)),
    "amax": Case("reduce_max", lambda x: x.amax((0, 2)), (IMAGE,)),
    "max_dim": Case("reduce_max", lambda x: x.max(1).values, (X,)),
    "amin": Case("reduce_min", lambda x: x.amin(-1), (X,)),
    "prod": Case("reduce_prod", lambda x: x.prod(1), (X,)),
    "vector_norm": Case("reduce_l2", lambda x: torch.linalg.vector_norm(x, dim=1), (X,)),
    "norm": Case("reduce_l2", lambda x: x.norm(dim=-1, keepdim=True), (X,)),
    "argmax": Case("arg_max", lambda x: x.argmax(1), (X.round(),)),
    "argmin": Case("arg_min", lambda x: x.argmin(0, keepdim=True), (X.round(),)),
    "cumsum": Case("cumsum", lambda x: x.cumsum(1), (X,)),
    "topk": Case("topk", lambda x: x.topk(2, 1), (X,)),
    "cumsum_of_counts": Case("cumsum", lambda x: x.cumsum(0, dtype=torch.int32), (X.round(),), False),
    "sort": Case("sort", lambda x: x.sort(1), (X,), False),
    "sort_down": Case("sort", lambda x: x.round().sort(dim=0, descending=True, stable=True), (X,), False),
    "argsort": Case("sort", lambda x: x.argsort(0, descending=True), (X,), False),
    "argsort_stable": Case("sort", lambda x: x.round().argsort(dim=1, stable=True), (X,), False),
    "histc": Case("histogram", lambda x: x.histc(4, 0, 3), (whole(30).float(),), False),
    "grouped_mm": Case(
        "grouped_matmul",  # traced in bfloat16 only, in which sums of such whole numbers are exact
        lambda x, w, e: aten._grouped_mm(x, w, e),
        (whole(6, 8).bfloat16(), whole(3, 8, 8).bfloat16(), torch.tensor([2, 2, 6], dtype=torch.int32)),
        False,
    ),
    "topk_smallest": Case("topk", lambda x: x.topk(2, 0, largest=False), (X,)),
    "lstm": Case("lstm_layer", lambda *t: torch.lstm(t[0], t[1:3], t[3:], True, 1, 0.0, False, False, True), LSTM),
    "lstm_both_ways": Case(
        "lstm_layer", lambda *t: torch.lstm(t[0], t[1:3], t[3:], False, 1, 0.0, False, True, False),
        (rand(4, 2, 3), rand(2, 2, 5), rand(2, 2, 5), *[rand(20, 3), rand(20, 5)] * 2),
    ),
    "embedding": Case("gather", lambda w, i: F.embedding(i, w), (rand(7, 3), whole(2, 4))),
    "index_select": Case("gather", lambda x, i: x.index_select(1, i), (IMAGE, whole(3, high=4))),
    "select": Case("gather", lambda x: x.select(1, -2), (IMAGE,)),
    "index": Case("gather", lambda x, i: x[:, i], (IMAGE, whole(2, 3, high=4))),
    "gather": Case("gather_elements", lambda x, i: x.gather(1, i), (X, whole(3, 2, high=4))),
    "scatter": Case(
        "scatter_elements", lambda x, i, u: x.scatter(1, i, u), (X, torch.tensor([[0], [3], [1]]), rand(3, 1))
    ),
    "scatter_add": Case(
        "scatter_elements", lambda x, i, u: x.scatter_add(1, i, u), (X, whole(3, 2, high=4), rand(3, 2))
    ),
    "view": Case("reshape", lambda x: x.view(2, -1, 3), (X,)),
    "flatten": Case("reshape", lambda x: x.flatten(1), (IMAGE,)),
    "squeeze": Case("squeeze", lambda x: x.squeeze(1), (rand(3, 1, 2),)),
    "squeeze_all": Case("squeeze", torch.squeeze, (rand(1, 3, 1),)),
    "squeeze_nothing": Case("identity", lambda x: x.squeeze(1), (X,)),
    "unsqueeze": Case("unsqueeze", lambda x: x.unsqueeze(-1), (X,)),
    "permute": Case("transpose", lambda x: x.permute(0, 3, 1, 2), (IMAGE,)),
    "transpose": Case("transpose", lambda x: x.transpose(-1, 1), (IMAGE,)),
    "t": Case("transpose", torch.t, (X,)),
    "expand": Case("expand", lambda x: x.expand(2, 3, -1), (rand(1, 4),)),
    "cat": Case("concat", lambda x, y: torch.cat([x, y, x], -1), (X, Y)),
    "concat": Case("concat", lambda x, y: torch.concat([x, y], 0), (X, Y)),
    "concatenate": Case("concat", lambda x, y: torch.concatenate([x, y], 1), (X, Y)),
    "stack": Case("stack", lambda x, y: torch.stack([x, y, x], -1), (X, Y), False),
    "split": Case("split", lambda x: x.split(3, 1), (rand(2, 7),)),
    "split_sizes": Case("split", lambda x: x.split([1, 4, 2], 1), (rand(2, 7),)),
    "chunk": Case("split", lambda x: x.chunk(3, -1), (rand(2, 7),)),
    "slice": Case("slice", lambda x: x[:, 1:-1:2], (rand(2, 7),)),
    "slice_tail": Case("slice", lambda x: x[:, -3:], (rand(2, 7),)),
    "pad": Case("pad", lambda x: F.pad(x, (1, 2, 0, 3)), (IMAGE,)),
    "pad_value": Case("pad", lambda x: F.pad(x, (1, -2), value=1.5), (IMAGE,)),
    "pad_reflect": Case("pad", lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"), (IMAGE,)),
    "pad_edge": Case("pad", lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"), (IMAGE,)),
    "repeat": Case("tile", lambda x: x.repeat(2, 3), (X,)),
    "repeat_interleave": Case("repeat_interleave", lambda x: x.repeat_interleave(3, -1), (X,)),
    "roll": Case("roll", lambda x: x.roll((1, -2), (0, -1)), (X,), False),
    "roll_one": Case("roll", lambda x: x.roll(2, 1), (X,), False),
    "tril": Case("trilu", lambda x: x.tril(-1), (X,)),
    "triu": Case("trilu", lambda x: x.triu(1), (X,)),
    "full": Case("fill", lambda x: torch.full((2, 3), 1.5), (X,)),
    "zeros_like": Case("fill", torch.zeros_like, (X,)),
    "ones": Case("fill", lambda x: torch.ones(3, dtype=torch.bool), (X,)),
    "arange": Case("range", lambda x: torch.arange(2, 11, 3), (X,)),
    "arange_real": Case("range", lambda x: torch.arange(0, 5, dtype=torch.float32), (X,)),
}
