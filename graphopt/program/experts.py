"""`Experts`: several denoisers of one trajectory, each for a range of timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from graphopt.errors import ModelError, UnsupportedError
from graphopt.program.interface import Condition, Interface
from graphopt.program.schedule import Schedule


@dataclass(frozen=True)
class Experts:
    """Denoisers of which each row of a schedule calls one, chosen by the row's timestep.

    With denoisers D_1, D_2, ..., from high noise to low, and falling boundaries c_1 > c_2 > ..., a row with the
    timestep t calls the first D_i with t >= c_i, and the last one if there is none. t is what the schedule feeds the
    denoiser, after any shift of its sigmas and before `timestep_scale`. Source: eDiff-I (Balaji et al. 2022, arXiv
    2211.01324); Wan 2.2, whose boundary in diffusers is `boundary_ratio * scheduler.config.num_train_timesteps`.
    """

    denoisers: Mapping[str, Any] | Sequence[Any]
    """By name, which names the body in a program, or in a list: then they are "denoiser_1", "denoiser_2", ..."""
    boundaries: float | Sequence[float]
    """One fewer than denoisers, or a number for two of them."""

    def __post_init__(self) -> None:
        if not isinstance(self.denoisers, Mapping | list | tuple):
            raise ModelError(f"denoisers is a {type(self.denoisers).__name__}: expected a dict by name, or a list")
        bounds = self.bounds
        if len(self.denoisers) < 2 or len(bounds) != len(self.denoisers) - 1:
            raise ModelError(
                f"{len(self.denoisers)} denoisers and {len(bounds)} boundaries between them: expected two denoisers or "
                "more, and one boundary fewer"
            )
        if not np.isfinite(bounds).all() or not all(a > b for a, b in pairwise(bounds)):
            raise ModelError(f"boundaries={list(bounds)}: expected falling timesteps, for denoisers from high noise on")

    @property
    def by_name(self) -> dict[str, Any]:
        """The denoisers, from high noise to low."""
        given = self.denoisers
        return dict(given) if isinstance(given, Mapping) else {f"denoiser_{i + 1}": d for i, d in enumerate(given)}

    @property
    def bounds(self) -> tuple[float, ...]:
        """The boundaries, falling."""
        return (self.boundaries,) if isinstance(self.boundaries, int | float) else tuple(self.boundaries)

    @classmethod
    def from_pipeline(cls, pipe: Any) -> Experts:
        """The two transformers of a diffusers pipeline of Wan 2.2, with its boundary.

        Raises:
            ModelError: it has one transformer only, or no `boundary_ratio`.
            UnsupportedError: it gives every token a timestep of its own.
        """
        names = ("transformer", "transformer_2")
        found = {name: getattr(pipe, name, None) for name in names}
        config = getattr(pipe, "config", {})
        ratio = config.get("boundary_ratio")
        if ratio is None or None in found.values():
            missing = [*(n for n, d in found.items() if d is None), *(["boundary_ratio"] if ratio is None else [])]
            raise ModelError(
                f"{type(pipe).__name__} has no {' and no '.join(missing)}: it does not choose its denoiser by timestep"
            )
        if config.get("expand_timesteps"):
            raise UnsupportedError(
                f"{type(pipe).__name__} has expand_timesteps=True, a timestep for every token; a row has one timestep"
            )
        return cls(found, ratio * pipe.scheduler.config.num_train_timesteps)

    def calls(self, schedule: Schedule) -> tuple[str, ...]:
        """Which denoiser each row calls.

        Raises:
            ModelError: a denoiser is called in no row.
        """
        # torch compares a float32 or an integer timestep with a number in float32, and so do pipelines.
        wide = np.float64 if schedule.timestep_dtype == "float64" else np.float32
        bounds = np.asarray(self.bounds).astype(wide)
        names = list(self.by_name)
        calls = tuple(names[int((bounds > t).sum())] for t in schedule.timesteps.astype(wide))
        if idle := [name for name in names if name not in calls]:
            times = schedule.timesteps
            hint = "boundaries are timesteps, not shares of them" if max(self.bounds) <= 1 else "leave it out"
            raise ModelError(
                f"no row calls {' or '.join(map(repr, idle))}: with boundaries at {_listed(self.bounds)}, and "
                f"timesteps from {times.max():g} to {times.min():g} in the schedule ({schedule.source}); {hint}"
            )
        return calls


def common_interface(found: Mapping[str, Interface]) -> Interface:
    """The interface of all of some denoisers, by name.

    Raises:
        ModelError: two of them are called differently.
    """
    (first, interface), *others = found.items()
    for name, other in others:
        if difference := _difference(interface, other):
            raise ModelError(
                f"denoisers of one program are called alike, but {first!r} and {name!r} differ in {difference}"
            )
    return interface


def _difference(a: Interface, b: Interface) -> str:
    for field in ("sample", "timestep", "timestep_scale", "prediction_channels"):
        if getattr(a, field) != getattr(b, field):
            return f"their {field.replace('_', ' ')}: {getattr(a, field)} and {getattr(b, field)}"
    mine, other = ({c.name: c for c in interface.conditions} for interface in (a, b))
    for name in [*mine, *other]:
        if mine.get(name) != other.get(name):
            return f"the input {name!r}: {_said(mine.get(name))} and {_said(other.get(name))}"
    return ""


def _said(condition: Condition | None) -> str:
    if condition is None:
        return "none"
    return f"{condition.type}" if condition.branched else f"{condition.type}, shared"


def _listed(numbers: Any) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
