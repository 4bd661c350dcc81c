"""Normal noise as torch's CPU generator draws it, in numpy, and the draws of a schedule in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from graphopt.errors import ModelError, UnsupportedError
from graphopt.ir.weights import Array, numpy_dtype

if TYPE_CHECKING:
    from graphopt.program.schedule import Schedule

_BLOCK = 16
"""From this size on torch fills tensors in blocks: half of a block are radii, half are angles."""
_TAU = 2 * np.pi


class TorchNormal:
    """The stream of `torch.Generator().manual_seed(seed)` on the CPU: MT19937 and Box and Muller's transform.

    Draws agree with `torch.randn` to rounding, and the state is in step with torch's after every draw.
    Source: ATen/native/cpu/DistributionTemplates.h and ATen/core/DistributionsHelper.h of PyTorch.
    """

    def __init__(self, seed: int) -> None:
        """`seed`: as torch takes it; only its lowest 32 bits matter, to torch too."""
        # numpy's generator for old code is seeded as torch's is; the current ones hash their seeds first.
        seeded: Any = np.random.RandomState(seed & 0xFFFFFFFF).get_state(legacy=False)
        self._bits = np.random.MT19937()
        self._bits.state = seeded
        self._spare: float | None = None

    def randn(self, shape: Sequence[int], dtype: str = "float32") -> Array:
        """What `torch.randn(shape, dtype=dtype, generator=...)` draws next; "float32" or "float64".

        Raises:
            UnsupportedError: another dtype, whose rounding is torch's own.
        """
        if dtype not in ("float32", "float64"):
            raise UnsupportedError(
                f"noise of {dtype} cannot be drawn as torch draws it; give a torch.Generator, or draw float32 and cast"
            )
        size = int(np.prod(shape, dtype=np.int64))
        drawn = self._blocks(size, dtype) if size >= _BLOCK else self._singles(size)
        return drawn.astype(dtype).reshape(shape)

    def _blocks(self, size: int, dtype: str) -> Array:
        values = _box_muller(self._uniform(size, dtype)[: size - size % _BLOCK])
        if size % _BLOCK == 0:
            return values
        # torch draws the last 16 values once more, the ones of a full block among them.
        last = _box_muller(self._uniform(_BLOCK, dtype))
        return np.concatenate([values[: size - _BLOCK], last])

    def _singles(self, size: int) -> Array:
        """One by one, in float64 whatever the dtype; every second value is kept for the next call."""
        values = np.empty(size)
        for index in range(size):
            if self._spare is not None:
                values[index], self._spare = self._spare, None
                continue
            first, second = self._uniform(2, "float64")
            radius, angle = np.sqrt(-2.0 * np.log1p(-second)), _TAU * first
            values[index], self._spare = radius * np.cos(angle), float(radius * np.sin(angle))
        return values

    def _uniform(self, size: int, dtype: str) -> Array:
        """In [0, 1), as many random bits as the mantissa holds."""
        if dtype == "float32":
            words = self._bits.random_raw(size) & np.uint64((1 << 24) - 1)
            return np.asarray(words.astype(np.float32) * np.float32(2.0**-24))
        high, low = self._bits.random_raw(2 * size).reshape(size, 2).T
        words = ((high << np.uint64(32)) | low) & np.uint64((1 << 53) - 1)
        return np.asarray(words.astype(np.float64) * 2.0**-53)


def _box_muller(uniform: Array) -> Array:
    """Normal values from uniform ones, in blocks of 16; computed in the dtype given, as torch does."""
    first, second = uniform.reshape(-1, 2, _BLOCK // 2).transpose(1, 0, 2)
    radius = np.sqrt(-2 * np.log(1 - first))
    angle = second * uniform.dtype.type(_TAU)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


Generator: TypeAlias = Any
"""A source of noise as diffusers takes it: None, an int seed, a TorchNormal, a numpy or torch generator, or a list
with one of these for every batch element."""


def used_draws(schedule: Schedule) -> Array:
    """Which draws of each row reach a live tensor: bool [R, d]."""
    made = np.arange(schedule.noise_gain.shape[2]) < schedule.draws[:, None]
    used: Array = made & (schedule.noise_gain != 0).any(axis=1)
    return used


def draw_noise(schedule: Schedule, shape: Sequence[int], dtype: str, generator: Generator = None) -> Array:
    """The noise of a whole run: everything is drawn, in the schedule's order, and what no row uses is dropped.

    Args:
        schedule: what draws.
        shape: of the sample.
        dtype: of the sample.
        generator: None draws from numpy's entropy; a seed is that of a torch.Generator on the CPU.

    Returns:
        The used draws, [total, *shape].

    Raises:
        ModelError: no generator, or a list of another length than the batch.
        UnsupportedError: a dtype that this generator does not draw.
    """
    drawn_as = "float32" if schedule.noise_dtype == "float32" else dtype
    draw = draws_from(generator, tuple(shape), drawn_as)
    kept = []
    for row, used in enumerate(used_draws(schedule)):
        for number in range(int(schedule.draws[row])):
            noise = draw()
            if used[number]:
                kept.append(noise.astype(numpy_dtype(dtype)))
    return np.stack(kept) if kept else np.empty((0, *shape), numpy_dtype(dtype))


def draws_from(generator: Generator, shape: tuple[int, ...], dtype: str) -> Callable[[], Array]:
    """What draws unit normal noise of `shape` from `generator`, call by call.

    Raises:
        ModelError: no generator, or a list of another length than the batch.
    """
    if not isinstance(generator, list | tuple):
        return _draws_of(generator, shape, dtype)
    if len(generator) == 1:
        return _draws_of(generator[0], shape, dtype)
    if not shape or len(generator) != shape[0]:
        raise ModelError(
            f"{len(generator)} generators are given for a batch of {shape[0] if shape else 1}; give one for each"
        )
    each = [_draws_of(g, (1, *shape[1:]), dtype) for g in generator]
    return lambda: np.concatenate([draw() for draw in each])


def _draws_of(generator: Generator, shape: tuple[int, ...], dtype: str) -> Callable[[], Array]:
    if isinstance(generator, np.integer) or (isinstance(generator, int) and not isinstance(generator, bool)):
        generator = TorchNormal(int(generator))
    if isinstance(generator, TorchNormal):
        normal = generator
        return lambda: normal.randn(shape, dtype)
    if generator is None or isinstance(generator, np.random.Generator):
        source = generator or np.random.default_rng()
        return lambda: source.standard_normal(shape)
    if type(generator).__module__.partition(".")[0] == "torch" and hasattr(generator, "manual_seed"):
        return lambda: _torch_randn(generator, shape, dtype)
    raise ModelError(
        f"a {type(generator).__name__} is no source of noise; give a torch.Generator, a numpy Generator, a seed, or a "
        "list of one for each batch element"
    )


def _torch_randn(generator: Any, shape: tuple[int, ...], dtype: str) -> Array:
    import torch

    from graphopt.ir.fx.tensors import TORCH_DTYPES, to_numpy

    return to_numpy(torch.randn(shape, generator=generator, device=generator.device, dtype=TORCH_DTYPES[dtype]))
