"""What a caller gives a program, and what its denoiser sees of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from graphopt.errors import ModelError, did_you_mean
from graphopt.ir.graph import TensorType

NEGATIVE = "negative_"
"""Prefix of what is given for the unconditional branch."""


@dataclass(frozen=True)
class Condition:
    """An input of the denoiser that is fixed for a whole request: text embeddings, labels, ids, ..."""

    name: str
    """Its name in the denoiser; a path with dots if it lies inside of an argument
    ("added_cond_kwargs.text_embeds")."""
    type: TensorType
    """Static type for one branch of the guidance."""
    branched: bool = True
    """Whether the unconditional branch may have its own; then the first axis is the batch."""


@dataclass(frozen=True)
class Interface:
    """Static types of one branch of the guidance, except for the timestep; the denoiser itself may see both in one
    batch."""

    sample: TensorType
    """[B, ...]"""
    timestep: TensorType
    """As the denoiser sees it: a scalar, [1] for the whole batch, or one for each sample of the batch that it sees."""
    timestep_scale: float
    """What the schedule's timesteps are multiplied by before the denoiser sees them."""
    conditions: tuple[Condition, ...]
    prediction_channels: int | None = None
    """How many leading channels (axis 1) of the denoiser's output are the prediction; None if it is all of it. The
    others are a learned variance, which samplers ignore."""
    doubled: bool = False
    """Whether the denoiser sees both branches of the guidance as one batch, the unconditional half first."""

    def condition(self, name: str) -> Condition:
        return next(c for c in self.conditions if c.name == name)

    def seen(self, kind: str, name: str = "") -> TensorType:
        """The type with which the denoiser sees an input of this kind."""
        match kind:
            case "sample":
                return self._doubled(self.sample)
            case "timestep":
                return self.timestep
        condition = self.condition(name)
        return self._doubled(condition.type) if condition.branched else condition.type

    def _doubled(self, type_: TensorType) -> TensorType:
        if not self.doubled or not type_.shape:
            return type_
        first, *others = type_.shape
        assert isinstance(first, int)
        return TensorType(type_.dtype, (2 * first, *others))

    def gather(self, given: Mapping[str, Any], *, guided: bool) -> dict[str, Any]:
        """The conditions of a call by name, unconditional ones under "negative_<name>".

        Values may be nested as the denoiser's arguments are: `added_cond_kwargs={"text_embeds": ...}`.

        Raises:
            ModelError: a condition is missing, unknown, or of another type than the program was built for.
        """
        known = {c.name: c for c in self.conditions}
        if guided:
            known |= {NEGATIVE + c.name: c for c in self.conditions if c.branched}
        flat = dict(flatten("", given))
        for name, value in flat.items():
            if name not in known:
                listed = ", ".join(known) or "none"
                raise ModelError(f"unknown condition {name!r}{did_you_mean(name, list(known))}; it takes {listed}")
            require_type(f"condition {name!r}", known[name].type, value)
        if missing := [c.name for c in self.conditions if c.name not in flat]:
            raise ModelError(f"condition {missing[0]!r} is missing; this program takes {', '.join(known)}")
        negatives = [NEGATIVE + c.name for c in self.conditions if c.branched] if guided else []
        if negatives and not any(name in flat for name in negatives):
            raise ModelError(
                f"guidance compares with an unconditional branch, and nothing is given for it; give "
                f"{' or '.join(negatives)}"
            )
        return flat


    def branches(
        self, given: Mapping[str, Any], join: Callable[[list[Any]], Any], *, guided: bool
    ) -> list[dict[str, Any]]:
        """The conditions that each call of the denoiser in a row sees, from what `gather` returned: one set, or that
        of the unconditional branch and then the other; `join` concatenates along the first axis."""
        own = {c.name: given[c.name] for c in self.conditions}
        if not guided:
            return [own]
        negative = {name: given.get(NEGATIVE + name, value) for name, value in own.items()}
        if not self.doubled:
            return [negative, own]
        return [{c.name: join([negative[c.name], own[c.name]]) if c.branched else own[c.name] for c in self.conditions}]


def halved(type_: TensorType) -> TensorType:
    """One branch of what both branches of the guidance make in one batch; a scalar as it is."""
    if not type_.shape:
        return type_
    first, *others = type_.shape
    assert isinstance(first, int) and first % 2 == 0
    return TensorType(type_.dtype, (first // 2, *others))


def flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings, by names with dots in between."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value


def require_type(what: str, type_: TensorType, value: Any) -> None:
    """Raise ModelError unless `value` is an array or a tensor of a static type; `what` names it."""
    shape, dtype = getattr(value, "shape", None), str(getattr(value, "dtype", "")).removeprefix("torch.")
    if shape is None:
        raise ModelError(f"{what}: expected an array or a tensor {type_}, got {type(value).__name__}")
    if tuple(shape) != type_.shape or dtype != type_.dtype:
        raise ModelError(
            f"{what}: expected {type_}, got {TensorType(dtype, tuple(shape))}; build the sampler with example_inputs "
            "of the sizes that you use"
        )
