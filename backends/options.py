"""Keyword options of a backend, read into a frozen dataclass: unknown names and wrong types are errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from graphopt.errors import PipelineError, did_you_mean

Settings = TypeVar("Settings")


def read_options(
    settings: type[Settings], backend: str, given: Mapping[str, Any], also: Sequence[str] = ()
) -> Settings:
    """An instance of the dataclass `settings` with the options `given`; the backend itself reads those called `also`.

    Raises:
        PipelineError: an option that `settings` lacks, or a value that it refuses with a ValueError.
    """
    known = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            names = [*known, *also]
            takes = f"it takes {', '.join(names)}" if names else "it takes no options"
            raise PipelineError(
                f"backend {backend!r}: unknown option {name!r}{did_you_mean(name, names)}; {takes}"
            )
    try:
        return settings(**given)
    except ValueError as error:
        raise PipelineError(f"backend {backend!r}: {error}") from error
