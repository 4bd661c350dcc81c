"""The catalogue's rewrites of products, attention, normalisation, activations and layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.proof_catalogue import CATALOGUE, EXP, Entry, Ops, X, entry

__all__ = ["CATALOGUE", "Entry"]

# ---- products ----------------------------------------------------------------------------------------------------

R = (3, 5)


def two_linears(o: Ops, x: Any, between: str | None = None) -> Any:
    y = o.linear(x, o.weight("w1", 4, 5), o.weight("b1", 4))
    y = y if between is None else getattr(o, between)(y)
    return o.linear(y, o.weight("w2", 6, 4), o.weight("b2", 6))


def one_linear(o: Ops, x: Any, order: int = 1, bias: bool = True) -> Any:
    w1, w2 = o.weight("w1", 4, 5), o.weight("w2", 6, 4)
    w = o.matmul(w2, w1) if order == 1 else o.turned(o.matmul(o.turned(w2, 0, 1), w1), 0, 1)
    carried = o.reshape(o.matmul(w2, o.shaped(o.weight("b1", 4), 4, 1)), shape=(6,))
    return o.linear(x, w, o.add(carried, o.weight("b2", 6)) if bias else o.weight("b2", 6))


entry("two linear layers", [R], two_linears, one_linear, bias_forgotten=lambda o, x: one_linear(o, x, bias=False))
entry("two linear layers with a relu between", [R], lambda o, x: two_linears(o, x, "relu"), None,
      merged_all_the_same=one_linear)  # fmt: skip


def split_heads(o: Ops, x: Any, names: str = "qkv", axis: int = 0) -> Any:
    weights = o.concat(*(o.weight(n, 4, 4) for n in names), axis=axis)
    if axis == 0:
        y = o.linear(x, weights, o.concat(*(o.weight(f"b{n}", 4) for n in names), axis=0))
    else:
        y = o.linear(x, o.shaped(weights, 12, 4), o.concat(*(o.weight(f"b{n}", 4) for n in names), axis=0))
    return tuple(o.cut(y, 4 * i, 4 * i + 4, 1) for i in range(3))


entry("query, key and value at once", [(3, 4)],
      lambda o, x: tuple(o.linear(x, o.weight(n, 4, 4), o.weight(f"b{n}", 4)) for n in "qkv"), split_heads,
      key_and_value_swapped=lambda o, x: split_heads(o, x, "qvk"),
      wrong_axis=lambda o, x: split_heads(o, x, axis=1))  # fmt: skip
entry("a sum behind a product", [R],
      lambda o, x: o.add(o.matmul(x, o.weight("w", 5, 5)), o.weight("b", 5)),
      lambda o, x: o.linear(x, o.weight("w", 5, 5), o.weight("b", 5), trans_w=False),
      weight_transposed=lambda o, x: o.linear(x, o.weight("w", 5, 5), o.weight("b", 5), trans_w=True),
      half_the_bias=lambda o, x: o.linear(x, o.weight("w", 5, 5), o.mul(0.5, o.weight("b", 5)), trans_w=False),
      wrong_broadcast=lambda o, x: o.add(o.matmul(x, o.weight("w", 5, 5)),
                                         o.cut(o.shaped(o.weight("b", 5), 5, 1), 0, 3, 0)))  # fmt: skip
entry("a scale into weights", [R], lambda o, x: o.mul(o.linear(x, o.weight("w", 4, 5), o.weight("b", 4)), 0.3),
      lambda o, x: o.linear(x, o.mul(o.weight("w", 4, 5), 0.3), o.mul(o.weight("b", 4), 0.3)),
      bias_not_scaled=lambda o, x: o.linear(x, o.mul(o.weight("w", 4, 5), 0.3), o.weight("b", 4)))  # fmt: skip
entry("a shared product out of a concatenation", [R, (2, 5)],
      lambda o, x, y: o.concat(o.matmul(x, o.weight("w", 5, 4)), o.matmul(y, o.weight("w", 5, 4)), axis=0),
      lambda o, x, y: o.matmul(o.concat(x, y, axis=0), o.weight("w", 5, 4)),
      order_swapped=lambda o, x, y: o.matmul(o.concat(y, x, axis=0), o.weight("w", 5, 4)))  # fmt: skip


def guided(o: Ops, a: Any, b: Any) -> Any:
    return o.add(b, o.mul(7.5, o.sub(a, b)))


def guidance(o: Ops, x: Any, y: Any, swap: bool = False) -> Any:
    both = o.gelu(o.linear(o.concat(x, y, axis=0), o.weight("w", 4, 5), o.weight("b", 4)))
    halves = [o.cut(both, 0, 3, 0), o.cut(both, 3, 6, 0)]
    return guided(o, *(halves[::-1] if swap else halves))


entry("both halves of guidance in one batch", [R, R],
      lambda o, x, y: guided(o, *(o.gelu(o.linear(t, o.weight("w", 4, 5), o.weight("b", 4))) for t in (x, y))),
      guidance, halves_swapped=lambda o, x, y: guidance(o, x, y, swap=True))  # fmt: skip
entry("a low rank", [R], lambda o, x: o.matmul(x, o.weight("w", 5, 5)), None,
      of_two=lambda o, x: o.matmul(o.matmul(x, o.constant(np.eye(5, 2))),
                                   o.matmul(o.constant(np.eye(2, 5)), o.weight("w", 5, 5))))  # fmt: skip

# ---- attention ---------------------------------------------------------------------------------------------------

Q = (2, 2, 3, 4)


def attended(o: Ops, q: Any, k: Any, v: Any, scale: float = 0.5, axis: int = 3) -> Any:
    scores = o.mul(o.matmul(q, o.turned(k, 0, 1, 3, 2)), scale)
    return o.matmul(o.softmax(scores, axis=axis), v)


entry("attention", [Q, Q, Q], attended, lambda o, q, k, v: o.attention(q, k, v, scale=0.5),
      wrong_axis=lambda o, q, k, v: attended(o, q, k, v, axis=2),
      scale_forgotten=lambda o, q, k, v: o.attention(q, k, v, scale=1.0),
      scale_of_another_head=lambda o, q, k, v: o.attention(q, k, v, scale=0.25),
      key_for_value=lambda o, q, k, v: o.attention(q, v, k, scale=0.5),
      causal=lambda o, q, k, v: o.attention(q, k, v, scale=0.5, causal=True))  # fmt: skip
entry("a scale into the query", [Q, Q, Q], attended, lambda o, q, k, v: attended(o, o.mul(q, 0.5), k, v, 1.0),
      on_both=lambda o, q, k, v: attended(o, o.mul(q, 0.5), o.mul(k, 0.5), v, 1.0))  # fmt: skip
entry("a scale on both sides", [Q, Q],
      lambda o, q, k: o.mul(o.matmul(q, o.turned(k, 0, 1, 3, 2)), 0.125),
      lambda o, q, k: o.matmul(
          o.mul(q, o.sqrt(o.value(0.125))), o.turned(o.mul(k, o.sqrt(o.value(0.125))), 0, 1, 3, 2)),
      root_of_the_wrong_number=lambda o, q, k: o.matmul(
          o.mul(q, o.sqrt(o.value(0.25))), o.turned(o.mul(k, o.sqrt(o.value(0.125))), 0, 1, 3, 2)))  # fmt: skip


def heads(o: Ops, q: Any, k: Any, v: Any, tile: bool = False) -> Any:
    k, v = (o.tile(t, repeats=(1, 2, 1, 1)) if tile else o.repeat_interleave(t, repeats=2, axis=1) for t in (k, v))
    return o.attention(q, k, v, scale=0.5)


entry("heads that share keys", [(1, 4, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)],
      lambda o, q, k, v: o.attention(q, k, v, scale=0.5, gqa=True), heads,
      tiled=lambda o, q, k, v: heads(o, q, k, v, tile=True))  # fmt: skip


def rotated(o: Ops, x: Any, sign: float = -1.0, interleaved: bool = False) -> Any:
    if interleaved:
        pairs = o.shaped(x, 3, 2, 2)
        half = o.shaped(o.concat(o.mul(sign, o.cut(pairs, 1, 2, 2)), o.cut(pairs, 0, 1, 2), axis=2), 3, 4)
    else:
        half = o.concat(o.mul(sign, o.cut(x, 2, 4, 1)), o.cut(x, 0, 2, 1), axis=1)
    return o.add(o.mul(x, o.weight("cos", 3, 4)), o.mul(half, o.weight("sin", 3, 4)))


entry("rotary embeddings", [(3, 4)], rotated,
      lambda o, x: o.sub(o.mul(x, o.weight("cos", 3, 4)),
                         o.mul(o.concat(o.cut(x, 2, 4, 1), o.neg(o.cut(x, 0, 2, 1)), axis=1), o.weight("sin", 3, 4))),
      sign=lambda o, x: rotated(o, x, 1.0), interleaved=lambda o, x: rotated(o, x, interleaved=True))  # fmt: skip

# ---- softmax -----------------------------------------------------------------------------------------------------


def quotient(o: Ops, x: Any, axis: int = 1, shift: bool = True) -> Any:
    z = o.exp(o.sub(x, o.reduce_max(x, axes=(axis,), keepdims=True)) if shift else x)
    return o.div(z, o.sum(z, axis))


def by_blocks(o: Ops, x: Any, rescaled: bool = True) -> Any:
    parts = [o.cut(x, 0, 2, 1), o.cut(x, 2, 5, 1)]
    tops = [o.reduce_max(p, axes=(1,), keepdims=True) for p in parts]
    top = o.maximum(*tops)
    powers = [o.exp(o.sub(p, t)) for p, t in zip(parts, tops, strict=True)]
    if rescaled:
        powers = [o.mul(p, o.exp(o.sub(t, top))) for p, t in zip(powers, tops, strict=True)]
    return o.div(o.concat(*powers, axis=1), o.add(*(o.sum(p, 1) for p in powers)))


entry("softmax taken apart", [R], lambda o, x: o.softmax(x, axis=1), quotient,
      wrong_axis=lambda o, x: quotient(o, x, 0),
      log_softmax=lambda o, x: o.log_softmax(x, axis=1),
      not_normalised=lambda o, x: o.exp(o.sub(x, o.reduce_max(x, axes=(1,), keepdims=True))))  # fmt: skip
entry("softmax of a shift", [R], lambda o, x: o.softmax(o.add(x, o.weight("s", 3, 1)), axis=1),
      lambda o, x: o.softmax(x, axis=1), EXP)  # fmt: skip
entry("softmax of another shift", [R], lambda o, x: o.softmax(o.add(x, o.weight("s", 1, 5)), axis=1), None,
      along_the_axis=lambda o, x: o.softmax(x, axis=1))  # fmt: skip
entry("softmax without its maximum", [R], lambda o, x: o.softmax(x, axis=1), lambda o, x: quotient(o, x, 1, False), EXP,
      scaled=lambda o, x: quotient(o, o.mul(x, 2.0), 1, False))  # fmt: skip
entry("softmax by blocks", [R], lambda o, x: o.softmax(x, axis=1), by_blocks, EXP,
      not_rescaled=lambda o, x: by_blocks(o, x, rescaled=False))  # fmt: skip

# ---- normalisation -----------------------------------------------------------------------------------------------


def normalised(
    o: Ops,
    x: Any,
    axis: int = 1,
    eps: float = 2**-17,
    outside: bool = False,
    centre: bool = True,
    moments: bool = False,
) -> Any:
    mean = o.mean(x, axis)
    middle = o.sub(x, mean) if centre else x
    var = o.sub(o.mean(o.mul(x, x), axis), o.mul(mean, mean)) if moments else o.mean(o.mul(middle, middle), axis)
    root = o.add(o.sqrt(var), eps) if outside else o.sqrt(o.add(var, eps))
    return o.add(o.mul(o.div(middle, root), o.weight("g", 5)), o.weight("h", 5))


def layer_norm(o: Ops, x: Any) -> Any:
    return o.layer_norm(x, o.weight("g", 5), o.weight("h", 5), axis=-1, eps=2**-17)


entry("layer norm taken apart", [R], layer_norm, lambda o, x: normalised(o, x, eps=2**-17),
      wrong_axis=lambda o, x: normalised(o, x, axis=0),
      eps_outside=lambda o, x: normalised(o, x, outside=True),
      eps_tenfold=lambda o, x: normalised(o, x, eps=10 * 2**-17),
      not_centred=lambda o, x: normalised(o, x, centre=False),
      rms=lambda o, x: o.add(o.rms_norm(x, o.weight("g", 5), axis=-1, eps=2**-17), o.weight("h", 5)))  # fmt: skip
entry("layer norm by moments", [R], layer_norm, lambda o, x: normalised(o, x, moments=True),
      of_the_sample=lambda o, x: normalised(o, o.mul(x, math.sqrt(1.25))))  # fmt: skip
entry("layer norm by a product of the inverse root", [R], layer_norm,
      lambda o, x: o.add(o.mul(o.mul(o.sub(x, o.mean(x, 1)), o.rsqrt(o.add(o.mean(o.mul(
          o.sub(x, o.mean(x, 1)), o.sub(x, o.mean(x, 1))), 1), 2**-17))), o.weight("g", 5)),
          o.weight("h", 5)))  # fmt: skip
entry("rms norm taken apart", [R], lambda o, x: o.rms_norm(x, o.weight("g", 5), axis=-1, eps=2**-17),
      lambda o, x: o.mul(o.mul(x, o.rsqrt(o.add(o.mean(o.mul(x, x), 1), 2**-17))), o.weight("g", 5)),
      sum_for_mean=lambda o, x: o.mul(
          o.mul(x, o.rsqrt(o.add(o.sum(o.mul(x, x), 1), 2**-17))), o.weight("g", 5)))  # fmt: skip


def grouped(o: Ops, x: Any, groups: int = 2, eps: float = 2**-17) -> Any:
    split = o.shaped(x, 2, groups, 4 // groups, 6, 7)
    middle = o.sub(split, o.mean(split, 2, 3, 4))
    y = o.div(middle, o.sqrt(o.add(o.mean(o.mul(middle, middle), 2, 3, 4), eps)))
    affine = [o.shaped(o.weight(n, 4), 4, 1, 1) for n in "gh"]
    return o.add(o.mul(o.shaped(y, *X), affine[0]), affine[1])


entry("group norm taken apart", [X],
      lambda o, x: o.group_norm(x, o.weight("g", 4), o.weight("h", 4), groups=2, eps=2**-17), grouped,
      other_groups=lambda o, x: grouped(o, x, 4), eps=lambda o, x: grouped(o, x, eps=10 * 2**-17),
      instance=lambda o, x: o.instance_norm(x, o.weight("g", 4), o.weight("h", 4), eps=2**-17))  # fmt: skip
entry("instance norm by groups", [X], lambda o, x: o.instance_norm(x, o.weight("g", 4), o.weight("h", 4), eps=2**-17),
      lambda o, x: o.group_norm(x, o.weight("g", 4), o.weight("h", 4), groups=4, eps=2**-17),
      one_group=lambda o, x: o.group_norm(x, o.weight("g", 4), o.weight("h", 4), groups=1, eps=2**-17))  # fmt: skip

# ---- activations -------------------------------------------------------------------------------------------------

entry("silu", [R], lambda o, x: o.silu(x), lambda o, x: o.mul(x, o.sigmoid(x)),
      quick_gelu=lambda o, x: o.mul(x, o.sigmoid(o.mul(x, 1.702))),
      hard=lambda o, x: o.hard_swish(x))  # fmt: skip
entry("sigmoid by tanh", [R], lambda o, x: o.sigmoid(x),
      lambda o, x: o.mul(o.add(o.tanh(o.mul(x, 0.5)), 1.0), 0.5), EXP,
      half_forgotten=lambda o, x: o.mul(o.add(o.tanh(x), 1.0), 0.5))  # fmt: skip
entry("gelu taken apart", [R], lambda o, x: o.gelu(x),
      lambda o, x: o.mul(o.mul(x, 0.5), o.add(o.erf(o.div(x, o.sqrt(o.value(2.0)))), 1.0)),
      by_tanh=lambda o, x: o.gelu(x, approximate="tanh"),
      root_forgotten=lambda o, x: o.mul(o.mul(x, 0.5), o.add(o.erf(o.div(x, 2.0)), 1.0)))  # fmt: skip
entry("a leaky relu", [R], lambda o, x: o.leaky_relu(x, slope=0.25),
      lambda o, x: o.prelu(x, 0.25), other_slope=lambda o, x: o.leaky_relu(x, slope=0.01),
      plain=lambda o, x: o.relu(x))  # fmt: skip
entry("a clamp", [R], lambda o, x: o.clamp(x, 0.0, 6.0), lambda o, x: o.minimum(o.relu(x), 6.0),
      only_below=lambda o, x: o.relu(x), other_end=lambda o, x: o.clamp(x, 0.0, 1.0))  # fmt: skip

entry("a clamp from above first", [R], lambda o, x: o.maximum(o.minimum(x, 6.0), 0.1),
      lambda o, x: o.clamp(x, 0.1, 6.0),
      ends_swapped=lambda o, x: o.clamp(x, 6.0, 0.1))  # fmt: skip

# ---- layout and choice -------------------------------------------------------------------------------------------

entry("two transposes", [(2, 3, 4)], lambda o, x: o.turned(o.turned(x, 1, 2, 0), 0, 2, 1),
      lambda o, x: o.turned(x, 1, 0, 2),
      the_other_way=lambda o, x: o.shaped(o.turned(x, 0, 1, 2), 3, 2, 4))  # fmt: skip
entry("two transposes of equal sizes", [(3, 3, 3)], lambda o, x: o.turned(o.turned(x, 1, 2, 0), 0, 2, 1),
      lambda o, x: o.turned(x, 1, 0, 2), composed_wrongly=lambda o, x: o.turned(x, 2, 1, 0))  # fmt: skip
entry("two reshapes", [(2, 6)], lambda o, x: o.shaped(o.shaped(x, 3, 4), 4, 3), lambda o, x: o.shaped(x, 4, 3),
      a_transpose=lambda o, x: o.turned(o.shaped(x, 3, 4), 1, 0))  # fmt: skip
entry("a choice before a product", [R, R],
      lambda o, x, y: o.where(o.less(x, 0.0), o.mul(y, 2.0), o.mul(y, 3.0)),
      lambda o, x, y: o.mul(y, o.where(o.less(x, 0.0), 2.0, 3.0)),
      branches_swapped=lambda o, x, y: o.mul(y, o.where(o.less(x, 0.0), 3.0, 2.0)),
      other_condition=lambda o, x, y: o.mul(y, o.where(o.less_equal(x, 0.0), 2.0, 3.0)))  # fmt: skip
entry("a division by a constant", [R], lambda o, x: o.div(x, 8.0), lambda o, x: o.mul(x, 0.125),
      the_constant_itself=lambda o, x: o.mul(x, 8.0))  # fmt: skip

PLACES = np.array([2, 0, 1, 1, 2])
ORDER = np.argsort(PLACES, kind="stable")


def routed(o: Ops, x: Any, sort: bool, back: Any = None) -> Any:
    experts = [o.weight(f"e{i}", 4, 4) for i in range(3)]
    if not sort:
        masks = [o.constant((i == PLACES).astype(np.float32)[:, None]) for i in range(3)]
        parts = [o.mul(mask, o.silu(o.matmul(x, w))) for mask, w in zip(masks, experts, strict=True)]
        return o.add(o.add(parts[0], parts[1]), parts[2])
    rows = o.gather(x, o.constant(ORDER), axis=0)
    ends = np.cumsum(np.bincount(PLACES))
    parts = [o.silu(o.matmul(o.cut(rows, a, b, 0), w)) for a, b, w in zip([0, *ends], ends, experts, strict=False)]
    return o.gather(o.concat(*parts, axis=0), o.constant(np.argsort(ORDER) if back is None else back), axis=0)


entry("experts on sorted rows", [(5, 4)], lambda o, x: routed(o, x, False), lambda o, x: routed(o, x, True),
      order_not_inverted=lambda o, x: routed(o, x, True, ORDER),
      rows_left_sorted=lambda o, x: routed(o, x, True, np.arange(5)))  # fmt: skip
