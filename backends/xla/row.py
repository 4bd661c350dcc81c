"""What a row does beside the denoiser, on JAX arrays: input scaling, guidance, and the update of the live tensors.

All of it is computed in float32 where the sample has fewer bits, and the live tensors are kept so from row to row; the
denoiser sees its own dtype, and the final sample is cast to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graphopt.ir.weights import Array
from graphopt.program.noise import used_draws
from graphopt.program.program import Program


def wide_dtype(dtype: str) -> str:
    """In what rows are computed for a sample of `dtype`."""
    return str(jnp.promote_types(dtype, jnp.float32))


class RowArithmetic:
    """The rows of a program's schedule. What they read of a row are the entries of `tables`, without the first axis."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._dtype = jnp.dtype(program.interface.sample.dtype)
        self._wide = jnp.dtype(wide_dtype(program.interface.sample.dtype))
        schedule, clip = program.schedule, program.schedule.clip
        clip_gain = np.zeros_like(schedule.model_gain) if clip is None else clip.gain
        self._gains = np.concatenate(
            [schedule.transition, schedule.model_gain[..., None], clip_gain[..., None], schedule.noise_gain], axis=2
        )
        """[rows, k, k + 2 + draws]: each live tensor as a sum over those before it, prediction, clamp and noise."""
        self._clamped = None if clip is None else np.concatenate([clip.state, clip.model[:, None]], axis=1)
        """[rows, k + 1]: what is clamped, as a sum over live tensors and prediction."""

    def tables(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """What rows read, [rows, ...] each."""
        schedule, guidance = self._program.schedule, self._program.guidance
        tables: dict[str, Any] = {"input_scale": self._cast(schedule.input_scale), "gains": self._cast(self._gains)}
        if schedule.clip is not None and self._clamped is not None:
            bounds = {"low": self._cast(schedule.clip.low), "high": self._cast(schedule.clip.high)}
            tables |= {"clamped": self._cast(self._clamped), **bounds}
        used = used_draws(schedule)
        if used.any():
            tables["draw"] = np.where(used, np.cumsum(used).reshape(used.shape) - 1, 0).astype(np.int32)
        if guidance is not None and guidance.varies:
            tables["guidance_scale"] = feeds["guidance_scale"]
        return tables

    def _cast(self, numbers: Array) -> Array:
        cast: Array = numbers.astype(self._wide)
        return cast

    def first_state(self, feeds: Mapping[str, Any]) -> tuple[Any, ...]:
        """The live tensors before the first row."""
        start = feeds["noise"].astype(self._wide) * feeds["initial_scale"]
        return (start, *(jnp.zeros_like(start) for _ in range(self._program.schedule.live_tensors - 1)))

    def sample(self, state: Sequence[Any]) -> Any:
        """The sample as a caller sees it."""
        return state[0].astype(self._dtype)

    def seen(self, state: Sequence[Any], row: Mapping[str, Any]) -> Any:
        """What the denoiser sees of the sample."""
        scaled = (state[0] * row["input_scale"]).astype(self._dtype)
        return jnp.concatenate([scaled, scaled]) if self._program.interface.doubled else scaled

    def prediction(self, outputs: Sequence[Any], row: Mapping[str, Any], feeds: Mapping[str, Any]) -> Any:
        """The guided prediction, from what the denoiser gives for each branch."""
        interface, guidance = self._program.interface, self._program.guidance
        wide = [output[:, : interface.prediction_channels].astype(self._wide) for output in outputs]
        if guidance is None:
            return wide[0]
        without, conditional = jnp.split(wide[0], 2) if interface.doubled else wide
        scale = row["guidance_scale"] if guidance.varies else feeds["guidance_scale"]
        guided = without + scale * (conditional - without)
        if guidance.rescale == 0.0:
            return guided
        adjusted = guided * (_deviation(conditional) / _deviation(guided))
        return guidance.rescale * adjusted + (1.0 - guidance.rescale) * guided

    def next_state(
        self, state: Sequence[Any], prediction: Any, row: Mapping[str, Any], feeds: Mapping[str, Any]
    ) -> tuple[Any, ...]:
        """The live tensors after the row."""
        tensors = [*state, prediction, jnp.zeros_like(prediction)]
        if self._clamped is not None:
            inside = _combination(row["clamped"], self._clamped, tensors[:-1])
            tensors[-1] = jnp.clip(inside, row["low"], row["high"])
        for draw in range(self._program.schedule.noise_gain.shape[2]) if "draw" in row else ():
            noise = jax.lax.dynamic_index_in_dim(feeds["step_noise"], row["draw"][draw], keepdims=False)
            tensors.append(noise.astype(self._wide))
        return tuple(_combination(row["gains"][i], self._gains[:, i], tensors) for i in range(len(state)))


def _combination(coefficients: Any, of_all_rows: Array, tensors: Sequence[Any]) -> Any:
    """Σ coefficient · tensor in this order; what has no weight in any row is not written."""
    terms = [coefficients[j] * tensor for j, tensor in enumerate(tensors) if of_all_rows[:, j].any()]
    return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(tensors[0])


def _deviation(x: Any) -> Any:
    """Sample standard deviation of every batch element, over all other axes."""
    return jnp.std(x, axis=range(1, x.ndim), ddof=1, keepdims=True)
