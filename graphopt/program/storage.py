"""Schedules as JSON: exact (every float64 comes back bit for bit), and read without trusting the file."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import ModelError
from graphopt.ir.model import as_path, check_folder
from graphopt.program.schedule import Clip, Schedule

FORMAT = "graphopt.schedule"
VERSION = 1

_ARRAYS = ("timesteps", "input_scale", "transition", "model_gain", "noise_gain")
_OPTIONAL = ("signal", "sigma")
_INTEGERS = ("draws", "step_index")
_TEXTS = ("timestep_dtype", "prediction_type", "source", "noise_dtype")
_CLIP = tuple(field.name for field in dataclasses.fields(Clip))
_FIELDS = {"format", "version", *(field.name for field in dataclasses.fields(Schedule))}


def to_dict(schedule: Schedule) -> dict[str, Any]:
    """Plain numbers, lists and strings; see `Schedule.to_dict`."""
    data: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    for field in dataclasses.fields(Schedule):
        value = getattr(schedule, field.name)
        if isinstance(value, Clip):
            value = {name: getattr(value, name).tolist() for name in _CLIP}
        elif isinstance(value, np.ndarray):
            value = value.tolist()
        elif isinstance(value, tuple):
            value = list(value)
        data[field.name] = value
    # An axis of length 0 does not survive as nested lists.
    data["noise_gain"] = {"shape": list(schedule.noise_gain.shape), "values": schedule.noise_gain.ravel().tolist()}
    return data


def from_dict(data: Any) -> Schedule:
    """The schedule of `to_dict`; see `Schedule.from_dict`."""
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ModelError(f"Not a schedule: an object with format {FORMAT!r} is expected.")
    if data.get("version") != VERSION:
        raise ModelError(f"Schedule: version {data.get('version')!r} is not known; this is version {VERSION}.")
    if set(data) != _FIELDS:
        odd = sorted(set(data) ^ _FIELDS)[0]
        raise ModelError(f"Schedule: the field {odd!r} is {'unknown' if odd in data else 'missing'}.")
    fields: dict[str, Any] = {name: _text(data[name], name) for name in _TEXTS}
    fields |= {name: _numbers(data[name], name, float) for name in _ARRAYS if name != "noise_gain"}
    fields |= {name: _numbers(data[name], name, int) for name in _INTEGERS}
    fields |= {name: None if data[name] is None else _numbers(data[name], name, float) for name in _OPTIONAL}
    fields["noise_gain"] = _shaped(data["noise_gain"], "noise_gain")
    fields["init_noise_sigma"] = _number(data["init_noise_sigma"], "init_noise_sigma")
    fields["state_names"] = _names(data["state_names"])
    fields["clip"] = _clip(data["clip"])
    return Schedule(**fields)


def save(schedule: Schedule, path: str | PathLike[str]) -> None:
    """Write the schedule, whole or not at all; see `Schedule.save`."""
    path = as_path(path)
    check_folder(path)
    text = json.dumps(to_dict(schedule), allow_nan=False, indent=1)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | PathLike[str]) -> Schedule:
    """Read a schedule; see `Schedule.load`."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not a schedule that can be read: {error}") from error
    try:
        return from_dict(data)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ModelError(f"Schedule: {name} must be a string, but is {type(value).__name__}.")
    return value


def _number(value: Any, name: str) -> float:
    numbers = _numbers(value, name, float)
    if numbers.shape != ():
        raise ModelError(f"Schedule: {name} must be one number, but is {type(value).__name__}.")
    return float(numbers)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ModelError("Schedule: state_names must be a list of strings.")
    return tuple(value)


def _numbers(value: Any, name: str, kind: type) -> Any:
    """An array of float64 or int64 from nested lists of numbers and of nothing else."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise ModelError(f"Schedule: {name} is ragged or holds something that is no number.") from error
    wanted = "if" if kind is float else "i"
    if array.dtype.kind not in wanted:
        raise ModelError(f"Schedule: {name} must hold {'numbers' if kind is float else 'integers'} only.")
    return array.astype(np.float64 if kind is float else np.int64)


def _shaped(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or set(value) != {"shape", "values"}:
        raise ModelError(f"Schedule: {name} must be an object with shape and values.")
    shape, values = value["shape"], value["values"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ModelError(f"Schedule: {name}.shape must be a list of sizes.")
    numbers = _numbers(values, name, float) if values else np.zeros(0)
    if numbers.ndim != 1 or numbers.size != math.prod(shape):
        raise ModelError(f"Schedule: {name} has {numbers.size} values for shape {shape}.")
    try:
        return numbers.reshape(shape)
    except ValueError as error:  # more axes or longer ones than an array can have
        raise ModelError(f"Schedule: {name}.shape is {shape}, which no array can have.") from error


def _clip(value: Any) -> Clip | None:
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != set(_CLIP):
        raise ModelError(f"Schedule: clip must be null or an object with {', '.join(_CLIP)}.")
    return Clip(**{name: _numbers(value[name], f"clip.{name}", float) for name in _CLIP})
