"""Seeded floating-point data of the kinds that `graphopt.verify.inputs` names."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np

from graphopt.ir.weights import FLOATS, Array, numpy_dtype

BLOCK = 16381
"""Most numbers that are drawn for one tensor. A prime, so that no axis of a tensor is in step with the block."""
SUBNORMALS = 32
"""Most subnormal numbers of one tensor. A few tell what a share of all would, and a product with one of them takes some
CPUs a hundred times as long as another."""


def draw_float(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str, *, one_of_many: bool = False
) -> Array:
    """Floating-point data of one kind; see `graphopt.verify.inputs`. Large tensors repeat a block of prime length."""
    size = math.prod(shape)
    data: Array = rng.standard_normal(min(size, BLOCK))
    if kind == "mixed":
        data = data * 10.0 ** rng.uniform(-4 if dtype == "float16" else -8, 2, data.shape)
        data = np.where(rng.random(data.shape) < 0.05, np.copysign(0.0, data), data)
        data = _one_signed_ends(data)
    elif kind == "special":
        data = _one_special(rng, data) if one_of_many and 0 < size < 4 else _sprinkle(rng, data)
    drawn = np.resize(data.astype(numpy_dtype(dtype)), size)
    if kind == "mixed":
        _make_subnormal(rng, drawn)
    return drawn.reshape(shape)


def _make_subnormal(rng: np.random.Generator, flat: Array) -> None:
    """Some numbers become subnormal and keep their sign: one in twenty, one at the least if there are four, and no more
    than about `SUBNORMALS`."""
    if not flat.size:
        return
    count = rng.binomial(min(flat.size, 20 * SUBNORMALS), 0.05)
    places = rng.integers(flat.size, size=max(count, int(flat.size >= 4)))
    smallest = ml_dtypes.finfo("float32" if flat.dtype.name == "float64" else flat.dtype).smallest_subnormal
    flat[places] = np.copysign(3 * float(smallest), flat[places].astype(np.float64))


def _one_signed_ends(data: Array) -> Array:
    """No negative in the first quarter and no positive in the last, so that a window of either kind is met."""
    quarter = data.size // 4
    if quarter:
        data[:quarter] = np.abs(data[:quarter])
        data[-quarter:] = -np.abs(data[-quarter:])
    return data


def shake(feed: Array, unit: float, rng: np.random.Generator) -> Array:
    """`feed` in float64 with every number moved by `unit` of itself, up or down; integers as they are."""
    if feed.dtype.name not in FLOATS:
        return feed
    return np.asarray(feed.astype(np.float64) * (1.0 + unit * rng.choice([-1.0, 1.0], feed.shape)))


def _sprinkle(rng: np.random.Generator, data: Array) -> Array:
    """NaN and infinities at about one place in a hundred each, and at one place at least if there are three; both
    infinities if there are four, since a bound that is lost on one side shows at one of them alone."""
    flat = data.reshape(-1).copy()
    count = max(1, flat.size // 100) if flat.size >= 3 else 0
    places = rng.permutation(flat.size)
    flat[places[:count]] = np.nan
    infinite = places[count : count + max(count, min(2, flat.size - 2))] if count else places[:0]
    flat[infinite] = np.copysign(np.inf, flat[infinite])
    if infinite.size > 1:
        flat[infinite[:2]] = np.inf, -np.inf
    return flat.reshape(data.shape)


def _one_special(rng: np.random.Generator, data: Array) -> Array:
    """NaN, an infinity or nothing of the kind at one place."""
    flat = data.reshape(-1).copy()
    place = rng.integers(flat.size)
    flat[place] = rng.choice([np.nan, np.inf, -np.inf, flat[place]])
    return flat.reshape(data.shape)
