"""A sampling schedule as a table: one row per denoiser call, affine in the sample, the model's output and noise.

With S_0 = (x_T, 0, ..., 0), x_j = S_j[0] (what diffusers hands around as the sample) and

    m_j = model(input_scale_j * x_j, timesteps_j)

a row says

    S_{j+1} = A_j S_j + b_j m_j + g_j clamp(p_j S_j + q_j m_j, low_j, high_j) + sum_i N_{j,i} z_{j,i}

with unit normal noise z. The result is S_R[0].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from os import PathLike
from typing import Any

import numpy as np

from graphopt.errors import MissingExtraError, ModelError
from graphopt.program import executor
from graphopt.program.checks import check_schedule
from graphopt.program.prediction import conversion, tensors_of_a_call
from graphopt.program.realise import realise
from graphopt.program.rows import Floats, Ints
from graphopt.program.table import schedule_table


@dataclass(frozen=True, eq=False)
class Clip:
    """The clamp of a row: gain * clamp(state . S + model * m, low, high). A row without one has gain 0."""

    low: Floats  # (R,)
    high: Floats  # (R,)
    state: Floats  # (R, k)
    model: Floats  # (R,)
    gain: Floats  # (R, k)


@dataclass(frozen=True, eq=False)
class Schedule:
    """R denoiser calls over k live tensors with at most d noise draws each; all numbers are float64."""

    timesteps: Floats  # (R,): what the model is given
    timestep_dtype: str  # of the scheduler's timesteps: "int64", "float32", ...
    input_scale: Floats  # (R,): the model sees input_scale * x
    transition: Floats  # (R, k, k): A
    model_gain: Floats  # (R, k): b
    noise_gain: Floats  # (R, k, d): N
    draws: Ints  # (R,): noise draws made in the row, used or not, so that seeds match
    clip: Clip | None
    init_noise_sigma: float  # the standard deviation that x_T is to have
    prediction_type: str  # "epsilon", "sample", "v_prediction", "flow_prediction" or a scheduler's own
    signal: Floats | None  # (R,): alpha of x = alpha x0 + sigma eps
    sigma: Floats | None  # (R,)
    source: str
    step_index: Ints  # (R,): the entry of scheduler.timesteps that the row belongs to
    state_names: tuple[str, ...]  # (k,): what each live tensor is, "x" first
    noise_dtype: str = "sample"  # "float32" where the scheduler draws in float32 whatever the sample is

    def __post_init__(self) -> None:
        check_schedule(self)

    def __len__(self) -> int:
        """The number of denoiser calls R."""
        return len(self.timesteps)

    @property
    def live_tensors(self) -> int:
        """k: tensors that live from one row to the next, the sample among them."""
        return int(self.transition.shape[1])

    @property
    def total_draws(self) -> int:
        return int(self.draws.sum())

    @classmethod
    def from_diffusers(
        cls,
        scheduler: Any,
        steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        begin_index: int = 0,
        **step_options: Any,
    ) -> Schedule:
        """Read a diffusers scheduler.

        Args:
            scheduler: any diffusers scheduler; a copy made from its configuration is run, itself never.
            steps: as `set_timesteps` takes it; not needed with `timesteps` or `sigmas`.
            timesteps: a custom list, for schedulers that take one.
            sigmas: a custom list, for schedulers that take one.
            mu: the dynamic shift of a flow-matching scheduler.
            begin_index: the entry of scheduler.timesteps to start at (img2img).
            step_options: what the pipeline passes to `step` (eta, s_churn, ...) or `set_timesteps`.

        Raises:
            UnsupportedError: the scheduler cannot be written as a schedule exactly; the message says why.
            ModelError: `steps` is no number of steps.
            MissingExtraError: torch or diffusers is not installed.
        """
        try:
            from graphopt.program.probe import probe
        except ImportError as error:
            raise MissingExtraError(
                f"Reading a scheduler needs {error.name}: pip install graphopt[diffusers]"
            ) from error

        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral) or steps < 1):
            raise ModelError(f"steps={steps!r}: expected how many inference steps, 1 or more")
        seen = probe(
            scheduler, steps, timesteps=timesteps, sigmas=sigmas, mu=mu, begin_index=begin_index, options=step_options
        )
        signal, sigma = (seen.levels.signal, seen.levels.sigma) if seen.levels is not None else (None, None)
        found = realise(seen.rows, tensors_of_a_call(seen.prediction_type, signal, sigma))
        clip = None
        if (seen.rows.clip >= 0).any():
            clip = Clip(seen.rows.clip_low, seen.rows.clip_high, found.clip_state, found.clip_model, found.clip_gain)
        return cls(
            timesteps=seen.timesteps,
            timestep_dtype=seen.timestep_dtype,
            input_scale=seen.input_scale,
            transition=found.transition,
            model_gain=found.model_gain,
            noise_gain=found.noise_gain,
            draws=np.asarray([len(columns) for columns in seen.rows.noise], dtype=np.int64),
            clip=clip,
            init_noise_sigma=seen.init_noise_sigma,
            prediction_type=seen.prediction_type,
            signal=signal,
            sigma=sigma,
            source=seen.source,
            step_index=seen.step_index,
            state_names=found.state_names,
            noise_dtype=seen.noise_dtype,
        )

    def run(
        self,
        model: Callable[[Any, Any], Any],
        sample: Any,
        generator: Any = None,
        *,
        noise: Any = None,
        callback: Callable[[int, Any, Any], Any] | None = None,
    ) -> Any:
        """Execute the schedule: the reference for every other way of running it.

        Args:
            model: called as model(input_scale * x, timestep) with the timestep a 0-d tensor or numpy scalar.
            sample: x_T as a torch tensor or numpy array, already scaled by init_noise_sigma.
            generator: a torch.Generator or a list of one per image (numpy.random.Generator for arrays too).
            noise: instead of a generator, all draws as an array of shape (total_draws, *sample.shape).
            callback: called as callback(row, timestep, x) after every row with the new sample; what it returns, if
                anything, takes the sample's place.

        Returns:
            The final sample, of the sample's type, dtype and device.
        """
        return executor.run(self, model, sample, generator, noise=noise, callback=callback)

    def convert(self, prediction_type: str) -> Schedule:
        """The same sampler for a model that predicts something else: exact, a change of basis.

        Raises:
            UnsupportedError: a type that is not known, or one from which a row's prediction cannot be recovered.
        """
        of_sample, of_model = conversion(self, prediction_type)
        x = np.eye(self.live_tensors)[0]
        clip = self.clip
        if clip is not None:
            state = clip.state + (clip.model * of_sample)[:, None] * x
            clip = replace(clip, state=state, model=clip.model * of_model)
        return replace(
            self,
            transition=self.transition + self.model_gain[:, :, None] * of_sample[:, None, None] * x,
            model_gain=self.model_gain * of_model[:, None],
            clip=clip,
            prediction_type=prediction_type,
            state_names=tuple(name.replace("m[", f"{self.prediction_type}[") for name in self.state_names),
        )

    def table(self, rows: int = 24) -> str:
        """The rows as text; of a table longer than `rows` the middle is left out."""
        return schedule_table(self, rows)

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings; `from_dict` gives back the same bits."""
        from graphopt.program.storage import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Any) -> Schedule:
        """The schedule of `to_dict`.

        Raises:
            ModelError: the data is not that of a schedule; the message names the field.
        """
        from graphopt.program.storage import from_dict

        return from_dict(data)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the schedule as JSON.

        Raises:
            ModelError: there is no such folder, or no file can take this place.
        """
        from graphopt.program.storage import save

        save(self, path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Schedule:
        """Read a schedule that `save` wrote.

        Raises:
            ModelError: no such file, or not a schedule.
        """
        from graphopt.program.storage import load

        return load(path)
