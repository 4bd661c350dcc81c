"""Keyword options of a backend, read into a frozen dataclass: unknown names and wrong types are errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from graphopt.errors import PipelineError, did_you_mean

Settings = TypeVar("Settings")


def read_options(settings: type[Settings], backend: str, given: Mapping[str, Any]) -> Settings:
    """An instance of the dataclass `settings` with the options `given`.

    Raises:
        PipelineError: an option that `settings` lacks, or a value that it refuses with a ValueError.
    """
    known = [field.name for field in dataclasses.fields(settings)]  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes no options"
            raise PipelineError(
                f"backend {backend!r}: unknown option {name!r}{did_you_mean(name, known)}; {takes}"
            )
    try:
        return settings(**given)
    except ValueError as error:
        raise PipelineError(f"backend {backend!r}: {error}") from error
