"""The numbers and methods of a scheduler beside those that its configuration gives: what somebody changed by hand.

A schedule is read from new schedulers of the same configuration, which do not have such changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from graphopt.errors import UnsupportedError

KEPT_OF_RUNS = frozenset({"is_scale_input_called"})
"""What diffusers' schedulers keep of a run beside its samples and counts, under names that are not private."""


def changed_by_hand(scheduler: Any, fresh: Any) -> str | None:
    """The first attribute or method of a scheduler that is not what it is in a `fresh` one, set up alike.

    What a fresh one lacks, or has as None, is what schedulers keep while they run, unless the configuration names it.
    """
    expected, found = numbers_of(fresh), numbers_of(scheduler)
    own = vars(fresh)
    if replaced := next((name for name in methods_replaced(scheduler) if name not in own), None):
        return replaced
    named = (name for name in found if name in fresh.config or own.get(name) is not None)
    return next((name for name in named if found[name] != expected.get(name)), None)


def made_anew(scheduler: Any) -> Any:
    """A new scheduler of the same configuration, not set up yet.

    Raises:
        UnsupportedError: its class does not make one.
    """
    # An entry that once was a default may have been written since, and `from_config` would take the default for it.
    given = {k: v for k, v in scheduler.config.items() if k != "_use_default_values"}
    try:
        fresh = type(scheduler).from_config(given)
    except Exception as error:  # a class of somebody's own may raise anything
        raise UnsupportedError(
            f"{type(scheduler).__name__} cannot be made anew from its configuration: {type(error).__name__}: {error}"
        ) from error
    if hasattr(fresh, "set_shift") and hasattr(scheduler, "shift"):  # the one setting that no configuration keeps
        fresh.set_shift(scheduler.shift)
    return fresh


def methods_replaced(scheduler: Any) -> dict[str, str]:
    """The methods of a scheduler's class, private ones too, in whose place it has something of its own."""
    kind = type(scheduler)
    found = {name: value for name, value in sorted(vars(scheduler).items()) if callable(getattr(kind, name, None))}
    return {name: repr(value) for name, value in found.items()}


def numbers_of(scheduler: Any) -> dict[str, Any]:
    """The tables and plain attributes of a scheduler by name, hashable; not its samples, nor what is private to it."""
    found = {}
    for name, value in sorted(vars(scheduler).items()):
        if name.startswith("_") or name in KEPT_OF_RUNS:
            continue
        if isinstance(value, torch.Tensor):
            if value.ndim <= 1:
                found[name] = value.detach().reshape(-1).cpu().view(torch.uint8).numpy().tobytes()
        elif _is_plain(value):
            found[name] = frozen(value)
    return found


def _is_plain(value: Any) -> bool:
    """Whether it says the same whoever made it: functions and other schedulers do not."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, float | int | str | None)


def frozen(value: Any) -> Any:
    """A hashable value that is equal for equal plain data."""
    if isinstance(value, Mapping):
        return tuple(sorted((str(key), frozen(inner)) for key, inner in value.items()))
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        return frozen(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(frozen(inner) for inner in value)
    return repr(value)
