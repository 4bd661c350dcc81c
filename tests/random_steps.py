"""The steps of random modules: layers, and everything that moves, joins and cuts axes."""

from __future__ import annotations

import math
from typing import Any

import torch
from random_modules import Grower, factors, step
from torch.nn import functional


@step(range(1, 5))
def linear(g: Grower, i: int) -> bool:
    inner = g.values[i].shape[-1]
    known = [n for n, p in g.module.named_parameters() if p.dim() == 2 and p.shape[1] == inner]
    out = g.pick([2, 3, 4, 6, 8, 12])
    w = g.pick(known) if known and g.pick([True, False, False, False]) else g.weight(out, inner)
    out = getattr(g.module, w).shape[0]
    b = g.pick([None, g.weight(out)])
    return g.add("linear", lambda m, v: functional.linear(v[i], getattr(m, w), None if b is None else getattr(m, b)))


@step(range(3, 5))
def conv(g: Grower, i: int) -> bool:
    x = g.values[i]
    channels, n = x.shape[1], x.dim() - 2
    groups = g.pick([1, channels, *factors(channels)])
    out = groups * g.pick([1, 2, 3, 4])
    k = g.pick([1, 3])
    w = g.weight(out, channels // groups, *[k] * n)
    b = g.pick([None, g.weight(out)])
    run = functional.conv1d if n == 1 else functional.conv2d
    return g.add(
        "conv", lambda m, v: run(v[i], getattr(m, w), None if b is None else getattr(m, b), 1, k // 2, 1, groups)
    )


@step(range(3, 5))
def conv_transpose(g: Grower, i: int) -> bool:
    x = g.values[i]
    channels, n = x.shape[1], x.dim() - 2
    groups = g.pick([1, channels, *factors(channels)])
    out = groups * g.pick([1, 2, 3])
    w = g.weight(channels, out // groups, *[2] * n)
    b = g.pick([None, g.weight(out)])
    run = functional.conv_transpose1d if n == 1 else functional.conv_transpose2d
    return g.add(
        "conv_transpose", lambda m, v: run(v[i], getattr(m, w), None if b is None else getattr(m, b), 2, 0, 0, groups)
    )


@step(range(1, 5))
def unflatten(g: Grower, i: int) -> bool:
    x = g.values[i]
    dim = g.pick(range(x.dim()))
    sizes = g.pick([(k, x.shape[dim] // k) for k in factors(x.shape[dim])])
    return x.dim() < 5 and g.add("unflatten", lambda m, v: v[i].unflatten(dim, sizes))


@step(range(2, 7))
def flatten(g: Grower, i: int) -> bool:
    dim = g.pick(range(g.values[i].dim() - 1))
    return g.add("flatten", lambda m, v: v[i].flatten(dim, dim + 1))


@step(range(2, 5))
def reshape(g: Grower, i: int) -> bool:
    """To any shape of as many elements."""
    left, shape = g.values[i].numel(), []
    for _ in range(g.pick([0, 1, 2, 3])):
        shape.append(g.pick(factors(left)))
        left //= shape[-1]
    return g.add("reshape", lambda m, v: v[i].reshape(*shape, left))


@step(range(2, 6))
def permute(g: Grower, i: int) -> bool:
    dims, order = list(range(g.values[i].dim())), []
    while dims:
        order.append(g.pick(dims))
        dims.remove(order[-1])
    return g.add("permute", lambda m, v: v[i].permute(order))


@step(range(1, 5))
def concat(g: Grower, i: int) -> bool:
    x = g.values[i]
    dim = g.pick(range(x.dim()))
    fits = [j for j, y in enumerate(g.values) if _alike(x, y, dim)]
    j, k = g.pick(fits), g.pick(fits)
    order = g.pick([(i, j), (j, i), (i, j, k)])
    if g.pick([True, False]):
        shape = list(x.shape)
        shape[dim] = g.pick([1, 2, 4])
        w = g.weight(*shape)
        return g.add("concat-w", lambda m, v: torch.cat([v[i], getattr(m, w)], dim))
    return g.add("concat", lambda m, v: torch.cat([v[o] for o in order], dim))


def _alike(x: torch.Tensor, y: torch.Tensor, dim: int) -> bool:
    return x.dim() == y.dim() and all(a == b for d, (a, b) in enumerate(zip(x.shape, y.shape, strict=True)) if d != dim)


@step(range(1, 5))
def chunk(g: Grower, i: int) -> bool:
    x = g.values[i]
    dim = g.pick(range(x.dim()))
    n = g.pick([2, 3, 4])
    if x.shape[dim] < n:
        return False
    how = g.pick(["gate", "add", "first", "last", "swap"])

    def run(m: Any, v: list[torch.Tensor]) -> torch.Tensor:
        parts = v[i].chunk(n, dim)
        match how:
            case "gate":
                return parts[0] * functional.gelu(parts[1]) if parts[0].shape == parts[1].shape else parts[0]
            case "add":
                return parts[0] + parts[-1] if parts[0].shape == parts[-1].shape else parts[0]
            case "first" | "last":
                return parts[0 if how == "first" else -1]
            case _:
                return torch.cat(parts[::-1], dim)

    return g.add(f"chunk-{how}", run)


@step(range(1, 5))
def split(g: Grower, i: int) -> bool:
    x = g.values[i]
    dim = g.pick(range(x.dim()))
    size = x.shape[dim]
    if size < 2:
        return False
    first = g.pick(range(1, size))
    which = g.pick([0, 1, 2])
    order = (1, 0) if which == 2 else (which,)
    return g.add("split", lambda m, v: torch.cat([v[i].split([first, size - first], dim)[o] for o in order], dim))


@step(range(1, 5))
def slice_(g: Grower, i: int) -> bool:
    x = g.values[i]
    dim = g.pick(range(x.dim()))
    size = x.shape[dim]
    start = g.pick(range(size))
    length = g.pick(range(1, size - start + 1))
    return g.add("slice", lambda m, v: v[i].narrow(dim, start, length))


@step(range(1, 5))
def every_other(g: Grower, i: int) -> bool:
    x = g.values[i]
    dim, stride = g.pick(range(x.dim())), g.pick([2, 3])
    start = g.pick(range(stride))
    size = x.shape[dim]
    return size > stride and g.add("strided", lambda m, v: v[i][(slice(None),) * dim + (slice(start, size, stride),)])


@step(range(1, 5))
def pick_by_number(g: Grower, i: int) -> bool:
    """Reordered as a transposition does, some of it, twice; now and then in any order."""
    x = g.values[i]
    dim = g.pick(range(x.dim()))
    size = x.shape[dim]
    outer = g.pick(factors(size))
    numbers = torch.arange(size).reshape(outer, size // outer)
    match g.pick(["transposed", "transposed", "some", "twice", "any"]):
        case "transposed":
            numbers = numbers.T
        case "some":
            numbers = numbers[:, : 1 + (size // outer) // 2]
        case "twice":
            numbers = numbers.repeat_interleave(2)
        case _:
            numbers = torch.randperm(size, generator=g.random)
    picked = numbers.reshape(-1).contiguous()
    return g.add("picked", lambda m, v: v[i].index_select(dim, picked))


@step(range(2, 5))
def select(g: Grower, i: int) -> bool:
    dim = g.pick(range(g.values[i].dim()))
    at = g.pick(range(g.values[i].shape[dim]))
    return g.add("select", lambda m, v: v[i].select(dim, at))


@step(range(1, 4))
def repeat_interleave(g: Grower, i: int) -> bool:
    x = g.values[i]
    dim, n = g.pick(range(x.dim())), g.pick([2, 3])
    inner = g.pick([True, False])

    def run(m: Any, v: list[torch.Tensor]) -> torch.Tensor:
        at = dim + 1 if inner else dim
        wide = v[i].unsqueeze(at)
        shape = list(wide.shape)
        shape[at] = n
        return wide.expand(shape).flatten(dim, dim + 1)

    return g.add("repeat", run)


@step(range(1, 5))
def repeat(g: Grower, i: int) -> bool:
    repeats = [1] * g.values[i].dim()
    repeats[g.pick(range(len(repeats)))] = 2
    return g.add("tile", lambda m, v: v[i].repeat(*repeats))


@step(range(1, 5))
def with_weight(g: Grower, i: int) -> bool:
    """Add or multiply with a stored tensor that broadcasts."""
    x = g.values[i]
    shape = [n if g.pick([True, True, False]) else 1 for n in x.shape]
    lead = g.pick(range(len(shape)))
    w = g.weight(*shape[lead:])
    return g.add("weighted", _arithmetic(g, lambda m, v: v[i], lambda m, v: getattr(m, w)))


@step(range(1, 5))
def combine(g: Grower, i: int) -> bool:
    """Add or multiply two values that broadcast."""
    x = g.values[i]
    fits = [j for j, y in enumerate(g.values) if _broadcast(x, y)]
    j = g.pick(fits + [fits[-1]])
    return g.add("combine", _arithmetic(g, lambda m, v: v[i], lambda m, v: v[j]))


def _broadcast(x: torch.Tensor, y: torch.Tensor) -> bool:
    pairs = zip(reversed(x.shape), reversed(y.shape), strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def _arithmetic(g: Grower, a: Any, b: Any) -> Any:
    match g.pick(["add", "add", "mul", "mul", "sub", "max", "div", "where"]):
        case "add":
            return lambda m, v: a(m, v) + b(m, v)
        case "mul":
            return lambda m, v: a(m, v) * b(m, v)
        case "sub":
            return lambda m, v: b(m, v) - a(m, v)
        case "max":
            return lambda m, v: torch.maximum(a(m, v), b(m, v))
        case "div":
            return lambda m, v: a(m, v) / (1 + b(m, v) ** 2)
        case _:
            return lambda m, v: torch.where(a(m, v) > b(m, v), a(m, v), torch.zeros((), dtype=torch.float64))


@step(range(2, 4))
def plus_transpose(g: Grower, i: int) -> bool:
    x = g.values[i]
    return x.shape[-1] == x.shape[-2] and g.add("transposed", lambda m, v: v[i] + v[i].transpose(-1, -2))


@step(range(1, 5))
def layer_norm(g: Grower, i: int) -> bool:
    """With a scale, without which a sum over what is normalised would be nothing but rounding."""
    x = g.values[i]
    n = g.pick([1, 1, 2]) if x.dim() > 1 else 1
    shape = tuple(x.shape[-n:])
    w, b = g.weight(*shape), g.pick([None, g.weight(*shape)])

    def run(m: Any, v: list[torch.Tensor]) -> torch.Tensor:
        return functional.layer_norm(v[i], shape, getattr(m, w), None if b is None else getattr(m, b))

    return math.prod(shape) > 1 and g.add("layer_norm", run)


@step(range(1, 5))
def rms_norm(g: Grower, i: int) -> bool:
    shape = tuple(g.values[i].shape[-1:])
    w = g.weight(*shape)
    return g.add("rms_norm", lambda m, v: functional.rms_norm(v[i], shape, getattr(m, w), 1e-5))


@step(range(2, 5))
def group_norm(g: Grower, i: int) -> bool:
    x = g.values[i]
    channels = x.shape[1]
    groups = g.pick(factors(channels))
    w, b = g.weight(channels), g.weight(channels)
    several = x.numel() // x.shape[0] > groups
    return several and g.add(
        "group_norm", lambda m, v: functional.group_norm(v[i], groups, getattr(m, w), getattr(m, b))
    )


@step(range(2, 5))
def batch_norm(g: Grower, i: int) -> bool:
    channels = g.values[i].shape[1]
    w, b, mean, var = g.weight(channels), g.weight(channels), g.positive(channels), g.positive(channels)
    affine = g.pick([True, True, False])

    def run(m: Any, v: list[torch.Tensor]) -> torch.Tensor:
        weight, bias = (getattr(m, w), getattr(m, b)) if affine else (None, None)
        return functional.batch_norm(v[i], getattr(m, mean), getattr(m, var), weight, bias)

    return g.add("batch_norm", run)


@step(range(1, 5))
def softmax(g: Grower, i: int) -> bool:
    dim = g.pick(range(g.values[i].dim()))
    return g.add("softmax", lambda m, v: v[i].softmax(dim))


@step(range(1, 5))
def reduce(g: Grower, i: int) -> bool:
    dim, keep = g.pick(range(g.values[i].dim())), g.pick([True, False])
    match g.pick(["sum", "sum", "mean", "max", "norm"]):
        case "sum":
            return g.add("sum", lambda m, v: v[i].sum(dim, keepdim=keep))
        case "mean":
            return g.add("mean", lambda m, v: v[i].mean(dim, keepdim=keep))
        case "max":
            return g.add("max", lambda m, v: v[i].amax(dim, keepdim=keep))
        case _:
            return g.add("norm", lambda m, v: torch.linalg.vector_norm(v[i], dim=dim, keepdim=keep))


@step(range(1, 5))
def reduce_away(g: Grower, i: int) -> bool:
    dims = [d for d in range(g.values[i].dim()) if g.pick([True, False])]
    return bool(dims) and g.add("sum-away", lambda m, v: v[i].sum(dims))


UNARY: tuple[Any, ...] = (
    torch.relu, functional.gelu, torch.sigmoid, torch.tanh, functional.silu, torch.neg, torch.square, torch.abs,
    torch.cos, functional.softplus, functional.leaky_relu, lambda x: x.clamp(-1, 2), lambda x: x.clamp(min=0.3),
    lambda x: 1 - x, lambda x: x * 0.5, lambda x: x.contiguous().clone(), lambda x: torch.exp(-x * x),
)  # fmt: skip


@step(range(9))
def unary(g: Grower, i: int) -> bool:
    run = g.pick(UNARY)
    return g.add("unary", lambda m, v: run(v[i]))


@step(range(1, 5))
def odd(g: Grower, i: int) -> bool:
    """What picks elements by their places."""
    dim = g.pick(range(g.values[i].dim()))
    size = g.values[i].shape[dim]
    match g.pick(["roll", "flip", "cumsum", "sort", "pad", "index", "rotate", "like"]):
        case "roll":
            return g.add("roll", lambda m, v: v[i].roll(1, dim))
        case "flip":
            return g.add("flip", lambda m, v: v[i].flip(dim))
        case "cumsum":
            return g.add("cumsum", lambda m, v: v[i].cumsum(dim))
        case "sort":
            return g.add("sort", lambda m, v: v[i].sort(dim).values)
        case "pad":
            pads = [0, 0] * (g.values[i].dim() - 1 - dim) + [1, 0]
            return g.add("pad", lambda m, v: functional.pad(v[i], pads))
        case "index":
            at = g.buffer(torch.tensor([size - 1, 0]))
            return g.add("index", lambda m, v: v[i].index_select(dim, getattr(m, at)))
        case "rotate":
            half = size // 2
            return size % 2 == 0 and g.add(
                "rotate", lambda m, v: torch.cat([-v[i].narrow(dim, half, half), v[i].narrow(dim, 0, half)], dim)
            )
        case _:
            return g.add("like", lambda m, v: torch.cat([v[i], torch.ones_like(v[i])], dim))


@step(range(2, 5))
def matmul(g: Grower, i: int) -> bool:
    x = g.values[i]
    fits = [
        j
        for j, y in enumerate(g.values)
        if y.dim() > 1 and y.shape[-2] == x.shape[-1] and _broadcast(x[..., 0, 0], y[..., 0, 0])
    ]
    if g.pick([True, False]):
        return g.add("gram", lambda m, v: v[i] @ v[i].transpose(-1, -2))
    if not fits:
        w = g.weight(x.shape[-1], g.pick([2, 4, 6]))
        return g.add("matmul-w", lambda m, v: v[i] @ getattr(m, w))
    j = g.pick(fits)
    return g.add("matmul", lambda m, v: v[i] @ v[j])


@step(range(2, 5))
def outer(g: Grower, i: int) -> bool:
    x = g.values[i]
    fits = [j for j, y in enumerate(g.values) if y.dim() == x.dim() and y.shape[:-1] == x.shape[:-1]]
    j = g.pick(fits)
    return g.add("outer", lambda m, v: v[i].unsqueeze(-1) * v[j].unsqueeze(-2))


@step(range(3, 4))
def attention(g: Grower, i: int) -> bool:
    """Projections, heads, attention; perhaps with fewer heads of keys and values, perhaps fused."""
    x = g.values[i]
    heads, width, served = g.pick([1, 2, 3]), g.pick([2, 4]), g.pick([1, 1, 2])
    causal, own = g.pick([True, False]), g.pick([True, False])
    layout = g.pick(["apart", "blocks", "interleaved"]) if served == 1 else "apart"
    inner = x.shape[-1]
    q, k, v_ = g.weight(heads * served * width, inner), g.weight(heads * width, inner), g.weight(heads * width, inner)
    fused = g.weight(3 * heads * width, inner)
    scale = None if own else 0.7

    def run(m: Any, v: list[torch.Tensor]) -> torch.Tensor:
        if layout == "apart":
            parts = [functional.linear(v[i], getattr(m, w)).unflatten(-1, (-1, width)) for w in (q, k, v_)]
        elif layout == "blocks":
            parts = list(functional.linear(v[i], getattr(m, fused)).unflatten(-1, (3, heads, width)).unbind(2))
        else:
            parts = list(functional.linear(v[i], getattr(m, fused)).unflatten(-1, (heads, 3 * width)).chunk(3, -1))
        one, two, three = (p.transpose(1, 2) for p in parts)
        return (
            functional.scaled_dot_product_attention(
                one, two, three, is_causal=causal, scale=scale, enable_gqa=served > 1
            )
            .transpose(1, 2)
            .flatten(2)
        )

    return g.add("attention", run)


@step(range(4, 5))
def attend(g: Grower, i: int) -> bool:
    """Attention of a value with itself."""
    return g.add("attend", lambda m, v: functional.scaled_dot_product_attention(v[i], v[i], v[i]))


@step(range(4, 5))
def shuffle(g: Grower, i: int) -> bool:
    x = g.values[i]
    if x.shape[1] % 4 == 0 and g.pick([True, False]):
        return g.add("pixel_shuffle", lambda m, v: functional.pixel_shuffle(v[i], 2))
    return all(n % 2 == 0 for n in x.shape[2:]) and g.add("unshuffle", lambda m, v: functional.pixel_unshuffle(v[i], 2))


@step(range(4, 5))
def pool(g: Grower, i: int) -> bool:
    if min(g.values[i].shape[2:]) < 2:
        return False
    run = g.pick([functional.max_pool2d, functional.avg_pool2d])
    return g.add("pool", lambda m, v: run(v[i], 2))


@step(range(1, 5))
def start_weight(g: Grower, i: int) -> bool:
    """A stored tensor as a value of its own."""
    x = g.values[i]
    shape = g.pick([tuple(x.shape), (x.shape[-1], 4), (1, *x.shape[1:]), (6, x.shape[-1])])
    w = g.weight(*shape)
    return g.add("weight", lambda m, v: getattr(m, w) * 1.0)


@step(range(1, 5))
def linear_with_value(g: Grower, i: int) -> bool:
    """A product with a matrix that is computed."""
    x = g.values[i]
    fits = [j for j, y in enumerate(g.values) if y.dim() == 2 and y.shape[-1] == x.shape[-1] and j != i]
    if not fits:
        return False
    j = g.pick(fits)
    return g.add("linear-v", lambda m, v: functional.linear(v[i], v[j]))
